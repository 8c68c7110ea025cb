"""`shardyard checkpoint convert`: a checkpoint in another layout, verified after it is written."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from shardyard.cli.options import RunName, RunsDir
from shardyard.cli.view import output
from shardyard.engine.checkpoint import files
from shardyard.errors import CheckpointError, UsageError
from shardyard.launch.run.prepare import prepare, recipe_in
from shardyard.planning.plan import World
from shardyard.recipe.loading.load import load_recipe
from shardyard.tracking.run.folder import RunFolder, runs_folder, typed

if TYPE_CHECKING:
    from shardyard.engine.checkpoint.convert.whole import Whole

_AXES = ("tensor", "sequence", "expert")
Layout = Literal["weights", "states", "universal", "ranks"]


def convert(
    run: RunName,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; it must not exist.")],
    to: Annotated[
        Layout,
        typer.Option(
            "--to",
            help="weights: the model in fp32 as safetensors; states: the optimizer's states too; universal: the layout "
            "of DeepSpeed; ranks: for --workers at --stage.",
        ),
    ],
    step: Annotated[
        int | None, typer.Option("--step", metavar="STEP", min=0, help="Default: the newest good one.")
    ] = None,
    stage: Annotated[
        int | None, typer.Option("--stage", metavar="STAGE", min=0, max=3, help="ZeRO stage, with --to ranks.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="Ranks, with --to ranks.")
    ] = None,
    axes: Annotated[
        list[str] | None,
        typer.Option(
            "--axis", metavar="NAME=SIZE", help="tensor, sequence or expert, with --to ranks. Default: as it was."
        ),
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Also read checkpoints that may execute code.")] = False,
    runs_dir: RunsDir = None,
) -> None:
    """Write a checkpoint in another layout, and compare every value with the original."""
    if to != "ranks" and not (stage is None and workers is None and not axes):
        raise UsageError("--stage, --workers and --axis belong to --to ranks.")
    sizes = _sizes(axes or [])
    from shardyard.engine.checkpoint.convert.names import names_of
    from shardyard.engine.checkpoint.convert.universal import write_universal
    from shardyard.engine.checkpoint.convert.whole import read_whole, write_whole

    found = RunFolder.open(runs_folder(runs_dir), run)
    checkpoint = _checkpoint(found, step)
    recipe = recipe_in(found)
    whole = read_whole(checkpoint, lambda: names_of(recipe), trust=trust)
    number = files.step_of(checkpoint)
    manifest = files.read_manifest(checkpoint)
    if to == "universal" and _is_split(manifest):
        # DeepSpeed's converter joins neither the layers that its own AutoTP splits nor the experts of AutoEP.
        with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".shardyard-") as scratch:
            data_ranks = files.num_ranks(manifest) // manifest.get("tensor_parallel", 1)
            one = [f"cluster.workers={data_ranks}", "parallel.tensor=1", "parallel.expert=1"]
            joined = _for_ranks(found, checkpoint, whole, one, Path(scratch), trust=trust)
            names = write_universal(joined, whole, number, folder, trust=trust)
    elif to == "universal":
        names = write_universal(checkpoint, whole, number, folder, trust=trust)
    elif to == "ranks":
        wanted = [f"zero.stage={manifest['zero_stage'] if stage is None else stage}", *sizes]
        wanted += [f"cluster.workers={workers or files.num_ranks(manifest)}"]
        names = [_for_ranks(found, checkpoint, whole, wanted, folder, trust=trust).name]
    else:
        names = write_whole(whole, number, folder, optimizer=to == "states")
    output.line(f"{folder}: {', '.join(names)}; every value is that of {checkpoint.name}")


def _sizes(axes: list[str]) -> list[str]:
    """Overrides of a recipe for `tensor=2`.

    Raises:
        UsageError: it is none.
    """
    found = [axis.partition("=") for axis in axes]
    for name, _, size in found:
        if name not in _AXES or not size.isdecimal() or not int(size):
            raise UsageError(f"--axis {name}={size}: give one of {', '.join(_AXES)} and its size, such as tensor=1.")
    return [f"parallel.{name}={size}" for name, _, size in found]


def _is_split(manifest: files.Manifest) -> bool:
    """Whether parts of layers, or experts, lie on several ranks."""
    return manifest.get("tensor_parallel", 1) > 1 or manifest.get("expert_parallel", 1) > 1


def _for_ranks(run: RunFolder, checkpoint: Path, whole: Whole, wanted: list[str], folder: Path, *, trust: bool) -> Path:
    """Write the checkpoint for other ranks, and compare it with the original; returns its folder.

    Raises:
        RecipeError: the run cannot have these ranks.
        CheckpointError: what was written differs.
    """
    from shardyard.engine.checkpoint.convert import ranks
    from shardyard.engine.checkpoint.convert.names import names_of
    from shardyard.engine.checkpoint.convert.whole import read_whole

    other = load_recipe(str(run.resolved), [*wanted, "checkpoint.background=false"]).recipe
    plan = prepare(other, World(size=other.cluster.workers, gpu=False))
    written = ranks.write_for_ranks(checkpoint, other, plan, folder, trust=trust)
    ranks.compare(whole, read_whole(written, lambda: names_of(other)))
    return written


def _checkpoint(folder: RunFolder, step: int | None) -> Path:
    """The newest good checkpoint, or that of a step.

    Raises:
        UsageError: there is none.
    """
    found = files.committed_checkpoints(folder.checkpoints)
    for path in reversed(found):
        if step is not None and files.step_of(path) == step:
            return path
        try:
            if step is None and files.bad_because(path) is None:
                return path
        except CheckpointError as error:
            output.note(f"{path.name} is passed over: {error}")
    what = "no good checkpoint" if step is None else f"no checkpoint of step {step}"
    raise UsageError(f"{folder.path} has {what}; `shardyard checkpoint ls {typed(folder.path)}` lists them.")
