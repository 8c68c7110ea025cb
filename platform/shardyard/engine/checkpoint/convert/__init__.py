"""A checkpoint in another layout, in a folder of its own; verified after it is written."""
