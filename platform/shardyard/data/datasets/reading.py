"""Reading datasets: files, fingerprint, labels, and the folder of a model."""

from __future__ import annotations

from pathlib import Path

from shardyard.data.datasets.store import data_root, known, read_manifest
from shardyard.errors import DataError


def dataset_files(name: str, split: str) -> list[Path]:
    """The Parquet files of a split.

    Raises:
        DataError: the dataset or split does not exist, is not prepared, or has incomplete files.
    """
    dataset = known(name)
    if dataset.kind == "model":
        raise DataError(f"{name} is a pretrained model, not a set of rows; name it as the model's weights.")
    manifest = read_manifest(name)
    if split not in manifest.num_rows:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(manifest.num_rows)}.")
    return [data_root() / name / file for file in manifest.files if file.startswith(f"{split}-")]


def dataset_fingerprint(name: str) -> dict[str, object]:
    """The fingerprint of a dataset, for the provenance of a run: equal fingerprints mean equal rows in the same order.

    Raises DataError as `dataset_files` does.
    """
    manifest = read_manifest(name)
    content = manifest.rows_sha256 or {file: record.sha256 for file, record in manifest.files.items()}
    return {
        "prepared": name,
        "conversion": manifest.conversion,
        "packages": manifest.packages,
        "licence": manifest.licence,
        "num_rows": manifest.num_rows,
        "sha256": content,
    }


def dataset_labels(name: str, column: str = "label") -> list[str]:
    """The label names of a column, by index. Raises DataError as `dataset_files` does, or if the column is missing."""
    names = read_manifest(name).label_names
    if column not in names:
        raise DataError(
            f"{name} has no labels in a column {column!r}; columns of labels: {', '.join(names) or 'none'}."
        )
    return names[column]


def pretrained_folder(name: str) -> Path:
    """The folder of a pretrained model, for `from_pretrained`.

    Raises:
        DataError: the model does not exist, is not prepared, or has incomplete files.
    """
    if known(name).kind != "model":
        raise DataError(f"{name} is a set of rows, not a pretrained model; name it as a source of data.")
    read_manifest(name)
    return data_root() / name
