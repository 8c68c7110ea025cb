"""The index of a runs folder: one thread checks for changes, more often for active runs.

It never writes to a run folder. inotify is not used, because it does not work on NFS: files are polled with stat, at
intervals that grow while a run does not change.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from shardyard.dashboard.index.ingest import ingest, looks_like_a_run
from shardyard.dashboard.index.store import Store
from shardyard.errors import UsageError

logger = logging.getLogger(__name__)

# Seconds between two checks of a run, by its state; the interval of an unchanged run grows to the second number.
PAUSES = {
    "running": (1.0, 5.0),
    "pending": (2.0, 10.0),
    "unknown": (3.0, 30.0),
    "lost": (5.0, 60.0),
}
ENDED_PAUSES = (10.0, 30.0)
SCAN_SECONDS = 2.0
UNWATCHED_FACTOR = 5.0
WATCHED_SECONDS = 30.0
RUNS_A_TRANSACTION = 50
SLICE_SECONDS = 0.25
MOST_RUNS = 200_000
_APART = frozenset({"sweeps"})


class Index:
    """The runs of one folder, as far as they have been read."""

    def __init__(self, runs_dir: Path, store: Store | None = None) -> None:
        """
        Raises:
            UsageError: the index cannot be written.
        """
        self.runs_dir = runs_dir
        self.store = store or Store(runs_dir)
        self.changed = threading.Condition()
        self.on_change: Callable[[list[str]], None] | None = None
        self._looks: dict[str, _Look] = {}
        self._keys: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._problems: dict[str, str] = {}
        self._folder_problem: str | None = None
        self._watched = time.monotonic()
        self._next_scan = 0.0
        self._scanned: tuple[int, ...] | None = None
        self._forced_scan = 0.0
        connection = self.store.writer
        self._keys = dict(connection.execute("SELECT id, key FROM runs").fetchall())
        newest = connection.execute(
            "SELECT MAX(version) FROM (SELECT version FROM runs UNION SELECT version FROM gone)"
        )
        # `version` is safe for readers: it is incremented only after the changes are committed.
        self.version: int = newest.fetchone()[0] or 0
        self._written = self.version

    # Queries from other threads.

    @property
    def problems(self) -> list[str]:
        """Sentences about files and folders that could not be read."""
        return ([self._folder_problem] if self._folder_problem else []) + sorted(self._problems.values())[:20]

    @property
    def unread(self) -> int:
        """The number of runs that have not been read to their end yet."""
        return sum(1 for look in list(self._looks.values()) if look.unread)

    def poke(self, run_id: str | None = None) -> None:
        """Check a run immediately, because it was just changed or started."""
        look = self._looks.get(run_id) if run_id is not None else None
        if look is not None:
            look.quiet, look.due, look.stamps = 0, 0.0, None
        self._next_scan = 0.0

    def watch(self) -> None:
        """Check more often for a while, because a page is open."""
        self._watched = time.monotonic()

    def folder_of(self, run_id: str) -> Path | None:
        """The folder of a run in the index; None for any other name."""
        return self.runs_dir / run_id if run_id in self._keys else None

    def key_of(self, run_id: str) -> int | None:
        """The key of a run in the tables; None if it is unknown."""
        return self._keys.get(run_id)

    # The thread.

    def start(self) -> None:
        """Watch the folder until `stop`."""
        self._thread = threading.Thread(target=self._follow, name="shardyard-index", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the files."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        self.store.close()

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                pause = self.look()
            except sqlite3.Error as error:
                self.store.damaged = not isinstance(error, sqlite3.OperationalError)
                advice = (
                    "start the dashboard again, and it is built anew" if self.store.damaged else "is its disk full?"
                )
                self._folder_problem = f"The index {self.store.path} cannot be used ({error}); {advice}."
                logger.warning("%s", self._folder_problem)
                pause = 5.0
            self._stop.wait(pause)

    def catch_up(self, timeout_seconds: float = 60.0) -> None:
        """Read until the current contents of all runs are in the index."""
        deadline = time.monotonic() + timeout_seconds
        self._scanned, self._next_scan = None, 0.0
        for look in self._looks.values():
            look.due, look.stamps = 0.0, None
        while (self.look() == 0.0 or self.unread) and time.monotonic() < deadline:
            pass

    def look(self) -> float:
        """Read the runs that are due, for at most a quarter of a second; returns the seconds until the next is due."""
        began = time.monotonic()
        if began >= self._next_scan:
            self._scan(began)
        due = [look for look in self._looks.values() if look.due <= began]
        due = sorted((look for look in due if not self._rests(look, began)), key=lambda look: look.order)
        changed: list[str] = []
        for start in range(0, len(due), RUNS_A_TRANSACTION):
            changed += self._read(due[start : start + RUNS_A_TRANSACTION], began + SLICE_SECONDS)
            if time.monotonic() - began > SLICE_SECONDS or self._stop.is_set():
                break
        if changed:
            self._publish(changed)
        now = time.monotonic()
        nearest = min((look.due for look in self._looks.values()), default=self._next_scan)
        return max(0.0, min(nearest, self._next_scan) - now)

    def _rests(self, look: _Look, now: float) -> bool:
        """Whether an ended run is unchanged, by two stat calls; its next check is then postponed."""
        if look.stamps is None or look.unread or look.state in PAUSES or look.stamps != self._stamps(look.id):
            return False
        look.quiet += 1
        self._put_off(look, now)
        return True

    def _stamps(self, run_id: str) -> tuple[int, ...] | None:
        folder = f"{self.runs_dir}/{run_id}"
        try:
            found = [os.stat(f"{folder}/{name}", follow_symlinks=False) for name in ("run.json", "metrics.jsonl")]
        except OSError:
            return None
        return tuple(part for one in found for part in (one.st_ino, one.st_size, one.st_mtime_ns))

    def _put_off(self, look: _Look, now: float) -> None:
        least, most = PAUSES.get(look.state, ENDED_PAUSES)
        look.due = now + min(most, least * 1.5 ** min(look.quiet, 20)) * self._factor
        look.order = (look.due, 0.0)

    def _publish(self, changed: list[str]) -> None:
        if self.on_change is not None:
            self.on_change(changed)
        with self.changed:
            self.changed.notify_all()

    @property
    def _factor(self) -> float:
        return 1.0 if time.monotonic() - self._watched < WATCHED_SECONDS else UNWATCHED_FACTOR

    def _read(self, looks: list[_Look], deadline: float) -> list[str]:
        changed = []
        with self.store.writing() as connection:
            for look in looks:
                if self._read_one(connection, look):
                    changed.append(look.id)
                if time.monotonic() > deadline:
                    break
        self.version = self._written
        return changed

    def _read_one(self, connection: sqlite3.Connection, look: _Look) -> bool:
        now = time.monotonic()
        folder = self.runs_dir / look.id
        if not folder.is_dir():
            self._vanished(connection, look.id)
            return True
        # Before reading, so that changes in the meantime are noticed next time.
        look.stamps = self._stamps(look.id)
        result = ingest(connection, folder, look.key)
        if result.changed:
            self._written += 1
            look.state = connection.execute(
                "UPDATE runs SET version = ? WHERE key = ? RETURNING state", (self._written, look.key)
            ).fetchone()[0]
        look.unread = result.more
        look.quiet = 0 if result.changed else look.quiet + 1
        self._put_off(look, now)
        if result.more:
            look.due = now
            look.order = (now, 0.0)
        return result.changed

    def _vanished(self, connection: sqlite3.Connection, run_id: str) -> None:
        key = self._keys.pop(run_id)
        self._looks.pop(run_id, None)
        self._written += 1
        for table, column in (("runs", "key"), ("metrics", "run"), ("fields", "run"), ("chunks", "run")):
            connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (key,))
        connection.execute("INSERT OR REPLACE INTO gone VALUES (?, ?)", (run_id, self._written))

    def _scan(self, now: float) -> None:
        """List the run folders, unless the modification time of the runs folder is unchanged."""
        self._next_scan = now + SCAN_SECONDS * self._factor
        try:
            found = os.stat(self.runs_dir)
            stamp = (found.st_ino, found.st_mtime_ns)
            # Coarse time stamps may hide a change right after the last scan, and NFS a recent one.
            recent = time.time() - found.st_mtime < 5
            if stamp == self._scanned and not recent and now < self._forced_scan:
                return
            names = self._names()
        except FileNotFoundError:
            self._folder_problem = f"{self.runs_dir} is not there; it is shown as soon as it is."
            names = {}
        except OSError as error:
            self._folder_problem = f"{self.runs_dir} cannot be read: {error.strerror}."
            return
        else:
            self._folder_problem = None
            self._scanned, self._forced_scan = stamp, now + 60
        self._take(names)

    def _names(self) -> dict[str, float]:
        """Folders that are runs or look like one, with the time of their last change."""
        names: dict[str, float] = {}
        self._problems.clear()
        with os.scandir(self.runs_dir) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in _APART or entry.name in self._looks:
                    if entry.name in self._looks and entry.is_dir(follow_symlinks=False):
                        names[entry.name] = 0.0
                    continue
                with suppress(OSError):
                    if self._is_run(entry) and len(names) < MOST_RUNS:
                        names[entry.name] = entry.stat().st_mtime
        return names

    def _is_run(self, entry: os.DirEntry[str]) -> bool:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            self._problems[entry.name] = f"A folder is left out because its name is not UTF-8: {entry.name!a}."
            return False
        if entry.is_symlink():
            if entry.is_dir():
                self._problems[entry.name] = (
                    f"{entry.name} is a link and is not followed; give its folder as --runs-dir."
                )
            return False
        if not entry.is_dir(follow_symlinks=False):
            return False
        folder = Path(entry.path)
        return (folder / "run.json").exists() or looks_like_a_run(folder)

    def _take(self, names: dict[str, float]) -> None:
        new = [name for name in names if name not in self._looks]
        vanished = [name for name in self._keys if name not in names]
        if not new and not vanished:
            return
        with self.store.writing() as connection:
            for name in vanished:
                self._vanished(connection, name)
            states = dict(connection.execute("SELECT id, state FROM runs").fetchall())
            for name in new:
                if name not in self._keys:
                    self._written += 1
                    cursor = connection.execute("INSERT INTO runs (id, version) VALUES (?, ?)", (name, self._written))
                    self._keys[name] = int(cursor.lastrowid or 0)
                    connection.execute("DELETE FROM gone WHERE id = ?", (name,))
                # Newest first, because these are viewed most often.
                self._looks[name] = _Look(name, self._keys[name], order=(0.0, -names[name]))
                self._looks[name].state = states.get(name, "unknown")
        self.version = self._written
        self._publish([*vanished, *new])


class _Look:
    """The schedule of a run's checks."""

    __slots__ = ("due", "id", "key", "order", "quiet", "stamps", "state", "unread")

    def __init__(self, run_id: str, key: int, order: tuple[float, float]) -> None:
        self.id = run_id
        self.key = key
        self.order = order
        self.due = 0.0
        self.quiet = 0
        self.state = "unknown"
        self.stamps: tuple[int, ...] | None = None
        self.unread = True


def check_folder(runs_dir: Path) -> None:
    """Check that the folder exists and is readable.

    Raises:
        UsageError: it does not exist, or cannot be read.
    """
    try:
        with os.scandir(runs_dir):
            return
    except FileNotFoundError:
        return  # the first run creates it
    except OSError as error:
        raise UsageError(f"{runs_dir} cannot be read: {error.strerror}. Give another --runs-dir.") from error
