"""The run folder: its files, its lease and its summary."""
