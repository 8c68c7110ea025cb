"""The documents of a batch with an anomaly, made again beside the training and told as an event."""

from __future__ import annotations

import threading

from shardyard.engine.hooks.base import EventLog
from shardyard.engine.inference.step_documents import DocumentPart, documents_of_step
from shardyard.tracking.run.events import AnomalyDocuments
from shardyard.tracking.run.folder import RunFolder, typed

# Rows of a batch whose documents are made again, and documents that are named.
_ROWS = 64
_NAMED = 16
WAIT_SECONDS = 30.0


class AnomalyDocumentsFinder:
    """Finds them on rank 0, each step in a thread of its own; a run neither waits nor fails because of it."""

    def __init__(self, folder: RunFolder, events: EventLog) -> None:
        self._folder, self._events = folder, events
        self._threads: dict[int, threading.Thread] = {}

    def find(self, step: int) -> None:
        """Begin to find the documents of a step."""
        thread = threading.Thread(target=self._find, args=(step,), name=f"documents-{step}", daemon=True)
        self._threads[step] = thread
        thread.start()

    def wait(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until all are found, and say so of those that are not."""
        for step, thread in self._threads.items():
            thread.join(seconds)
            if thread.is_alive():
                self._events.event(AnomalyDocuments(step=step, problem=self._later(step, "reading takes long")))
        self._threads.clear()

    def _find(self, step: int) -> None:
        try:
            found = documents_of_step(self._folder, step, _ROWS)
            named = tuple(_name(one) for one in found["documents"])
            event = AnomalyDocuments(
                step=step,
                rows=min(found["rows"], _ROWS),
                documents=len(named),
                named=named[:_NAMED],
                problem=found["problem"] or "",
            )
        except Exception as error:  # noqa: BLE001  whatever a source raises, the training goes on
            event = AnomalyDocuments(step=step, problem=self._later(step, str(error).splitlines()[0][:200]))
        self._events.event(event)

    def _later(self, step: int, why: str) -> str:
        return f"{why}; `shardyard data rows {typed(self._folder.path)} --step {step}` lists them"


def _name(part: DocumentPart) -> str:
    """Source, place, and the start of the hash of the content."""
    source = "" if part["source"] in part["file"] else f"{part['source']} "
    return f"{source}{part['file']}:{part['file_row']} {part['sha256'][:12]}"
