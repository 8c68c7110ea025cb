"""Imported by each Python that has this folder on its path: makes it believe in GPUs if REHEARSAL_GPUS says so."""

import os

if os.environ.get("REHEARSAL_GPUS"):
    from pretended import begin

    begin()
