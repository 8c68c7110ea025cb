"""Imported by each Python with this folder on its path: simulates GPUs if REHEARSAL_GPUS is set."""

import os

if os.environ.get("REHEARSAL_GPUS"):
    from pretended import begin

    begin()
