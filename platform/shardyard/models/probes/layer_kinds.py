"""The kinds of layers of a model, and how many layers from the first on show all of them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

# Numbers that make two layers of the same classes and shapes compute differently.
_NUMBERS = ("sliding_window", "window_size", "attention_window", "local_window", "attention_chunk_size")


def layers_needed(model: nn.Module) -> int:
    """Length of the shortest beginning of the lists of blocks with every kind of layer; at least two.

    Args:
        model: may be on the meta device.
    """
    return max((_shortest(blocks) for blocks in _outermost_lists(model)), default=2)


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """Lists of blocks, without the lists within a block, such as those of experts."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)


def _shortest(blocks: nn.ModuleList) -> int:
    first: dict[str, int] = {}
    for index, block in enumerate(blocks):
        first.setdefault(_kind(block), index)
    return max(2, max(first.values(), default=0) + 1)


def _kind(layer: nn.Module) -> str:
    """Classes, switches and shapes of a layer, without its index."""
    parts = []
    for name, module in layer.named_modules():
        switches = {
            key: value
            for key, value in vars(module).items()
            if (isinstance(value, bool | str) or value is None or key in _NUMBERS)
            and key not in ("training", "_is_hf_initialized")
        }
        shapes = [(key, tuple(parameter.shape)) for key, parameter in module.named_parameters(recurse=False)]
        parts.append((name, type(module).__name__, sorted(switches.items(), key=str), shapes))
    return repr(parts)
