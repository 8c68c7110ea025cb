"""The files of a folder that are uploaded with a job: no secrets, runs, caches or links to outside.

Patterns have the syntax of .gitignore. Built-in patterns come first, then .gitignore if not in a repository, then
.shardyardignore; the last match decides, and a leading `!` includes a name again.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shardyard.errors import UsageError

IGNORE_FILE = ".shardyardignore"
SECRETS = (
    *(".env", ".env.*", "*.env", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "*.ppk", "*.gpg"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".pgpass", ".npmrc", ".pypirc", ".my.cnf"),
    *(".git-credentials", ".htpasswd", "credentials", "credentials.*", "client_secret*.json", "service-account*.json"),
    *("service_account*.json", "application_default_credentials.json", "kubeconfig", "*.tfstate", "*.tfstate.*"),
    *("auth_token", "secrets.json", "secrets.toml", "secrets.y*ml", ".aws/", ".azure/", ".ssh/", ".gnupg/", ".kube/"),
    *(".docker/", ".config/", ".ray/", ".shardyard/", ".terraform/", ".password-store/"),
)
CLUTTER = (
    *(".git/", ".hg/", ".svn/", ".venv/", "venv/", "node_modules/", "__pycache__/", "*.pyc", ".cache/", ".tox/"),
    *(".ipynb_checkpoints/", ".mypy_cache/", ".ruff_cache/", ".pytest_cache/", ".nox/", "runs/", "wandb/", ".DS_Store"),
)
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_LOOKED_AT_BYTES = 64 * 1024


@dataclass(frozen=True)
class Rule:
    """One line of an ignore file."""

    pattern: str
    matches: re.Pattern[str]
    folders_only: bool
    takes_back: bool


@dataclass(frozen=True)
class Selection:
    """Selected files with sizes in bytes, and excluded ones with the reason; excluded folders end in a slash."""

    files: tuple[tuple[Path, int], ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def num_bytes(self) -> int:
        """Total size of the files."""
        return sum(size for _, size in self.files)


def select(folder: Path, never: Iterable[Path] = ()) -> Selection:
    """Select the files of a folder to upload. In a git repository, files that git ignores are skipped.

    Args:
        never: files and folders that are always excluded, such as the runs folder.

    Raises:
        OSError: something cannot be read.
    """
    chooser = _Chooser(folder, [path.expanduser().resolve() for path in never])
    listed = _git_files(folder)
    chooser.rules = rules_of(folder, in_repository=listed is not None)
    for path in listed if listed is not None else chooser.walk():
        chooser.take(path)
    return Selection(tuple(sorted(chooser.files)), tuple(sorted(chooser.left_out.items())))


def rules_of(folder: Path, *, in_repository: bool) -> list[Rule]:
    """The rules for a folder, in order."""
    lines = [*SECRETS, *CLUTTER]
    for name in (IGNORE_FILE,) if in_repository else (".gitignore", IGNORE_FILE):
        if (folder / name).is_file():
            lines += (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
    return [rule for line in lines if (rule := rule_of(line)) is not None]


def rule_of(line: str) -> Rule | None:
    """A line of an ignore file: a pattern with `*`, `?`, `[…]` and `**`; None for comments and empty lines.

    Raises:
        UsageError: the line is not a valid pattern.
    """
    text = line.rstrip()
    if not text or text.startswith("#"):
        return None
    takes_back = text.startswith("!")
    text = text[1:] if takes_back or text.startswith("\\") else text
    folders_only, body = text.endswith("/"), text.strip("/")
    # A pattern with a slash (except a trailing one) is relative to the folder; others match at every level.
    anchored = "/" in text.rstrip("/")
    prefix = "" if anchored else "(?:.*/)?"
    try:
        matches = re.compile(f"{prefix}{_as_regex(body)}", re.DOTALL)
    except re.error as error:
        raise UsageError(f"{line.strip()!r} in {IGNORE_FILE} or .gitignore is not a pattern: {error}.") from error
    return Rule(line.strip(), matches, folders_only, takes_back) if body else None


def _as_regex(pattern: str) -> str:
    parts = {"**/": "(?:.*/)?", "/**": "/.*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    found = ""
    for piece in re.findall(r"\*\*/|/\*\*$|\*\*|\*|\?|\[!?[^\]!]+\]|\\?.", pattern, re.DOTALL):
        if piece in parts:
            found += parts[piece]
        elif piece.startswith("[") and len(piece) > 1:
            characters = piece[1:-1].replace("\\", "\\\\")
            found += f"[^{characters[1:]}]" if characters.startswith("!") else f"[{characters}]"
        else:
            found += re.escape(piece[-1])
    return found


class _Chooser:
    def __init__(self, folder: Path, never: list[Path]) -> None:
        self._folder, self._root, self._never = folder, folder.resolve(), never
        self.rules: list[Rule] = []
        self.files: list[tuple[Path, int]] = []
        self.left_out: dict[str, str] = {}
        self._known: Callable[[str, bool], str | None] = functools.cache(self._judge)

    def walk(self) -> Iterator[Path]:
        for place, folders, names in os.walk(self._folder, onerror=_raise):
            inside = [Path(place) / name for name in sorted(folders)]
            links = [path for path in inside if path.is_symlink()]
            entered = [path for path in inside if path not in links and self._stays(path, folder=True) is None]
            folders[:] = [path.name for path in entered]
            yield from sorted([*links, *(Path(place) / name for name in names)])

    def take(self, path: Path) -> None:
        """Select a file, or record why it is excluded."""
        if self._stays(path) is not None:
            return
        if path.is_symlink() and (reason := self._wrong_link(path)) is not None:
            self.left_out[self._name(path)] = reason
        elif path.is_file():
            if holds_private_key(path):
                self.left_out[self._name(path)] = "holds a private key"
            else:
                self.files.append((path, path.stat().st_size))

    def _stays(self, path: Path, *, folder: bool = False) -> str | None:
        """Why a file is excluded, by its name or that of a parent folder, which is then reported instead; else None."""
        parts = path.relative_to(self._folder).parts
        for count in range(1, len(parts) + 1):
            is_folder = folder or count < len(parts)
            name = "/".join(parts[:count])
            if (reason := self._known(name, is_folder)) is not None:
                self.left_out[name + "/" * is_folder] = reason
                return reason
        return None

    def _judge(self, name: str, is_folder: bool) -> str | None:
        path = self._root / name
        if path in self._never:
            return "runs and tokens stay here"
        if is_folder and (path / "run.json").is_file():
            return "a run folder"
        found = None
        for rule in self.rules:
            if (is_folder or not rule.folders_only) and rule.matches.fullmatch(name):
                found = None if rule.takes_back else rule.pattern
        return found

    def _wrong_link(self, path: Path) -> str | None:
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):
            return "a link to nothing"
        if not target.is_relative_to(self._root):
            return "a link that leaves the folder"
        if target.is_dir():
            return "a link to a folder"
        inner = target.relative_to(self._root)
        names = [*((str(parent), True) for parent in inner.parents if str(parent) != "."), (str(inner), False)]
        return "a link to what stays here" if any(self._known(*name) for name in names) else None

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()


def holds_private_key(path: Path) -> bool:
    """Whether a file has the header of a private key."""
    with path.open("rb") as file:
        return _PRIVATE_KEY.search(file.read(_LOOKED_AT_BYTES)) is not None


def _raise(error: OSError) -> None:
    raise error


def _git_files(folder: Path) -> list[Path] | None:
    """The files that git tracks or would track, including links; None outside a repository."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    names = sorted({os.fsdecode(name) for name in done.stdout.split(b"\0") if name})
    return [path for name in names if (path := folder / name).is_symlink() or path.is_file()]
