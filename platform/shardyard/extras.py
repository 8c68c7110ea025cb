"""Libraries that only some commands need (the extras of pyproject.toml): which are missing, and how to install them."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec

from shardyard.errors import UsageError


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation.

    It lists the libraries themselves, so that it works for a clone and for a wheel: Shardyard is on no package index.
    """
    try:
        declared = metadata.requires("shardyard") or []
    except metadata.PackageNotFoundError:
        declared = []
    wanted = sorted(text.partition(";")[0].strip() for text in declared if f"extra == '{extra}'" in text)
    libraries = " ".join(f"'{text}'" for text in wanted)
    return f"pip install {libraries}" if libraries else f"pip install '.[{extra}]' in a clone of Shardyard"


def missing(*modules: str) -> list[str]:
    """The modules that are not installed."""
    return [name for name in modules if find_spec(name) is None]


def require(extra: str, purpose: str, *modules: str) -> None:
    """Check that the modules that `extra` installs are there. `purpose` is what needs them, as in "the dashboard".

    Raises:
        UsageError: some are not; names them and the command that installs them.
    """
    lacking = missing(*modules)
    if lacking:
        verb = "is" if len(lacking) == 1 else "are"
        raise UsageError(
            f"{purpose} needs {', '.join(lacking)}, which {verb} not installed: `{install_command(extra)}`."
        )
