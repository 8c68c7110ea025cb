"""Trackers, to which the records of a run are copied: their interface, and those named in recipes."""
