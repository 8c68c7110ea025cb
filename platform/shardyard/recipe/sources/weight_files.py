"""The number of weights in a folder, from the headers of its safetensors files. Pure."""

from __future__ import annotations

import json
import math
from pathlib import Path

# A header begins with its length, 8 bytes, little-endian; the format allows 100 MB.
_MOST_HEADER_BYTES = 100_000_000


def weights_in(folder: Path) -> int | None:
    """Numbers in the weights of a saved model, of which tied ones are stored once; None if none can be read here."""
    try:
        files = sorted(folder.glob("*.safetensors"))
        return sum(map(_weights_of, files)) if files else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _weights_of(path: Path) -> int:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _MOST_HEADER_BYTES:
            raise ValueError(f"{path} is no safetensors file")
        header = json.loads(file.read(size))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
