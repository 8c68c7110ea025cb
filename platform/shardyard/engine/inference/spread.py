"""Where the weights of a model go for inference: to one device, or to all devices, the memory and disk of a host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from deepspeed.accelerator import get_accelerator

from shardyard.units import format_bytes

# Of free memory, what weights may take; the rest is for activations and caches.
WEIGHTS_SHARE = 0.8


@dataclass(frozen=True)
class Spread:
    """Weights in several places. max_memory: most bytes in each, as `from_pretrained` takes it; what is left over stays
    in the model's files. text: what is done, for the user."""

    max_memory: dict[int | str, int]
    text: str


def spread_weights(weights_bytes: int, devices: Sequence[int], host_bytes: int) -> Spread | None:
    """Where the weights of a model go; None if one device (or the memory, where there are no devices) holds them.

    Args:
        devices: free bytes of each device of this host. host_bytes: free bytes of its memory.
    """
    rooms = [int(WEIGHTS_SHARE * free) for free in devices]
    memory = int(WEIGHTS_SHARE * host_bytes)
    first, first_free = (rooms[0], devices[0]) if rooms else (memory, host_bytes)
    if weights_bytes <= first:
        return None
    max_memory: dict[int | str, int] = {**dict(enumerate(rooms)), "cpu": memory}
    places = ["the devices of this host"] if len(rooms) > 1 else ["its device"] if rooms else []
    if sum(rooms) < weights_bytes:
        places.append("its memory")
    if sum(rooms) + memory < weights_bytes:
        places.append("files, which is slow")
    where = f"{', '.join(places[:-1])} and {places[-1]}" if len(places) > 1 else places[0]
    one = "one device" if rooms else "the memory of this host"
    return Spread(
        max_memory,
        f"the weights ({format_bytes(weights_bytes)}) do not fit {one} ({format_bytes(first_free)} free): they lie on "
        f"{where}",
    )


def spread_of(folder: Path, device: torch.device) -> Spread | None:
    """The same for the model in a folder, on this host."""
    weights_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return spread_weights(weights_bytes, _free_devices(device), psutil.virtual_memory().available)


def is_spread(model: object) -> bool:
    """Whether the weights of a model are in several places."""
    return getattr(model, "hf_device_map", None) is not None


def _free_devices(device: torch.device) -> list[int]:
    if device.type == "cpu":
        return []
    accelerator = get_accelerator()
    return [int(accelerator.available_memory(index)) for index in range(accelerator.device_count())]
