"""The rollbacks of a run, in a file of its folder: what the checkpoint that it goes back to cannot contain.

Written before the ranks start again. A run that is killed before that comes to the same decision again, because it
trains on the same batches with the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from shardyard.errors import CheckpointError
from shardyard.tracking.files import write_atomically
from shardyard.tracking.run.folder import RunFolder

NAME = "rollbacks.json"


@dataclass(frozen=True)
class Rollback:
    """One return to a checkpoint.

    step: of the anomaly. signal, value: what it was found in. skipped: steps whose batches are not trained on.
    checkpoint_step: 0 if there was no checkpoint.
    """

    step: int
    signal: str
    value: str
    skipped: tuple[int, ...]
    checkpoint_step: int


_ALL = TypeAdapter(tuple[Rollback, ...])


def read_rollbacks(folder: RunFolder) -> tuple[Rollback, ...]:
    """Those of a run so far, in their order.

    Raises:
        CheckpointError: the file is damaged; without it the run would train on batches that it has skipped.
    """
    path = _path(folder)
    try:
        return _ALL.validate_json(path.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        raise CheckpointError(
            f"{path} cannot be read, so the batches that the run skips after a rollback are not known: "
            f"{str(error).splitlines()[0]}. Restore it from a backup, or remove it and set train.skip_steps."
        ) from error


def add_rollback(folder: RunFolder, added: Rollback) -> None:
    """Add one, so that it survives a crash at any moment.

    Raises:
        OSError: the file cannot be written.
    """
    every: Sequence[Rollback] = (*read_rollbacks(folder), added)
    write_atomically(_path(folder), json.dumps([asdict(one) for one in every], indent=1) + "\n")


def _path(folder: RunFolder) -> Path:
    return folder.path / NAME
