"""`shardyard checkpoint convert`: a checkpoint in another layout, verified after it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from shardyard.cli.options import RunName, RunsDir
from shardyard.cli.view import output
from shardyard.engine.checkpoint import files
from shardyard.errors import CheckpointError, UsageError
from shardyard.launch.run.prepare import prepare, recipe_in
from shardyard.planning.plan import World
from shardyard.recipe.loading.load import load_recipe
from shardyard.tracking.run.folder import RunFolder, runs_folder, typed

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
    trust: Annotated[bool, typer.Option("--trust", help="Also read checkpoints that may execute code.")] = False,
    runs_dir: RunsDir = None,
) -> None:
    """Write a checkpoint in another layout, and compare every value with the original."""
    if to != "ranks" and not (stage is None and workers is None):
        raise UsageError("--stage and --workers belong to --to ranks.")
    from shardyard.engine.checkpoint.convert import ranks
    from shardyard.engine.checkpoint.convert.names import names_of
    from shardyard.engine.checkpoint.convert.universal import write_universal
    from shardyard.engine.checkpoint.convert.whole import read_whole, write_whole

    found = RunFolder.open(runs_folder(runs_dir), run)
    checkpoint = _checkpoint(found, step)
    recipe = recipe_in(found)
    whole = read_whole(checkpoint, lambda: names_of(recipe), trust=trust)
    number = files.step_of(checkpoint)
    if to == "universal":
        names = write_universal(checkpoint, whole, number, folder, trust=trust)
    elif to == "ranks":
        manifest = files.read_manifest(checkpoint)
        wanted = [f"zero.stage={manifest['zero_stage'] if stage is None else stage}"]
        wanted += [f"cluster.workers={workers or files.num_ranks(manifest)}", "checkpoint.background=false"]
        other = load_recipe(str(found.resolved), wanted).recipe
        plan = prepare(other, World(size=other.cluster.workers, gpu=False))
        written = ranks.write_for_ranks(checkpoint, other, plan, folder, trust=trust)
        ranks.compare(whole, read_whole(written, lambda: names_of(other)))
        names = [written.name]
    else:
        names = write_whole(whole, number, folder, optimizer=to == "states")
    output.line(f"{folder}: {', '.join(names)}; every value is that of {checkpoint.name}")


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
