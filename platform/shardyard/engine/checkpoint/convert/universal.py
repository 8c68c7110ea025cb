"""DeepSpeed's universal layout, made by its own converter from the files that it would have written."""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.checkpoint.constants import PARAM

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.convert.target import target
from shardyard.engine.checkpoint.convert.whole import Whole, same_bits
from shardyard.engine.checkpoint.shards import opened
from shardyard.engine.checkpoint.tensor_files import only_tensors, read_tensors
from shardyard.errors import CheckpointError, UsageError

_MOMENTS = ("exp_avg", "exp_avg_sq")


def write_universal(checkpoint: Path, whole: Whole, step: int, folder: Path, *, trust: bool = False) -> list[str]:
    """Write `folder/global_stepN/` and `folder/latest_universal`, and compare each parameter with the checkpoint.

    Args:
        whole: the same checkpoint by parameter.

    Raises:
        UsageError: DeepSpeed converts no such checkpoint, or the folder exists.
        CheckpointError: what was written differs.
    """
    stage = files.read_manifest(checkpoint)["zero_stage"]
    kinds = whole.kinds[1:]
    if stage == 0 or sorted(kinds) != sorted(_MOMENTS):
        has = f"states {', '.join(kinds) or 'none'}" if stage else "ZeRO stage 0"
        raise UsageError(
            f"DeepSpeed's universal layout is that of Adam at ZeRO stages 1 to 3, and {checkpoint.name} has {has}; "
            "--to states writes all states as safetensors, and --to ranks --stage 1 another stage."
        )
    with target(folder) as partial, tempfile.TemporaryDirectory(dir=partial.parent, prefix=".shardyard-") as scratch:
        shards = opened(checkpoint, trust=trust)
        for name in shards.names:
            torch.save(shards.read(name), Path(scratch) / name)
        output = partial / f"global_step{step}"
        options = argparse.Namespace(
            input_folder=scratch,
            output_folder=str(output),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
        with only_tensors(trust=trust), contextlib.redirect_stdout(io.StringIO()):
            ds_to_universal.main(options)
        _compare(output / "zero", whole)
        return sorted(path.name for path in partial.iterdir())


def _compare(folder: Path, whole: Whole) -> None:
    for name, trained in whole.states.trained.items():
        for file, pieces in {"fp32": trained.weight, **trained.states}.items():
            found = read_tensors(folder / name / f"{file}.pt")
            # Those of stage 3 are tensors themselves.
            found = found[PARAM] if isinstance(found, dict) else found
            if not same_bits(found.reshape(-1), pieces.read(0, pieces.size)):
                raise CheckpointError(f"{name}/{file} differs from the checkpoint; check the disk")
