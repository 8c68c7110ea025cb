"""Random generators of a rank: all of them follow from the seed, and from a checkpoint."""

from __future__ import annotations

import random

import numpy
import torch

from shardyard.engine.checkpoint.random_states import begin_random, random_states


def drawn() -> tuple[float, float, float]:
    return random.random(), float(numpy.random.random()), float(torch.rand(()))


def test_every_generator_follows_from_the_seed() -> None:
    """Those of Python and NumPy as well, of which hooks and models of other people draw."""
    begin_random(7)
    first, states = drawn(), random_states()
    drawn()
    begin_random(7)
    assert drawn() == first
    assert random_states() == states
    begin_random(8)
    assert not set(drawn()) & set(first)


def test_the_largest_seed_of_a_recipe_and_a_rank_beyond_it() -> None:
    begin_random(2**32 + 3)
    drawn()
