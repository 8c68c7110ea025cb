"""The time that one rank computes in a micro-batch, by class of operation: a roofline with shares of the peaks.

m: tokens of a micro-batch on this rank, d: hidden size, w: width of the queries, k: of the keys, f: of the MLP,
V: vocabulary, T: length of a row
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from shardyard.planning.architecture import Architecture, LayerShape
from shardyard.planning.forecast.accelerators import Accelerator

# Share of the memory bandwidth that operations of one value each reach.
MEMORY_SHARE = 0.6
# Share of the best measured product that products reach on average in a step, where the clock falls with the power.
# Calibrated; see docs/large/forecast.md.
SUSTAINED = {"volta": 0.85, "turing": 0.75, "ampere": 0.86, "ada": 0.8, "hopper": 0.74, "blackwell": 0.72,
             "cdna2": 0.8, "cdna3": 0.85, "other": 0.8}  # fmt: skip
# A product of which a dimension has this size runs at half of its speed.
HALF_SIZE = 80
# Share of the 16-bit peak that FlashAttention reaches in forward and backward pass, by version and generation.
ATTENTION = {
    "flash1": {"ampere": 0.34, "hopper": 0.19},
    "flash2": {"volta": 0.30, "turing": 0.30, "ampere": 0.56, "ada": 0.50, "hopper": 0.36, "blackwell": 0.25,
               "cdna2": 0.35, "cdna3": 0.30, "other": 0.35},
    "flash3": {"hopper": 0.56},
}  # fmt: skip
# Tokens at which attention runs at half of its speed: short rows leave much of a causal mask's blocks half empty.
HALF_LENGTH = 256
# Seconds for which the CPU is busy with a layer in forward and backward pass, eager and compiled, and beyond that with
# gathering its weights (stage 3).
LAUNCH_SECONDS, LAUNCH_COMPILED, LAUNCH_STAGE_3 = 1.0e-3, 0.3e-3, 0.5e-3


@dataclass(frozen=True)
class Kernels:
    """How operations are computed.

    fused: element-wise operations and norms are compiled into one kernel each. split_logits: tensor-parallel ranks
    compute the loss of a part of the vocabulary each, and split_norms: norms and residuals of a part of the tokens;
    with AutoTP each computes all of them. joined_gradients: they sum the gradients of the inputs of attention and MLP,
    where AutoTP does so for each matrix that reads them.
    """

    attention: str = "flash2"
    fused: bool = False
    split_logits: bool = False
    split_norms: bool = False
    joined_gradients: bool = False


@dataclass(frozen=True)
class Work:
    """What a rank computes in one micro-batch.

    rows, length: of the micro-batch; all ranks of `tensor` share its matrices, those of `sequence` its tokens.
    width_bytes: of a number (2 or 4). trained: share of the weights that get a gradient.
    recomputed: share of the layers' forward pass that the backward pass repeats: of products, attention, and others.
    """

    architecture: Architecture
    rows: int
    length: int
    precision: str = "bf16"
    width_bytes: int = 2
    tensor: int = 1
    sequence: int = 1
    expert: int = 1
    trained: float = 1.0
    causal: bool = True
    recomputed: tuple[float, float, float] = (0.0, 0.0, 0.0)
    chunked_logits: bool = False
    stage_3: bool = False
    kernels: Kernels = field(default_factory=Kernels)

    @property
    def tokens(self) -> float:
        """Tokens of which this rank computes everything but attention."""
        return self.rows * self.length / self.sequence

    @property
    def layer(self) -> LayerShape:
        """The shape of a layer; where it was not recognised, that of GPT-2."""
        d = self.architecture.hidden_size or 1024
        return self.architecture.layer or LayerShape(key_value_width=self.width, mlp_width=4 * d)

    @property
    def width(self) -> int:
        """Width of the queries of all heads."""
        return self.architecture.attention_width or self.architecture.hidden_size or 1024


@dataclass(frozen=True)
class Compute:
    """Seconds of one micro-batch by class, forward and backward, and what the CPU needs at least."""

    products: tuple[float, float]
    attention: tuple[float, float]
    elementwise: tuple[float, float]
    logits: tuple[float, float]
    launch: float

    @property
    def forward(self) -> float:
        """Seconds of the forward pass."""
        return self._at_least(self.products[0] + self.attention[0] + self.elementwise[0] + self.logits[0], 1 / 3)

    @property
    def backward(self) -> float:
        """Seconds of the backward pass, with what it computes again."""
        return self._at_least(self.products[1] + self.attention[1] + self.elementwise[1] + self.logits[1], 2 / 3)

    def _at_least(self, seconds: float, share: float) -> float:
        return max(seconds, self.launch * share)


def compute(work: Work, device: Accelerator) -> Compute:
    """Seconds of each class of operation in a micro-batch."""
    layers = max(1, work.architecture.layers)
    again = work.recomputed
    forward, backward = _products(work, device)
    attention = _attention(work, device)
    element = _elementwise(work, device)
    head = _head(work, device)
    launch = layers * (LAUNCH_COMPILED if work.kernels.fused else LAUNCH_SECONDS)
    launch += layers * LAUNCH_STAGE_3 if work.stage_3 else 0.0
    return Compute(
        products=(forward, backward + again[0] * forward),
        attention=(attention[0], attention[1] + again[1] * attention[0]),
        elementwise=(element[0], element[1] + again[2] * element[0]),
        logits=head,
        launch=launch,
    )


def peak_of(device: Accelerator, precision: str) -> float:
    """Dense FLOP/s in a precision; a precision without units is computed in fp32."""
    return device.peaks.get(precision) or device.peaks.get("fp32") or max(device.peaks.values())


def product_seconds(work: Work, device: Accelerator, m: float, a: float, b: float) -> float:
    """Seconds of one product of m × a by a × b numbers: by its FLOPs or by its bytes."""
    share = device.matmul_share * SUSTAINED.get(device.generation, SUSTAINED["other"]) * device.clock
    for size in (m, a, b):
        share *= size / (size + HALF_SIZE)
    by_flops = 2 * m * a * b / (peak_of(device, work.precision) * share)
    by_bytes = work.width_bytes * (m * a + a * b + m * b) / (MEMORY_SHARE * device.bandwidth)
    return max(by_flops, by_bytes)


def _matrices(work: Work) -> Iterator[tuple[float, float, float, float]]:
    """The matrices of a layer on this rank: tokens, input and output size, and how many there are."""
    layer, d, w, tp = work.layer, work.architecture.hidden_size or 1024, work.width, work.tensor
    m = work.tokens
    yield m, d, (w + 2 * layer.key_value_width) / tp, 1
    yield m, w / tp, d, 1
    inner, ups = layer.mlp_width, 2 if layer.gated else 1
    if not layer.experts:
        yield m, d, inner / tp, ups
        yield m, inner / tp, d, 1
        return
    # Each rank computes the experts that it holds for the tokens of all that share them; AutoTP cuts none.
    own = layer.experts / work.expert
    each = max(1.0, m * work.expert * layer.experts_per_token / layer.experts)
    yield each, d, inner, ups * own
    yield each, inner, d, own


def _products(work: Work, device: Accelerator) -> tuple[float, float]:
    """Forward and backward seconds of the products with the weights of all layers."""
    architecture = work.architecture
    head = architecture.vocabulary * architecture.hidden_size
    of_layers = max(0, architecture.matmul_parameters - head)
    if architecture.flops_per_row is not None or not of_layers:
        return _counted(work, device)
    seconds = sum(count * product_seconds(work, device, m, a, b) for m, a, b, count in _matrices(work))
    # What the shape of a layer does not tell, such as compressed keys, or dense layers among sparse ones.
    forward = seconds * of_layers / _weights_for_a_token(work)
    return forward, forward * (1 + work.trained)


def _weights_for_a_token(work: Work) -> float:
    """The weights of a layer that a token is multiplied with, on all ranks, by the shape of the layer."""
    layer, d = work.layer, work.architecture.hidden_size or 1024
    matrices = (3 if layer.gated else 2) * (layer.experts_per_token if layer.experts else 1)
    return d * (2 * work.width + 2 * layer.key_value_width + matrices * layer.mlp_width)


def _counted(work: Work, device: Accelerator) -> tuple[float, float]:
    """The same for models whose FLOPs were counted on a pass of one row, as products of their hidden size."""
    architecture = work.architecture
    d = architecture.hidden_size or 1024
    flops = architecture.flops_per_row or 6.0 * architecture.matmul_parameters * work.length
    one = product_seconds(work, device, work.tokens, d, d)
    forward = flops * work.rows / 3 / (2 * work.tokens * d * d) * one
    return forward / work.tensor, forward * (1 + work.trained) / work.tensor


def _attention(work: Work, device: Accelerator) -> tuple[float, float]:
    """Forward and backward seconds of the products of queries, keys and values; masked ones are not computed."""
    architecture = work.architecture
    if architecture.flops_per_row is not None:
        return 0.0, 0.0
    flops = 4 * work.tokens * work.length * work.width / work.tensor * architecture.layers
    if work.kernels.attention == "eager":
        return _eager_attention(work, device, flops)
    shares = ATTENTION[work.kernels.attention]
    share = shares.get(device.generation, ATTENTION["flash2"].get(device.generation, 0.35)) * device.clock
    if work.causal:
        flops /= 2
        share *= work.length / (work.length + HALF_LENGTH)
    forward = flops / (peak_of(device, work.precision) * share)
    return forward, 2.5 * forward  # The backward pass computes the products of the forward pass again.


def _eager_attention(work: Work, device: Accelerator, flops: float) -> tuple[float, float]:
    """Whole matrices of T × T: scores, mask, softmax and dropout read and write each."""
    heads = max(1, work.architecture.heads) / work.tensor
    numbers = work.tokens * work.length * heads * work.architecture.layers
    passes = 5 if work.kernels.fused else 14
    moved = numbers * passes * work.width_bytes / (MEMORY_SHARE * device.bandwidth)
    share = 0.6 * device.matmul_share * SUSTAINED.get(device.generation, 0.8) * device.clock
    product = flops / (peak_of(device, work.precision) * share)
    return product + moved, 2 * product + moved


def _elementwise(work: Work, device: Accelerator) -> tuple[float, float]:
    """Forward and backward seconds of what is bound by memory: norms, residuals, activations, rotations, copies."""
    architecture = work.architecture
    if architecture.flops_per_row is not None and architecture.kept_32 is not None:
        # Each stored value is written once and read about three times; counted in fp32.
        moved = work.tokens * architecture.kept_32.between("none") * work.width_bytes / 4 / work.tensor
        seconds = moved / (MEMORY_SHARE * device.bandwidth)
        return 2 * seconds, 3 * seconds
    forward, backward = _passes(work)
    scale = work.tokens * architecture.layers * work.width_bytes / (MEMORY_SHARE * device.bandwidth)
    return forward * scale, backward * scale


def _passes(work: Work) -> tuple[float, float]:
    """Numbers that a layer reads and writes for each token outside of products, forward and backward.

    Counted in the kernels that eager PyTorch starts for the operations of transformers: a RMS norm is composed of ten
    (in fp32), a rotation of five, a gated activation of two.
    """
    layer, tp = work.layer, work.tensor
    d, w, k = work.architecture.hidden_size or 1024, work.width / tp, work.layer.key_value_width / tp
    f = layer.mlp_width * layer.experts_per_token if layer.experts else layer.mlp_width / tp
    if work.kernels.fused:
        norm, activation, rotation = (4, 6), ((3, 5) if layer.gated else (2, 3)), (2, 2)
    else:
        norm = (18 + 3, 30 + 3) if layer.rms_norm else (2 + 3, 4 + 3)
        activation, rotation = ((5, 9) if layer.gated else (2, 3)), (10, 12)
    own = d / tp if work.kernels.split_norms else d
    forward = 2 * norm[0] * own + activation[0] * f + 2 * w
    backward = 2 * norm[1] * own + activation[1] * f + 2 * w
    if layer.rotary:
        forward, backward = forward + rotation[0] * (w + k), backward + rotation[1] * (w + k)
    if layer.experts:
        # Tokens are copied to their experts and summed again, and the router weighs them.
        copies = 6 * layer.experts_per_token * d
        forward, backward = forward + copies, backward + copies
    return forward, backward


def _head(work: Work, device: Accelerator) -> tuple[float, float]:
    """The output matrix and the loss, which is computed in fp32 whatever the precision."""
    architecture = work.architecture
    vocabulary, d = architecture.vocabulary, architecture.hidden_size
    if architecture.flops_per_row is not None or not vocabulary or not d:
        numbers = work.rows * architecture.logits_per_row
        seconds = 34 * numbers / (MEMORY_SHARE * device.bandwidth)
        return seconds / 2, seconds / 2
    product = product_seconds(work, device, work.tokens, d, vocabulary / work.tensor)
    lost = vocabulary / work.tensor if work.kernels.split_logits else vocabulary
    moved = (20 if work.kernels.fused else 34) * work.tokens * lost / (MEMORY_SHARE * device.bandwidth)
    again = product if work.chunked_logits else 0.0
    return product + moved / 2, product * (1 + work.trained) + moved / 2 + again
