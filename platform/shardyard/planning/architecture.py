"""The shape of a model, as far as the plan needs it. Measured by `models/size/measure.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Sizes of one model. `d` below is `hidden_size`, `V` the vocabulary.

    parameters: all trained weights, tied ones counted once.
    matmul_parameters: weights that every token is multiplied with: all but embeddings and position tables, plus the
        output head (V·d), tied or not. Of a mixture of experts only those that a token is routed to.
    largest_block_parameters: weights of the largest repeated block, which ZeRO-3 gathers at a time.
    attention_width: numbers of the queries of all heads of a layer, where that is not `hidden_size`; where keys and
        values differ in width, their mean.
    active_parameters: weights that take part in one token: all but those of experts that it is not routed to.
    expert_parameters: weights of all routed experts.
    tokens_per_row: positions that a row puts through the model, where that is not `data.sequence_length`: patches of an
        image, frames of audio, source and target.
    trainable_parameters: weights that training changes; None where it changes all. Those of adapters are not among
        `parameters`. quantized_parameters: weights that are held in 4 bits.
    flops_per_row, activation_bytes_per_row, logits_per_row: counted on a forward pass of one row (fp32), where the
        formulas for decoders do not apply; of checkpointed blocks only the inputs and one block.
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
    active_parameters: int = 0
    expert_parameters: int = 0
    tokens_per_row: int | None = None
    flops_per_row: float | None = None
    activation_bytes_per_row: int | None = None
    logits_per_row: int = 0
    attention_width: int | None = None
    trainable_parameters: int | None = None
    quantized_parameters: int = 0


def flops_per_token(architecture: Architecture, sequence_length: int) -> float:
    """FLOPs of forward and backward pass for one token: 6·N + 12·L·w·T, with w the width of all heads.

    Chowdhery et al. 2022 (PaLM), appendix B: a multiply and an add for each weight in the forward pass, twice that in
    the backward pass, and the attention's products with keys and values, causal masks not discounted. Recomputation is
    not counted, as is usual for model FLOPs utilisation. Models that are not decoders were counted on a forward pass
    instead.
    """
    if architecture.flops_per_row is not None:
        return architecture.flops_per_row / (architecture.tokens_per_row or sequence_length)
    width = architecture.attention_width or architecture.hidden_size
    attention = 12 * architecture.layers * width * sequence_length
    return float(6 * architecture.matmul_parameters + attention)
