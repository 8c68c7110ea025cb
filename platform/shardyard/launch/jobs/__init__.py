"""Jobs: submission to a scheduler, and their execution there."""
