"""What W&B leaves in TMPDIR when a process ends without Python's exit handlers, as ranks do."""

from __future__ import annotations

import contextlib
import sys


def leave_wandb() -> None:
    """End W&B's service, whose folder has its sockets, and remove the library's temporary folders of this process.

    For processes that end right afterwards; does nothing where W&B was not used.
    """
    if "wandb" not in sys.modules:
        return
    import wandb
    from wandb.sdk.artifacts.artifact import Artifact
    from wandb.sdk.data_types import _private

    with contextlib.suppress(Exception):
        wandb.teardown()
    for folder in (_private.MEDIA_TMP, Artifact._TMP_DIR):
        with contextlib.suppress(OSError):
            folder.cleanup()
