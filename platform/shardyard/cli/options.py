"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardyard.cli.view import complete
from shardyard.errors import UsageError
from shardyard.tracking.run.folder import DEFAULT_RUNS, RUNS_VARIABLE, runs_folder


def listed_folder(option: Path | None) -> Path:
    """The runs folder, for a command that lists it.

    Raises:
        UsageError: it was given and does not exist (the default one may be missing until the first launch).
    """
    folder = runs_folder(option)
    if not folder.is_dir() and folder != runs_folder(DEFAULT_RUNS) and not folder.exists():
        source = "--runs-dir" if option is not None else RUNS_VARIABLE
        raise UsageError(
            f"the runs folder {folder}, given by {source}, does not exist; the first launch into it creates it."
        )
    return folder


RecipeName = Annotated[
    str,
    typer.Argument(metavar="RECIPE", autocompletion=complete.recipe_names, help="Path or name of a shipped recipe."),
]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", autocompletion=complete.run_ids, help="Id, unique beginning, path, or `latest`.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        autocompletion=complete.overrides,
        help="Override a field, e.g. train.steps=100.",
    ),
]
RunsDir = Annotated[
    Path | None,
    typer.Option("--runs-dir", metavar="FOLDER", help="Where run folders are; SHARDYARD_RUNS or ./runs."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print names only.")]
Try = Annotated[
    int | None,
    typer.Option(
        "--try", min=1, metavar="STEPS", help="Short trial: train this many steps, everything else scaled to it."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray's dashboard, http://HEAD:8265 (RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or the cluster started here), or "
        "with --on kuberay a context of the kubeconfig.",
    ),
]
OnScheduler = Annotated[
    str | None,
    typer.Option(
        "--on", metavar="SCHEDULER", autocompletion=complete.scheduler_names, help="Only jobs of this scheduler."
    ),
]
