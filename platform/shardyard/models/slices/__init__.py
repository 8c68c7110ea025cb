"""Pretrained weights read in slices: each rank reads its own part, and no rank holds a whole model."""
