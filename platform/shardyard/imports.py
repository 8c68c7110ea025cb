"""Importing much at once, as processes do that begin with torch, Ray and their like."""

from __future__ import annotations

import gc
import importlib


def import_at_once(*modules: str) -> None:
    """Import modules while no garbage is collected, which takes a quarter of the time of importing torch or Ray.

    What is imported stays for good, so the collector need not look at it later either.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
