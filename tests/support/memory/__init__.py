"""Peak memory of processes."""
