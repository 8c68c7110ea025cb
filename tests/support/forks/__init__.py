"""Processes that are forked from one that has imported what they need, seconds of work for each."""

from __future__ import annotations

import os
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

TESTS = Path(__file__).parents[2]


def fork_context(*modules: str) -> ForkServerContext:
    """The context of processes that have imported `support.forks.preloaded`, and these modules of the tests besides.

    A process has one such server: what its first call names is there for all.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["support.forks.preloaded", *modules])
    before = os.environ.get("PYTHONPATH")
    # In Python 3.11 the server learns in no other way where modules are, and is silent about those it does not find.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS), before]))
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context
