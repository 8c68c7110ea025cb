"""Running a run: preparation, driver and recovery."""
