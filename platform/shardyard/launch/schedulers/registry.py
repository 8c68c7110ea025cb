"""Schedulers by name: built-in, registered, and from installed packages (`shardyard.schedulers`)."""

from __future__ import annotations

from shardyard import plugins
from shardyard.errors import UsageError
from shardyard.launch.schedulers.base import Scheduler
from shardyard.suggest import nearest

# The default scheduler.
DEFAULT = "ray"
BUILT_IN: dict[str, str] = {
    "ray": "shardyard.launch.schedulers.ray.scheduler:RayScheduler",
    "slurm": "shardyard.launch.schedulers.slurm.scheduler:SlurmScheduler",
    "kuberay": "shardyard.launch.schedulers.kuberay.scheduler:KubeRayScheduler",
}
_registered: dict[str, type[Scheduler] | str] = dict(BUILT_IN)


def register(name: str, scheduler: type[Scheduler] | str) -> None:
    """Register a scheduler: its class, or `package.module:Class`, which is imported on demand.

    Raises:
        UsageError: the name is taken.
    """
    if _registered.get(name, scheduler) != scheduler:
        raise UsageError(f"a scheduler {name!r} exists already; register this one under another name.")
    _registered[name] = scheduler


def unregister(name: str) -> None:
    """Unregister a scheduler; built-in ones stay."""
    if name not in BUILT_IN:
        _registered.pop(name, None)


def names() -> tuple[str, ...]:
    """All names, the default one first.

    Raises:
        UsageError: an installed package uses a name that is taken.
    """
    return (*_registered, *plugins.installed("schedulers", _registered))


def scheduler_class(name: str) -> type[Scheduler]:
    """The class of a scheduler, by its name or as `package.module:Class` or `file.py:Class`.

    Raises:
        UsageError: there is no scheduler with this name, or its module cannot be imported.
    """
    known = _registered.get(name) or plugins.find("schedulers", name, _registered)
    if known is None:
        close = nearest(name, names())
        hint = f"; did you mean {close!r}?" if close else "."
        raise UsageError(f"there is no scheduler {name!r}; there are {', '.join(names())}{hint}")
    found = plugins.load(known) if isinstance(known, str) else known
    if not (isinstance(found, type) and issubclass(found, Scheduler)):
        raise UsageError(f"{known} is not a scheduler; it must derive from {Scheduler.__module__}.Scheduler.")
    return found


def create(name: str, address: str | None = None) -> Scheduler:
    """A scheduler by name, at this address or at the address from its environment.

    Raises:
        UsageError: there is no scheduler with this name.
    """
    return scheduler_class(name)(address)


def chosen(on: str | None = None, address: str | None = None) -> list[Scheduler]:
    """The selected schedulers: the named one, the default one if only an address is given, else all that are configured
    on this host. If none is, the default one, whose error says what is missing.

    Raises:
        UsageError: there is no scheduler with this name.
    """
    if on is not None or address is not None:
        return [create(on or DEFAULT, address)]
    return configured()


def configured(address: str | None = None) -> list[Scheduler]:
    """All schedulers that are configured on this host, the default one at this address. If there is none, the default
    one, whose error says what is missing. Schedulers that cannot be imported are omitted; `doctor` lists them.
    """
    found = []
    for name in names():
        given = address if name == DEFAULT else None
        if given is not None or _is_configured(name):
            found.append(create(name, given))
    return found or [create(DEFAULT)]


def _is_configured(name: str) -> bool:
    """Whether a scheduler is configured on this host; False if it cannot be imported, which `doctor` reports."""
    try:
        return scheduler_class(name).is_configured()
    except UsageError:
        if name in BUILT_IN:
            raise
        return False
