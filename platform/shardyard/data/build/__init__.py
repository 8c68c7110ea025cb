"""Cleaned data from many files: `shardyard data build`, its tasks, the comparison of documents, and the data card."""
