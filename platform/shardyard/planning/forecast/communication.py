"""What ranks exchange in a step, by axis: bytes, seconds, and behind which computation they are hidden.

The volumes are those that DeepSpeed sends. Ψ: weights of this rank's tensor shard, n: data-parallel size.

| ZeRO | each micro-batch | each step |
|---|---|---|
| 0 | | all-reduce of the gradients, after the backward pass |
| 1 | | all-reduce of the gradients, in the last backward pass or after it (`beside`), all-gather of the weights |
| 2 | all-reduce of the gradients in the backward pass | all-gather of the weights |
| 3 | two all-gathers of the weights, one reduce-scatter of the gradients | |
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from shardyard.planning.forecast.accelerators import Accelerator
from shardyard.planning.forecast.compute import Work
from shardyard.planning.forecast.hardware import LINK_SHARE, Hardware
from shardyard.planning.forecast.links import LINKS

Axis = Literal["data", "tensor", "sequence", "expert", "host"]
# Link to the host by generation, where it is not PCIe 4.
_HOST_LINKS = {"volta": "pcie3", "turing": "pcie3", "hopper": "pcie5", "blackwell": "pcie5", "cdna3": "pcie5"}
# Where a transfer happens: in every forward or backward pass, in the last backward pass of a step, or after it. Those
# "within" a pass hold its computation up; the others run beside it.
When = Literal["forward", "backward", "last backward", "after", "within"]


@dataclass(frozen=True)
class Transfer:
    """One kind of exchange. sent_bytes, seconds: of one rank in one step. per_step: how often the step has it."""

    axis: Axis
    what: str
    when: When
    sent_bytes: float
    seconds: float
    per_step: int


@dataclass(frozen=True)
class DataTraffic:
    """What data-parallel ranks exchange.

    weights: of the dense part of this rank's shard; expert_weights: of the experts that it holds. trained: share that
    has gradients. gradient_bytes, weight_bytes: of a number on the wire. bucket_bytes: of a collective, stages 1 and 2.
    size, inner: the data-parallel size, and ranks from one to the next. expert: ranks that share experts.
    second: ranks that keep a second copy of the weights for the backward pass (hpZ); 1 for none.
    beside: whether stage 1 reduces beside the last backward pass. With bf16 and accumulators in fp32 on the device,
    DeepSpeed's BF16_Optimizer does so after it.
    """

    stage: int
    weights: float
    expert_weights: float
    trained: float
    gradient_bytes: int
    weight_bytes: int
    bucket_bytes: int
    layers: int
    size: int
    inner: int
    expert: int
    accumulation: int
    beside: bool = True
    second: int = 1


def data_transfers(traffic: DataTraffic, hardware: Hardware) -> Iterator[Transfer]:
    """The exchanges of the data-parallel ranks: of the dense weights by all, of experts by those that hold the same."""
    groups = [("", traffic.weights, traffic.size, traffic.inner)]
    if traffic.expert_weights:
        holders = traffic.size // traffic.expert
        groups.append((" of experts", traffic.expert_weights, holders, traffic.inner * traffic.expert))
    for what, weights, size, inner in groups:
        if size > 1 and weights:
            yield from _sharded(traffic, hardware, what, weights, size, inner)


def _sharded(
    traffic: DataTraffic, hardware: Hardware, what: str, weights: float, size: int, inner: int
) -> Iterator[Transfer]:
    gradients = weights * traffic.trained * traffic.gradient_bytes
    moved, rounds = weights * traffic.weight_bytes, traffic.accumulation
    collectives = max(1, math.ceil(gradients / traffic.bucket_bytes))

    def of(name: str, when: When, passes: int, sent: float, count: int, per_step: int, ranks: int = size) -> Transfer:
        sent *= passes * (ranks - 1) / ranks
        seconds = sent / hardware.bus(inner, ranks) + count * hardware.latency(inner, ranks)
        return Transfer("data", name + what, when, sent * per_step, seconds * per_step, per_step)

    if traffic.stage == 3:
        yield of("all-gather of weights", "forward", 1, moved, traffic.layers, rounds)
        again = traffic.second if traffic.second > 1 else size
        yield of("all-gather of weights", "backward", 1, moved, traffic.layers, rounds, again)
        if gradients:
            yield of("reduce-scatter of gradients", "backward", 1, gradients, traffic.layers, rounds)
        return
    if not gradients:
        return
    if traffic.stage == 2:
        yield of("all-reduce of gradients", "backward", 2, gradients, collectives, rounds)
    else:
        when: When = "last backward" if traffic.stage == 1 and traffic.beside else "after"
        yield of("all-reduce of gradients", when, 2, gradients, collectives, 1)
    if traffic.stage:
        changed = moved * traffic.trained
        yield of("all-gather of weights", "after", 1, changed, max(1, math.ceil(changed / traffic.bucket_bytes)), 1)


def host_rate(device: Accelerator) -> float:
    """Bytes per second in one direction between a GPU and its host."""
    return LINK_SHARE * LINKS[_HOST_LINKS.get(device.generation, "pcie4")].rate


def host_transfers(
    device: Accelerator, accumulation: int, *, activations: float = 0.0, weights: float = 0.0
) -> Iterator[Transfer]:
    """What travels between a GPU and its host in a step.

    Args:
        activations: bytes of a micro-batch that wait in host memory for the backward pass.
        weights: bytes of the weights that a rank keeps there, which are gathered from it in both passes.
    """
    kinds: tuple[tuple[str, When, float], ...] = (
        ("activations to the host", "forward", activations),
        ("activations from the host", "backward", activations),
        ("weights from the host", "forward", weights),
        ("weights from the host", "backward", weights),
    )
    for what, when, size in kinds:
        if size:
            sent = accumulation * size
            yield Transfer("host", what, when, sent, sent / host_rate(device), accumulation)


def layer_transfers(work: Work, hardware: Hardware, accumulation: int, *, overlap: float = 0.0) -> list[Transfer]:
    """The exchanges within each layer, which its computation waits for.

    Tensor: an all-reduce of the activations after attention and after the MLP, and in the backward pass one for each
    matrix that reads their inputs. Sequence: four all-to-alls of queries, keys, values and the result, and the same of
    their gradients. Expert: all-to-alls that bring each token to its experts and back. What the backward pass computes
    again is exchanged again.

    Args:
        overlap: share of the tensor-parallel exchange that runs beside products. AutoTP overlaps none.
    """
    layers, again = max(1, work.architecture.layers), work.recomputed[0]
    activations = work.tokens * work.architecture.hidden_size * work.width_bytes
    found = list[Transfer]()

    def add(axis: Axis, what: str, in_a_layer: float, sent: float, seconds: float) -> None:
        times = accumulation * layers * in_a_layer
        name = f"{in_a_layer:.3g} {what} a layer"
        found.append(Transfer(axis, name, "within", times * sent, times * seconds, round(times)))

    if work.tensor > 1:
        sent = 2 * activations * (work.tensor - 1) / work.tensor
        seconds = sent / hardware.bus(1, work.tensor) + hardware.latency(1, work.tensor)
        add("tensor", "all-reduces", _tensor_reductions(work), sent, (1 - overlap) * seconds)
    if work.sequence > 1:
        # Queries and the result have all heads, keys and values fewer; each rank keeps its own part.
        width = (work.width + work.layer.key_value_width) / 2 / work.tensor
        sent = work.tokens * width * work.width_bytes
        seconds = hardware.exchange(work.tensor, work.sequence, sent)
        add("sequence", "all-to-alls", 8 + 4 * again, sent * (work.sequence - 1) / work.sequence, seconds)
    if work.expert > 1 and work.layer.experts:
        sent = activations * work.layer.experts_per_token
        seconds = hardware.exchange(work.tensor * work.sequence, work.expert, sent)
        add("expert", "all-to-alls", 4 + 2 * again, sent * (work.expert - 1) / work.expert, seconds)
    return found


def _tensor_reductions(work: Work) -> float:
    """All-reduces of the activations in a layer. AutoTP leaves routed experts whole."""
    attention, mlp = (1, 1) if work.kernels.joined_gradients else work.layer.inputs
    parts = 1 if work.layer.experts else 2
    return parts * (1 + work.recomputed[0]) + attention + (mlp if parts == 2 else 0)
