"""Documents as token ids in files: the format that `shardyard data tokenize` writes, and those of other libraries."""
