"""The shape of a model, as far as the plan needs it. Measured by `models/size/measure.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from shardyard.planning.activations import Kept
from shardyard.planning.findings import Findings


@dataclass(frozen=True)
class LayerShape:
    """What a decoder's layer consists of, for forecasts of its speed and of what ranks exchange.

    key_value_width: width of the keys of all heads, which is smaller than that of the queries where heads share them.
    mlp_width: inner width of the MLP, or of one expert. gated: whether the MLP has a third matrix.
    rms_norm: whether norms are RMS norms, which transformers composes of several operations.
    rotary: whether queries and keys are rotated. experts: routed experts of a layer, 0 in dense models; of these,
    `experts_per_token` see a token. inputs: matrices that read the input of attention, and of the MLP, such as those of
    queries, keys and values where these are separate.
    """

    key_value_width: int
    mlp_width: int
    gated: bool = False
    rms_norm: bool = False
    rotary: bool = False
    experts: int = 0
    experts_per_token: int = 0
    inputs: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Architecture:
    """Sizes of one model. `d` below is `hidden_size`, `V` the vocabulary.

    parameters: all trained weights, tied ones counted once.
    matmul_parameters: weights that every token is multiplied with: all but embeddings and position tables, plus the
        output head (V·d), tied or not. For a mixture of experts, only the experts that a token is routed to.
    largest_block_parameters: weights of the largest repeated block. block_experts: those of its routed experts.
    largest_tensor_parameters: weights of the largest matrix, or of the largest stack of experts' matrices.
    attention_width: width of the queries of all heads of a layer, if it is not `hidden_size`; the mean of the widths of
        keys and values, if they differ.
    active_parameters: weights used for one token: all but the experts that the token is not routed to.
    expert_parameters: weights of all routed experts.
    tokens_per_row: positions of a row in the model, if not `data.sequence_length`: patches of an image, frames of
        audio, source and target.
    trainable_parameters: weights that training changes; None if it changes all. Adapter weights are not included in
        `parameters`. quantized_parameters: weights stored in 4 bits.
    pretrained_vocabulary: rows of the pretrained embeddings, if they are resized to `vocabulary`.
    adapted, left_out: the weights with and without an adapter, by kind; "" without adapters, or if none is left out.
    flops_per_row, logits_per_row: counted on a forward pass of one row, if the formulas for decoders do not apply.
    kept_16, kept_32: what is kept for the backward pass in 16 bits and in fp32; None if it was not counted. Of models
        other than decoders only in fp32.
    findings: of the probes of the model.
    layer: of decoders; None if its parts were not recognised.
    frozen_parameters: weights of a teacher; 0 if there is none, or if they are not on this machine.
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
    block_experts: int = 0
    largest_tensor_parameters: int = 0
    active_parameters: int = 0
    expert_parameters: int = 0
    tokens_per_row: int | None = None
    flops_per_row: float | None = None
    logits_per_row: int = 0
    attention_width: int | None = None
    trainable_parameters: int | None = None
    quantized_parameters: int = 0
    pretrained_vocabulary: int | None = None
    kept_16: Kept | None = None
    kept_32: Kept | None = None
    findings: Findings = field(default_factory=Findings)
    adapted: str = ""
    left_out: str = ""
    layer: LayerShape | None = None
    frozen_parameters: int = 0

    @property
    def trained_parameters(self) -> int:
        """Number of weights that training changes."""
        return self.parameters if self.trainable_parameters is None else self.trainable_parameters


def flops_per_token(architecture: Architecture, sequence_length: int) -> float:
    """FLOPs of forward and backward pass for one token: 6·N + 12·L·w·T, with w the width of all heads.

    Chowdhery et al. 2022 (PaLM), appendix B: a multiply and an add for each weight in the forward pass, twice that in
    the backward pass, and the attention products with keys and values, without a discount for causal masks.
    Recomputation is not counted, as is usual for model FLOPs utilisation. For models other than decoders, FLOPs are
    counted on a forward pass instead.
    """
    if architecture.flops_per_row is not None:
        return architecture.flops_per_row / (architecture.tokens_per_row or sequence_length)
    width = architecture.attention_width or architecture.hidden_size
    attention = 12 * architecture.layers * width * sequence_length
    return float(6 * architecture.matmul_parameters + attention)
