"""Optimizers whose states are in 8 bits: their names, what they take, and where they work. Pure."""

from __future__ import annotations

# Of bitsandbytes, an extra; the second keeps its states in pages, which a GPU moves to the host and back.
EIGHT_BITS = ("adamw_8bit", "paged_adamw_8bit")
PAGED = ("paged_adamw_8bit",)
# The numbers of a state that share a scale in fp32.
BLOCK = 256
NO_PAGES_ON_CPU = "pages that move between a GPU and the host need a GPU; use adamw_8bit on the CPU"


def eight_bit_bytes(weights: int) -> int:
    """Bytes of both states of so many weights, with their scales."""
    return 2 * weights + 2 * 4 * -(-weights // BLOCK)
