"""The index on the local disk: one SQLite file per runs folder, with rows of runs and columns of their metrics.

It contains only data from the run folders, so a damaged or outdated index is removed and rebuilt.

    runs     one row per run: contents of run.json, read position, newest loss, sparkline
    metrics  last, best (least), greatest and smoothed value of each metric of a run
    fields   the flattened resolved recipe of a run: dotted path → value
    chunks   the metrics: for each metric float64 values of consecutive lines of metrics.jsonl
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shardyard.errors import UsageError

VERSION = 4
_CACHED_PAGES_KIB = 16 * 1024
_TABLES = """
CREATE TABLE runs (
  key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL DEFAULT '',
  state TEXT NOT NULL DEFAULT 'unknown',
  created REAL, created_text TEXT, started TEXT, ended TEXT, step INTEGER NOT NULL DEFAULT 0, total_steps INTEGER,
  loss REAL, eval_loss REAL, world_size INTEGER, attempts INTEGER NOT NULL DEFAULT 0, sweep TEXT,
  tags TEXT NOT NULL DEFAULT '', problem TEXT, waiting TEXT, info TEXT NOT NULL DEFAULT '{}', spark TEXT,
  info_stamp TEXT, recipe_stamp TEXT, metrics_inode INTEGER, metrics_offset INTEGER NOT NULL DEFAULT 0,
  metrics_head TEXT, rows INTEGER NOT NULL DEFAULT 0, torn INTEGER NOT NULL DEFAULT 0, last_time REAL,
  spark_state TEXT, version INTEGER NOT NULL DEFAULT 0);
CREATE INDEX runs_by_creation ON runs(created DESC);
CREATE INDEX runs_by_version ON runs(version);
CREATE TABLE metrics (
  run INTEGER NOT NULL, name TEXT NOT NULL, count INTEGER NOT NULL, last REAL, best REAL, max REAL, smoothed REAL,
  average REAL NOT NULL, weight REAL NOT NULL, PRIMARY KEY (run, name)) WITHOUT ROWID;
CREATE TABLE names (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE fields (run INTEGER NOT NULL, path TEXT NOT NULL, value, PRIMARY KEY (run, path)) WITHOUT ROWID;
CREATE INDEX fields_of_alerts ON fields(run) WHERE path = 'tracking.alerts.when.0';
CREATE TABLE paths (path TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE chunks (
  run INTEGER NOT NULL, name TEXT NOT NULL, first INTEGER NOT NULL, size INTEGER NOT NULL, positions BLOB,
  data BLOB NOT NULL, PRIMARY KEY (run, name, first));
CREATE TABLE gone (id TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
"""


def index_folder() -> Path:
    """The folder of indexes: `index` in SHARDYARD_CACHE, else in ~/.cache/shardyard."""
    cache = os.environ.get("SHARDYARD_CACHE")
    return (Path(cache).expanduser() if cache else Path.home() / ".cache" / "shardyard") / "index"


class _Held:
    """A connection that is closed when its thread ends, as threads of a pool sometimes do."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self.connection.close()

    def __del__(self) -> None:
        self.close()


class Store:
    """The index of one runs folder. One thread writes; each reading thread has a separate connection."""

    def __init__(self, runs_dir: Path, folder: Path | None = None) -> None:
        """
        Raises:
            UsageError: the index cannot be written.
        """
        digest = hashlib.sha256(os.fsencode(runs_dir)).hexdigest()[:16]
        self.path = (folder or index_folder()) / f"{digest}.db"
        self._local = threading.local()
        self._opened: weakref.WeakSet[_Held] = weakref.WeakSet()
        self._lock = threading.Lock()
        self.damaged = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.writer = self._start()
        except (OSError, sqlite3.Error) as error:
            raise UsageError(
                f"the index in {self.path.parent} cannot be written: {getattr(error, 'strerror', None) or error}. "
                "Name a folder on a local disk in SHARDYARD_CACHE."
            ) from error

    def _start(self) -> sqlite3.Connection:
        try:
            connection = self._connect()
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            if found == VERSION and self._is_intact(connection):
                return connection
            connection.close()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
        self.remove()
        connection = self._connect()
        connection.executescript(f"{_TABLES}PRAGMA user_version = {VERSION};")
        return connection

    def _is_intact(self, connection: sqlite3.Connection) -> bool:
        """Whether the file has the expected length; reading all of it would take as long as a rebuild."""
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (pages,), (size,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
        connection.execute("SELECT COUNT(*) FROM runs").fetchone()
        return self.path.stat().st_size >= int(pages) * int(size)

    def remove(self) -> None:
        """Remove the files; all their contents can be read again."""
        for ending in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)

    def _connect(self) -> sqlite3.Connection:
        # Recipes and samples may be private; SQLite uses the same mode for its other files.
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
        connection.row_factory = None
        for pragma in (
            "journal_mode = WAL",
            "synchronous = OFF",
            f"cache_size = -{_CACHED_PAGES_KIB}",
            "temp_store = MEMORY",
            "wal_autocheckpoint = 4000",
        ):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction of the writing thread."""
        self.writer.execute("BEGIN IMMEDIATE")
        try:
            yield self.writer
        except BaseException:
            self.writer.execute("ROLLBACK")
            raise
        self.writer.execute("COMMIT")

    @property
    def reader(self) -> sqlite3.Connection:
        """A connection of this thread; its rows are mappings."""
        found: _Held | None = getattr(self._local, "held", None)
        if found is None:
            found = self._local.held = _Held(self._connect())
            found.connection.execute("PRAGMA query_only = ON")
            found.connection.row_factory = sqlite3.Row
            with self._lock:
                self._opened.add(found)
        return found.connection

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for held in list(self._opened):
                held.close()
        with suppress(sqlite3.Error):
            self.writer.close()
        if self.damaged:
            self.remove()
