"""The documents behind a step, read by a separate process, so that the server imports neither torch nor datasets."""

from __future__ import annotations

import shlex
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from shardyard.dashboard.web import isolated
from shardyard.dashboard.web.answers import Answer, BadRequestError, integer
from shardyard.dashboard.web.api import state_of
from shardyard.errors import ShardyardError
from shardyard.redaction import scrub
from shardyard.tracking.run.folder import RunFolder

LIMIT_SECONDS = 300.0
WAIT_SECONDS = 60.0
MOST_ROWS = 64
_MOST_KNOWN = 64
# Reading is local: a hub dataset that is not cached is reported instead of requested.
OFFLINE = {"HF_HUBOFFLINE": "1", "HF_DATASETSOFFLINE": "1", "TRANSFORMERSOFFLINE": "1"}


class Documents:
    """Answers by run and step, computed by one process at a time and cached.

    Besides Shardyard's own data, files are read only from `folders`: a run may come from an untrusted source.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str, int], dict[str, object]] = OrderedDict()

    def of_step(self, folder: Path, step: int) -> dict[str, object]:
        """`step`, `rows`, `documents` and `problem`: why they are missing or wrong."""
        place = (str(folder), _stamp(folder), step)
        if not self._lock.acquire(timeout=WAIT_SECONDS):
            return _problem(step, "The documents of another step are being read; try again when they are there.")
        try:
            if (known := self._known.get(place)) is not None:
                self._known.move_to_end(place)
                return known
            found = _read(folder, step, self._folders)
            if found.pop("lasting", True):
                self._known[place] = found
                while len(self._known) > _MOST_KNOWN:
                    self._known.popitem(last=False)
            return found
        finally:
            self._lock.release()


def documents(request: Request) -> Response:
    """`GET /api/runs/{id}/documents?step=N`."""
    step = integer(request, "step", 0, 0, 2**53)
    if step < 1:
        raise BadRequestError("step is missing; the first one is 1", "step")
    _, folder = state_of(request).run(request)
    found: Documents = request.app.state.documents
    return Answer(found.of_step(folder, step))


def _read(folder: Path, step: int, folders: Sequence[Path]) -> dict[str, object]:
    try:
        found: dict[str, object] = isolated.call(
            read_here,
            folder,
            step,
            tuple(folders),
            what="Reading the documents",
            timeout=LIMIT_SECONDS,
            environment=OFFLINE,
        )
    except isolated.CallTimeoutError:
        sentence = (
            f"Reading the data up to step {step} takes longer than {LIMIT_SECONDS:.0f} s: it begins at the newest "
            f"checkpoint before it. In a terminal: shardyard data rows {shlex.quote(str(folder))} --step {step}"
        )
        return _problem(step, sentence) | {"lasting": False}
    except ShardyardError as error:
        return _problem(step, _in_short(error)) | {"lasting": False}
    return found


def read_here(folder: Path, step: int, folders: Sequence[Path]) -> dict[str, object]:
    """The documents of a step without secrets; runs in a separate process without network access.

    Raises:
        ShardyardError: they cannot be read, or are outside `folders`.
    """
    from shardyard.engine.inference.step_documents import documents_of_step
    from shardyard.engine.inference.step_sources import refuse_network

    refuse_network()
    found = documents_of_step(RunFolder(folder), step, MOST_ROWS, only_from=folders)
    return {**found, "documents": [part | {"text": scrub(part["text"])} for part in found["documents"]]}


def _in_short(error: ShardyardError) -> str:
    return scrub(" ".join(str(error).split())[:600]) or "The data cannot be read."


def _problem(step: int, sentence: str) -> dict[str, object]:
    return {"step": step, "rows": 0, "documents": [], "problem": sentence}


def _stamp(folder: Path) -> str:
    """A cache stamp that changes with the run's recipe; new checkpoints do not change the documents of a step."""
    try:
        found = (folder / "resolved.yaml").stat()
    except OSError:
        return ""
    return f"{found.st_size}:{found.st_mtime_ns}"
