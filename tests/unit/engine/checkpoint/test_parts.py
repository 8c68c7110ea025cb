"""Any range of a whole tensor from its parts, and of a part from the whole, is what slicing the tensor gives."""

from __future__ import annotations

import math

import pytest
import torch

from shardyard.engine.checkpoint.parts import Cut, Joined, cut, joined
from shardyard.engine.checkpoint.pieces import Pieces

SHAPE = (4, 6, 2)
WHOLE = torch.arange(48, dtype=torch.float32).view(SHAPE)


def stored(tensor: torch.Tensor) -> Pieces:
    """A tensor in files of two ranks."""
    flat = tensor.flatten()
    return Pieces([flat[:5], flat[5:]])


@pytest.mark.parametrize(("dim", "of"), [(0, 2), (0, 4), (1, 2), (1, 3), (2, 2)])
def test_every_range_of_a_whole_and_of_its_parts(dim: int, of: int) -> None:
    pieces = [stored(part) for part in WHOLE.chunk(of, dim)]
    whole = joined(pieces, WHOLE.chunk(of, dim)[0].shape, dim)
    parts = [Cut(stored(WHOLE), math.prod(SHAPE[:dim]), index, of) for index in range(of)]
    cases = [(whole, WHOLE), *zip(parts, WHOLE.chunk(of, dim), strict=True)]
    for values, tensor in cases:
        filled = torch.cat([tensor.flatten(), torch.zeros(8)])
        assert values.size == tensor.numel()
        for begin in range(values.size + 1):
            for end in range(begin, values.size + 4):
                assert torch.equal(values.read(begin, end), filled[begin:end]), (begin, end)
    assert whole.read(1, 3, torch.bfloat16).dtype == parts[0].read(1, 3, torch.bfloat16).dtype == torch.bfloat16


def test_the_parts_of_which_a_whole_was_joined_are_read_directly() -> None:
    pieces = [stored(part) for part in WHOLE.chunk(2, 1)]
    whole = joined(pieces, (4, 3, 2), 1)
    assert cut(whole, SHAPE, 1, 1, 2) is pieces[1]
    assert isinstance(cut(whole, SHAPE, 0, 1, 2), Cut)
    assert cut(whole, SHAPE, 1, 0, 1) is whole
    assert joined(pieces[:1], (4, 3, 2), 1) is pieces[0]
    assert isinstance(whole, Joined)
