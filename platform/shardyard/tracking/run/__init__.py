"""The run folder: its files, who holds it, what it sums up to."""
