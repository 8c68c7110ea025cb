"""Checkpoints in object stores: copying them there, reading them there, and fetching a run from there."""
