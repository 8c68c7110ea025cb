"""Links between the GPUs of a node, and networks between nodes, with their sources."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shardyard.errors import UsageError

_GIGA = 1e9


@dataclass(frozen=True)
class Link:
    """What one GPU sends to the others of its node. rate: bytes per second in one direction, all lanes together."""

    name: str
    rate: float
    source: str


@dataclass(frozen=True)
class Network:
    """What one node sends to others. rate: bytes per second in one direction, all network cards together."""

    name: str
    rate: float
    source: str


def _links(*rows: tuple[str, float, str]) -> dict[str, Link]:
    return {name: Link(name, rate * _GIGA, source) for name, rate, source in rows}


# GB/s in one direction. PCIe: 16 lanes, and what its encoding leaves.
LINKS = _links(
    ("nvlink2", 150, "NVIDIA V100 data sheet: 300 GB/s in both directions"),
    ("nvlink3", 300, "NVIDIA A100 data sheet: 600 GB/s in both directions"),
    ("nvlink4", 450, "NVIDIA H100 data sheet: 900 GB/s in both directions"),
    ("nvlink4-bridge", 300, "NVIDIA H100 NVL data sheet: 600 GB/s in both directions, between two or four"),
    ("nvlink5", 900, "NVIDIA DGX B200 data sheet: 1.8 TB/s in both directions"),
    ("xgmi2", 200, "AMD MI250X data sheet: Infinity Fabric, half of a device for each die"),
    ("xgmi3", 448, "AMD MI300X data sheet: seven Infinity Fabric links of 64 GB/s"),
    ("pcie3", 15.8, "PCI Express 3.0, 16 lanes"),
    ("pcie4", 31.5, "PCI Express 4.0, 16 lanes"),
    ("pcie5", 63.0, "PCI Express 5.0, 16 lanes"),
)

# Gbit/s of a node.
_CLOUD = {
    "efa-p4d": (400, "AWS p4d, p4de: 4 EFA of 100 Gbit/s"),
    "efa-p5": (3200, "AWS p5, p5e: 32 EFA of 100 Gbit/s"),
    "efa-p5en": (3200, "AWS p5en: 16 EFA of 200 Gbit/s"),
    "efa-p6-b200": (3200, "AWS p6-b200: 8 EFA of 400 Gbit/s"),
    "gcp-a3-high": (800, "Google Cloud a3-highgpu-8g: 4 cards of 200 Gbit/s"),
    "gcp-a3-mega": (1600, "Google Cloud a3-megagpu-8g: 8 cards of 200 Gbit/s"),
    "gcp-a3-ultra": (3200, "Google Cloud a3-ultragpu-8g: 8 cards of 400 Gbit/s"),
    "azure-nd-a100-v4": (1600, "Azure ND A100 v4: 8 InfiniBand HDR of 200 Gbit/s"),
    "azure-nd-h100-v5": (3200, "Azure ND H100 v5: 8 InfiniBand NDR of 400 Gbit/s"),
    "dgx-a100": (1600, "NVIDIA DGX A100: 8 InfiniBand HDR of 200 Gbit/s"),
    "dgx-h100": (3200, "NVIDIA DGX H100: 8 InfiniBand NDR of 400 Gbit/s"),
    "dgx-b200": (3200, "NVIDIA DGX B200: 8 InfiniBand NDR of 400 Gbit/s"),
}
NETWORKS = {name: Network(name, gigabits / 8 * _GIGA, source) for name, (gigabits, source) in _CLOUD.items()}
_CARDS = re.compile(r"(\d+(?:\.\d+)?)g(?:b|bit)?(?:x(\d+))?")


def network_of(text: str) -> Network:
    """The network that `--network` names: `400gx8` (eight cards of 400 Gbit/s a node), `100g`, or one of NETWORKS.

    Raises:
        UsageError: it is neither.
    """
    name = text.strip().lower()
    if name in NETWORKS:
        return NETWORKS[name]
    match = _CARDS.fullmatch(name)
    if match is None or not float(match[1]) or match[2] == "0":
        raise UsageError(
            f"--network {text} is not known. Write the network cards of a node as 400gx8 (eight of 400 Gbit/s), or one "
            f"of {', '.join(NETWORKS)}."
        )
    gigabits, cards = float(match[1]), int(match[2] or 1)
    each = f"{cards} network cards" if cards > 1 else "one network card"
    return Network(name, gigabits * cards / 8 * _GIGA, f"{each} of {gigabits:g} Gbit/s a node")
