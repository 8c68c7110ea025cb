"""The shape of a model, as far as the arithmetic of the plan needs it. Measured by `models/measure.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Sizes of one model. `d` below is `hidden_size`, `V` the vocabulary.

    parameters: all trained weights, tied ones counted once.
    matmul_parameters: weights that every token is multiplied with: all but embeddings and position tables, plus the
        output head (V·d), tied or not. Of a mixture of experts only those that a token is routed to.
    largest_block_parameters: weights of the largest repeated block, which ZeRO-3 gathers at a time.
    """

    family: str
    parameters: int
    matmul_parameters: int
    largest_block_parameters: int
    layers: int
    hidden_size: int
    heads: int
    vocabulary: int
    positions: int | None


def flops_per_token(architecture: Architecture, sequence_length: int) -> float:
    """FLOPs of forward and backward pass for one token: 6·N + 12·L·d·T.

    Chowdhery et al. 2022 (PaLM), appendix B: a multiply and an add for each weight in the forward pass, twice that in
    the backward pass, and the attention's products with keys and values, causal masks not discounted. Recomputation
    is not counted, as is usual for model FLOPs utilisation.
    """
    attention = 12 * architecture.layers * architecture.hidden_size * sequence_length
    return float(6 * architecture.matmul_parameters + attention)
