"""Copies the checkpoints of a run to an object store while the run is driven, on a thread of the driver.

Ranks do not take part: the copy costs no step time, needs no collective, and goes on while they restart.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from shardyard.engine.checkpoint.remote.mirror import Mirror, TakenOverMirrorError, address_of
from shardyard.engine.checkpoint.remote.store import Store
from shardyard.errors import RunFolderError, ShardyardError, TakenOverError
from shardyard.recipe.schema import Checkpoint
from shardyard.tracking.run.events import Event, MirrorFailed, write_event
from shardyard.tracking.run.folder import RunFolder, typed

_POLL_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_LAST_ATTEMPTS = 3


@contextlib.contextmanager
def mirrored(settings: Checkpoint, folder: RunFolder) -> Iterator[None]:
    """Copy within the context, if the recipe asks for it, and wait at its end for the last copy.

    Raises:
        CheckpointError: the object store cannot be written, which is tested at the beginning.
    """
    if settings.mirror is None:
        yield
        return
    store = Store(address_of(settings.mirror, folder.id))
    mirror = Mirror(folder, store, settings.keep, lambda event: write_event(folder.events, event))
    try:
        mirror.claim()
    except ShardyardError:
        with contextlib.suppress(RunFolderError):
            folder.update(state="failed")
        raise
    copying = Copying(mirror, folder)
    copying.start()
    try:
        yield
    except (KeyboardInterrupt, TakenOverError):
        # Whoever is in such a hurry goes on from what is there.
        copying.abandon()
        raise
    except BaseException:
        copying.end()
        raise
    copying.end()


class Copying:
    """A thread that copies. It never raises: a store that refuses is an event, and is asked again."""

    def __init__(self, mirror: Mirror, folder: RunFolder) -> None:
        self._mirror, self._folder = mirror, folder
        self._ending, self._abandoned = threading.Event(), threading.Event()
        self._noted = ""
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self) -> None:
        """Wait until everything is copied, or the store refuses for good."""
        self._ending.set()
        self._thread.join()

    def abandon(self) -> None:
        """Copy nothing more; what is being copied is not waited for."""
        self._abandoned.set()
        self._ending.set()

    def _run(self) -> None:
        wait = _POLL_SECONDS
        while not self._ending.wait(wait):
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
            if not self._mirror.is_behind:
                wait = _POLL_SECONDS
                continue
            outcome = self._tried(last=False)
            if outcome is None:
                return
            wait = _POLL_SECONDS if outcome else wait
        for attempt in range(_LAST_ATTEMPTS):
            if self._abandoned.is_set() or self._tried(last=True, final=attempt + 1 == _LAST_ATTEMPTS) is not False:
                return

    def _tried(self, *, last: bool, final: bool = False) -> bool | None:
        """Whether everything was copied; None if another process copies now."""
        try:
            self._mirror.finish() if last else self._mirror.sync()
        except TakenOverMirrorError as error:
            self._note(MirrorFailed(error=str(error), then="end"))
            return None
        except (ShardyardError, OSError) as error:
            again = f"`shardyard checkpoint mirror {typed(self._folder.path)}` goes on with it"
            text = f"{error}; {again}" if final else str(error)
            if text != self._noted:
                self._note(MirrorFailed(error=text, then="end" if final else "retry"))
            self._noted = text
            return False
        return True

    def _note(self, event: Event) -> None:
        write_event(self._folder.events, event)
