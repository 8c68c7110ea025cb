"""The kinds of layers of a model, and how many layers from the first on show all of them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

# Numbers that make two layers of the same classes and shapes compute differently.
_NUMBERS = ("sliding_window", "window_size", "attention_window", "local_window", "attention_chunk_size")


def layers_needed(model: nn.Module, times: int = 1) -> int:
    """Length of the shortest beginning of the lists of blocks with every kind of layer; at least two.

    Args:
        model: may be on the meta device.
        times: how often a kind must occur, if it does; families that share weights between layers need two.
    """
    return max((_shortest(blocks, times) for blocks in _outermost_lists(model)), default=2)


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """Lists of blocks, without the lists within a block, such as those of experts."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)


def _shortest(blocks: nn.ModuleList, times: int) -> int:
    found: dict[str, list[int]] = {}
    for index, block in enumerate(blocks):
        found.setdefault(_kind(block), []).append(index)
    return max(2, max((indices[:times][-1] for indices in found.values()), default=0) + 1)


def _kind(layer: nn.Module) -> str:
    """Classes, switches and shapes of a layer, without its index."""
    parts = []
    for name, module in layer.named_modules():
        switches = {
            key: value
            for key, value in vars(module).items()
            if (isinstance(value, bool | str) or value is None or key in _NUMBERS)
            and key != "training"
            and not key.startswith("_")
        }
        shapes = [(key, tuple(parameter.shape)) for key, parameter in module.named_parameters(recurse=False)]
        parts.append((name, type(module).__name__, sorted(switches.items(), key=str), shapes))
    return repr(parts)
