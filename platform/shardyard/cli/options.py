"""Arguments and options that several commands share, so that they read alike everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Path or name of a shipped recipe.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Id, unique beginning, path, or `latest`.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a field, e.g. train.steps=100.")
]
RunsDir = Annotated[Path | None, typer.Option("--runs-dir", help="Where run folders are; SHARDYARD_RUNS or ./runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print names only.")]
