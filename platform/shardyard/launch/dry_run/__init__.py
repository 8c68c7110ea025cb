"""Dry runs: a recipe of any size with narrow weights, trained for a few steps on ranks of this machine."""
