"""Imports of large libraries (torch, Ray) in one go, with garbage collection off."""

from __future__ import annotations

import gc
import importlib
import sys


def import_at_once(*modules: str) -> None:
    """Import modules with garbage collection off: the collector takes a quarter of the time that importing torch or Ray
    needs.

    Imported modules are never freed, so they are also frozen for later collections. Nothing happens to modules that are
    there already.
    """
    if all(module in sys.modules for module in modules):
        return
    was_on = gc.isenabled()
    gc.disable()
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
