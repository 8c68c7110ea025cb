"""The machines of a forecast: which accelerators, how many, how they are connected, and what an hour of one costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardyard.errors import UsageError
from shardyard.planning.forecast.accelerators import Accelerator, accelerator_of
from shardyard.planning.forecast.links import Network, network_of

# Share of a link's rate that collectives of NCCL reach with large messages.
LINK_SHARE = 0.8
# Seconds that a collective takes beyond its bytes: to start, and for each node that its ring passes.
START_SECONDS, NODE_SECONDS = 20e-6, 6e-6
USUAL_PER_NODE = 8


@dataclass(frozen=True)
class Hardware:
    """`gpus` accelerators, `per_node` in a node. network: between nodes; None for one node. price: of a GPU-hour."""

    accelerator: Accelerator
    gpus: int
    per_node: int
    network: Network | None = None
    price: float | None = None

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return math.ceil(self.gpus / self.per_node)

    def spans_nodes(self, inner: int, size: int) -> bool:
        """Whether groups of `size` ranks, each `inner` ranks from the next, lie on several nodes."""
        return inner * size > self.per_node

    def bus(self, inner: int, size: int) -> float:
        """Bytes per second of a ring through such a group, with the other groups communicating at the same time.

        Within a node that of the link. Over nodes, the cards of a node are shared by the `inner` groups that cross it.
        """
        link = self.accelerator.link.rate
        if self.spans_nodes(inner, size):
            assert self.network is not None, "checked with the hardware"
            link = min(link, self.network.rate / min(inner, self.per_node))
        return LINK_SHARE * link

    def latency(self, inner: int, size: int) -> float:
        """Seconds that a collective of such a group takes beyond its bytes."""
        nodes = math.ceil(inner * size / self.per_node) if self.spans_nodes(inner, size) else 0
        return START_SECONDS + NODE_SECONDS * nodes

    def exchange(self, inner: int, size: int, sent: float) -> float:
        """Seconds in which each rank of such a group sends `sent` bytes, of which each gets an equal part."""
        if size == 1:
            return 0.0
        within = max(1, min(size, self.per_node // inner))
        seconds = sent * (within - 1) / size / (LINK_SHARE * self.accelerator.link.rate)
        if self.spans_nodes(inner, size):
            assert self.network is not None, "checked with the hardware"
            own = LINK_SHARE * self.network.rate / self.per_node
            seconds = max(seconds, sent * (size - within) / size / own)
        return seconds + self.latency(inner, size)


def hardware_of(
    gpu: str,
    gpus: int,
    *,
    per_node: int | None = None,
    network: str | None = None,
    price: float | None = None,
) -> Hardware:
    """The hardware that the options of `shardyard plan` describe.

    Raises:
        UsageError: an accelerator or network is not known, or a number cannot be.
    """
    accelerator = accelerator_of(gpu)
    if gpus < 1:
        raise UsageError(f"--gpus {gpus}: at least one is needed.")
    if per_node is not None and per_node < 1:
        raise UsageError(f"--per-node {per_node}: at least one is needed.")
    if price is not None and price < 0:
        raise UsageError(f"--price {price:g}: a price is not negative.")
    each = per_node or min(gpus, USUAL_PER_NODE)
    if gpus > each and gpus % each:
        fitting = ", ".join(str(number) for number in range(each, 0, -1) if gpus % number == 0)
        raise UsageError(f"--gpus {gpus} do not fill nodes of {each}; set --per-node to {fitting}.")
    if gpus > each and network is None:
        raise UsageError(
            f"{gpus} GPUs with {each} in a node need a network: --network 400gx8 for eight cards of 400 Gbit/s in each "
            "node, or a name such as dgx-h100 or efa-p5."
        )
    return Hardware(accelerator, gpus, each, None if network is None else network_of(network), price)
