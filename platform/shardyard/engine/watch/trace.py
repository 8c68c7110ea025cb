"""The answer of a rank to the question in which collectives it is: a thread that waits for the question."""

from __future__ import annotations

import contextlib
import os
import threading
from functools import cache

from shardyard.engine.watch.collectives import flight_record
from shardyard.tracking.watch.beat import BEAT


@cache
def answer_questions() -> None:
    """Answer on a thread of its own, from the first call on. torch waits for others without holding the
    interpreter, so the thread can run."""
    handle = BEAT.open()
    threading.Thread(target=_answer, args=(BEAT.asked(), handle.trace), name="shardyard-watch", daemon=True).start()


def _answer(asked: int, trace: int) -> None:
    while os.read(asked, 1):
        text = ""
        with contextlib.suppress(Exception):
            text = flight_record()
        os.pwrite(trace, (text or "{}").encode(), 0)
