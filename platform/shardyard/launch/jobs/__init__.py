"""Jobs: what is sent to a scheduler, and what a job does there."""
