"""What a forward pass keeps for the backward pass, with each way to compute some of it again. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardyard.recipe.sections.model import Checkpointing


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass keeps for the backward pass, counted on forward passes.

    blocks, largest, inputs: of each token in all blocks, in the largest of them, and as the inputs of blocks.
    rest: of each token outside of blocks, without logits. pairs: of each pair of tokens, where attention is not fused.
    selected: of each token, the outputs of products and attention in all blocks, which `selective` keeps.
    shared: of each token, what all blocks get besides, such as rotary tables; it stays as long as one is recomputed.
    count: number of blocks; 0 if they were not counted.
    """

    blocks: float
    largest: float
    inputs: float
    rest: float
    pairs: float
    selected: float = 0.0
    shared: float = 0.0
    count: int = 0

    def between(self, mode: Checkpointing, interval: int = 1) -> float:
        """Bytes of each token between the forward and the backward pass, where attention is fused."""
        share = checkpointed_share(mode, interval, self.count)
        return self.rest + (1 - share) * self.blocks + share * self.again(mode)

    def halved(self) -> Kept:
        """The same in 16 bits, where it was counted in 32."""
        sizes = (self.blocks, self.largest, self.inputs, self.rest, self.pairs, self.selected, self.shared)
        blocks, largest, inputs, rest, pairs, selected, shared = (size / 2 for size in sizes)
        return Kept(blocks, largest, inputs, rest, pairs, selected, shared, self.count)

    def again(self, mode: Checkpointing) -> float:
        """Bytes of each token that blocks keep which compute the rest again."""
        return self.inputs + self.shared + (self.selected if mode == "selective" else 0.0)


def checkpointed_share(mode: Checkpointing, interval: int, blocks: int) -> float:
    """The share of blocks that compute their activations again: the first one, and each `interval`th after it."""
    if mode == "none":
        return 0.0
    return math.ceil(blocks / interval) / blocks if blocks else 1 / interval
