"""Preparing a dataset: fetch its packages, convert, write."""

from __future__ import annotations

import gzip
import platform
import struct
import wave
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shardyard.data.datasets import (
    answers,
    digits,
    doc_entities,
    emoji,
    emoji_questions,
    encoder,
    fashion_mnist,
    functions,
    glosses,
    hypernyms,
    plays,
    prompts,
    stamps,
    verses,
)
from shardyard.data.datasets.fetch import Report, fetch, normalised_name, package_name
from shardyard.data.datasets.rows import Converted, rows_sha256, write_rows
from shardyard.data.datasets.store import FileRecord, Manifest, install, known, manifest_of, read_manifest, workspace
from shardyard.errors import DataError
from shardyard.extras import install_command, missing
from shardyard.recipe.catalog.datasets import DatasetSpec

# Each takes the folders of the unpacked packages by name.
CONVERSIONS: dict[str, Callable[[Mapping[str, Path]], Converted]] = {
    "fashion-mnist": fashion_mnist.convert,
    "verses-en-es": verses.convert,
    "prompts-en": prompts.convert,
    "prompts-it": prompts.convert,
    "prompts-ru": prompts.convert,
    "emoji-captions": emoji.convert,
    "wordnet-glosses": glosses.convert,
    "wordnet-questions": hypernyms.convert_questions,
    "wordnet-nouns": hypernyms.convert_nouns,
    "digits": digits.convert,
    "plays": plays.convert,
    "docstring-answers": answers.convert_answers,
    "docstring-preferences": answers.convert_preferences,
    "docstring-choices": answers.convert_choices,
    "function-summaries": functions.convert,
    "emoji-questions": emoji_questions.convert,
    "python-doc-entities": doc_entities.convert,
    "stamps": stamps.convert_images,
    "stamps-es": stamps.convert_speech,
}
# Exceptions from reading a file with another layout.
_UNEXPECTED = (
    LookupError,
    ValueError,
    FileNotFoundError,
    EOFError,
    SyntaxError,
    gzip.BadGzipFile,
    struct.error,
    wave.Error,
    zlib.error,
)
MODELS: dict[str, Callable[[Mapping[str, Path], Path], None]] = {"minilm": encoder.convert_model}


def prepare(name: str, report: Report, given: Sequence[Path] = (), *, again: bool = False) -> Manifest:
    """Prepare the dataset if it is incomplete, or always with `again`; returns its manifest.

    `given` are local package files to use instead of downloads; `report` receives progress messages.

    Raises:
        DataError: a package cannot be fetched or has an unexpected layout, or a library is missing.
    """
    dataset = known(name)
    _check_given(dataset, given)
    if not (again or given):
        try:
            return read_manifest(name)
        except DataError:
            pass  # Missing, incomplete or stale: prepare it.
    _check_libraries(dataset)
    with workspace(name) as place:
        unpacked = {package.name: fetch(package, place, given, report) for package in dataset.packages}
        report(f"converting {name}")
        folders = {package: found.folder for package, found in unpacked.items()}
        versions = {package: found.version for package, found in unpacked.items()}
        if not versions:
            versions = {"python": platform.python_version()}
        return install(name, lambda folder: _build(dataset, folders, versions, folder))


def _build(
    dataset: DatasetSpec, folders: Mapping[str, Path], versions: dict[str, str], folder: Path
) -> Callable[[dict[str, FileRecord]], Manifest]:
    try:
        if dataset.kind == "model":
            MODELS[dataset.name](folders, folder)
            converted = Converted({})
        else:
            converted = CONVERSIONS[dataset.name](folders)
    except _UNEXPECTED as error:
        listed = ", ".join(f"{package} {version}" for package, version in versions.items())
        raise DataError(
            f"{dataset.name} cannot be converted from {listed}: {error}. The packages do not have the expected "
            "contents; give older or newer ones with --from FILE."
        ) from error
    for split, rows in converted.splits.items():
        if not rows:
            raise DataError(f"{dataset.name}: the packages hold no rows for the split {split}; nothing was written.")
        write_rows(folder / f"{split}-00000-of-00001.parquet", rows, dataset.columns, converted.label_names)
    return lambda files: manifest_of(
        dataset,
        versions,
        label_names={column: list(names) for column, names in converted.label_names.items()},
        num_rows={split: len(rows) for split, rows in converted.splits.items()},
        rows_sha256={split: rows_sha256(rows, dataset.columns) for split, rows in converted.splits.items()},
        left_out={reason: count for reason, count in converted.left_out.items() if count},
        files=files,
    )


def _check_given(dataset: DatasetSpec, given: Sequence[Path]) -> None:
    wanted = {normalised_name(package.name): package.name for package in dataset.packages}
    for file in given:
        if not file.is_file():
            raise DataError(f"there is no package file {file}.")
        if package_name(file) not in wanted:
            raise DataError(
                f"{file.name} is not a package that {dataset.name} is made from; it takes "
                f"{', '.join(sorted(wanted.values())) or 'none'} under the file names of the registry."
            )


def _check_libraries(dataset: DatasetSpec) -> None:
    lacking = missing(*dataset.libraries)
    if lacking:
        raise DataError(
            f"{dataset.name} needs {' and '.join(lacking)} for its conversion: `{install_command('data')}`."
        )
