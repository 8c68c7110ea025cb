"""The time of a training step: computation, what is exchanged beside and within it, and the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardyard.planning.forecast.accelerators import Accelerator
from shardyard.planning.forecast.communication import Transfer, When, host_rate
from shardyard.planning.forecast.compute import MEMORY_SHARE, Compute

# What runs beside computation still takes some of its units and bandwidth: this share of the shorter of both is added.
CONTENTION = 0.25
# Bytes that an update reads and writes for each weight: gradient, master copy and two states in fp32, the norm and
# clipping, and the weight itself.
UPDATE_BYTES = 42
# Bytes per second of a host's memory, and of the fp32 values of each weight that an update on the CPU moves.
HOST_BANDWIDTH = 200e9


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step. products to logits: computing; exposed: waiting for others; hidden: exchanged beside it."""

    products: float
    attention: float
    elementwise: float
    logits: float
    launch: float
    exposed: float
    hidden: float
    optimizer: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return (
            self.products
            + self.attention
            + self.elementwise
            + self.logits
            + self.launch
            + self.exposed
            + self.optimizer
        )


def step_time(work: Compute, transfers: Sequence[Transfer], accumulation: int, optimizer_seconds: float) -> StepTime:
    """The step of `accumulation` micro-batches. Transfers are those of the whole step."""

    def of(*when: When) -> float:
        return sum(one.seconds for one in transfers if one.when in when)

    passes = [(work.forward, of("forward") / accumulation)]
    first, last = of("backward") / accumulation, of("last backward")
    passes = passes * accumulation + [(work.backward, first)] * (accumulation - 1) + [(work.backward, first + last)]
    together = sum(max(one) + CONTENTION * min(one) for one in passes)
    computed = accumulation * (work.forward + work.backward)
    busy = accumulation * sum(sum(one) for one in (work.products, work.attention, work.elementwise, work.logits))
    waits = of("within", "after")
    beside = of("forward", "backward", "last backward")
    return StepTime(
        products=accumulation * sum(work.products),
        attention=accumulation * sum(work.attention),
        elementwise=accumulation * sum(work.elementwise),
        logits=accumulation * sum(work.logits),
        launch=max(0.0, computed - busy),
        exposed=max(0.0, together - computed) + waits,
        hidden=max(0.0, beside - (together - computed)),
        optimizer=optimizer_seconds,
    )


def update_seconds(
    device: Accelerator, owned: float, *, accumulated: float, offloaded: bool, per_node: int, weight_bytes: int
) -> float:
    """Seconds of the optimizer: of `owned` weights, and of `accumulated` gradients that are added to others in a step.

    Offloaded states are updated by the CPUs of the host, whose memory all ranks share; gradients and weights travel
    over PCIe.
    """
    adding = 10 * accumulated / (MEMORY_SHARE * device.bandwidth)
    if not offloaded:
        return adding + owned * UPDATE_BYTES / (MEMORY_SHARE * device.bandwidth)
    travels = owned * (4 + weight_bytes) / host_rate(device)
    return adding + travels + owned * UPDATE_BYTES * per_node / HOST_BANDWIDTH
