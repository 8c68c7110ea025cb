"""The YAML file of `shardyard data build`: its schema, and reading it with every problem at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from shardyard.errors import Problem, RecipeError
from shardyard.recipe.catalog.shipped import is_file
from shardyard.recipe.fields import Path as FieldPath
from shardyard.recipe.fields import dotted
from shardyard.recipe.loading.load import shown_path, without_resets
from shardyard.recipe.loading.problems import mistyped_literals, problems_of, where
from shardyard.recipe.loading.yaml_source import read_document
from shardyard.recipe.rules.data import source_findings
from shardyard.recipe.rules.filters import step_findings
from shardyard.recipe.schema import NAME_PATTERN, OnError, Source
from shardyard.recipe.sections.base import BYTES_PATTERN, REQUIRED, Section, described
from shardyard.recipe.sections.filters import Step

# Columns of the output beside those that are kept.
OWN_COLUMNS = ("text", "source")


class BuildSource(Section):
    """A source as in a recipe, read once from its start to its end."""

    source: str | None = described(None, "Embedded corpus or prepared dataset, as in a recipe.")
    path: str | None = described(None, "Files, a folder, a URL or a hub id, as in a recipe.")
    config: str | None = described(None, "Configuration (subset) of a hub dataset.")
    revision: str | None = described(None, "Git revision of a hub dataset: pin it to repeat a build exactly.")
    split: str | None = described(None, "Split to read; by default `train`.")
    text_column: str = described("text", "Column that holds the text of a document.")
    documents: Literal["file", "lines", "paragraphs"] | int | str | None = described(
        None, "How text files become documents, as in a recipe."
    )
    keep_columns: list[str] = described([], "Further columns that the output keeps, as texts, such as url.")
    license: str | None = described(None, "Licence of the documents, for the data card.")

    def as_recipe_source(self) -> Source:
        """The source as recipes have it."""
        names = ("source", "path", "config", "revision", "split", "text_column", "documents")
        return Source(**{name: getattr(self, name) for name in names})


class Output(Section):
    """What is written."""

    folder: str = described(
        REQUIRED, "Folder of the data, which is new or of an earlier build; relative paths start at the current folder."
    )
    format: Literal["parquet", "jsonl", "jsonl.zst"] = described("parquet", "Format of the files.")
    shard_bytes: str = described("256MiB", "Text of one file, about.", "bytes", pattern=BYTES_PATTERN)


class BuildSpec(Section):
    """A data set that is made from others."""

    name: str = described(REQUIRED, "Name of the data set.", pattern=NAME_PATTERN)
    description: str = described("", "What it is for, in a sentence or two; it stands in the data card.")
    sources: list[BuildSource] = described(REQUIRED, "Sources in the order of the output.", min_length=1)
    steps: list[Step] = described([], "Steps that remove or change documents, in order.")
    on_error: OnError = described("skip", "What happens to rows that cannot be read, as data.on_error of a recipe.")
    output: Output = described(REQUIRED, "What is written.")

    @property
    def kept_columns(self) -> list[str]:
        """The kept columns of all sources, each once."""
        return list(dict.fromkeys(column for source in self.sources for column in source.keep_columns))


@dataclass(frozen=True)
class LoadedSpec:
    """A checked file. `folder` is that of the output, `shown` as it was given."""

    spec: BuildSpec
    path: Path
    folder: Path
    shown: str


def load_spec(path: Path, output: Path | None = None) -> LoadedSpec:
    """Read and check a file of `shardyard data build`.

    Args:
        output: the folder of the output, instead of that in the file.

    Raises:
        RecipeError: with every problem found, each with its line.
    """
    shown = shown_path(path)
    if is_file(path) and not path.read_bytes().strip():
        raise RecipeError(shown, [Problem(shown, "", "is empty; it needs at least name, sources and output")])
    document = read_document(path, shown)
    if "model" in document.data and "sources" not in document.data:
        message = "is a recipe; `shardyard data build` reads a file with name, sources, steps and output"
        raise RecipeError(shown, [Problem(shown, "", message)])
    data = without_resets(document.data, BuildSpec)
    problems = [*document.problems, *mistyped_literals(data, document.places, shown, BuildSpec)]
    spec: BuildSpec | None = None
    try:
        spec = BuildSpec.model_validate(data)
    except ValidationError as error:
        problems += problems_of(error, document.places, shown, BuildSpec)
    if spec is not None:
        problems += [Problem(where(at, document.places, shown), dotted(at), message) for at, message in _findings(spec)]
    if problems or spec is None:
        raise RecipeError(shown, problems)
    folder = str(output) if output is not None else spec.output.folder
    return LoadedSpec(spec, path, Path(os.path.abspath(os.path.expanduser(folder))), folder)


def _findings(spec: BuildSpec) -> Iterator[tuple[FieldPath, str]]:
    for index, source in enumerate(spec.sources):
        for key, message in source_findings(source.as_recipe_source(), "causal_lm", training=True):
            yield ("sources", index, *((key,) if key else ())), message
        for column in source.keep_columns:
            if column in OWN_COLUMNS:
                yield ("sources", index, "keep_columns"), f"{column!r} is the name of a column of the output"
    for below, message in step_findings(spec.steps):
        yield ("steps", *below), message
