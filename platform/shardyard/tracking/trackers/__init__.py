"""Where the records of a run go beside its folder: the interface of trackers, and those that a recipe names."""
