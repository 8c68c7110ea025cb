"""What one row costs, counted on a forward pass on the meta device: nothing is allocated or computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from shardyard.errors import ModelError
from shardyard.recipe.picture_shape import picture_shape
from shardyard.recipe.schema import Data, Image

# Forward and backward pass: the backward pass computes two products for each of the forward pass.
PASSES = 3
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class RowCost:
    """Of one row: positions that go through the model, FLOPs of forward and backward pass, fp32 bytes kept between."""

    tokens: int
    flops: float
    activation_bytes: int


def row_cost(module: nn.Module, config: PreTrainedConfig, objective: str, data: Data, image: Image) -> RowCost:
    """Run one row of shapes through `module`, which lies on the meta device.

    Attention counts its matrix as kept, which kernels such as flash attention do not.

    Raises:
        ModelError: the model does not take what its objective gives it.
    """
    inputs, tokens = _INPUTS[objective](config, data, image)
    kept: dict[int, int] = {}
    weights = {p.untyped_storage()._cdata for p in module.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept[storage] = tensor.numel() * tensor.element_size()
        return tensor

    counter = FlopCounterMode(display=False)
    module.train()
    try:
        kept_tensors = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.device("meta"), counter, kept_tensors, _Zero():  # type: ignore[no-untyped-call]
            module(**inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ModelError(f"model: {config.model_type} does not take a row of this objective: {error}") from error
    rows = len(next(iter(inputs.values())))
    return RowCost(tokens, float(PASSES * counter.get_total_flops() / rows), sum(kept.values()) // rows)


class _Zero(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A value that is asked for is 0: models ask whether to skip a layer or a mask, and both are then kept."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return 0 if func is torch.ops.aten._local_scalar_dense.default else func(*args, **(kwargs or {}))


def _ids(length: int) -> Tensor:
    return torch.zeros((1, length), dtype=torch.long, device="meta")


def _length(data: Data) -> int:
    assert data.sequence_length is not None, "checked with the recipe"
    return data.sequence_length


def _text(config: Any, data: Data, image: Image) -> tuple[Inputs, int]:
    # Without a mask: it costs nothing, and some encoders look into it, which shapes alone cannot answer.
    return {"input_ids": _ids(_length(data))}, _length(data)


def _pair(config: Any, data: Data, image: Image) -> tuple[Inputs, int]:
    source, target = data.source_length or _length(data), _length(data)
    return {"input_ids": _ids(source), "decoder_input_ids": _ids(target)}, source + target


def _picture(config: Any, image: Image) -> tuple[Tensor, int]:
    """Pixels [1, C, H, W] and the number of patches: for convolutions those of a ViT, 16 pixels wide."""
    shape = picture_shape(image, config)
    patch = getattr(getattr(config, "vision_config", None) or config, "patch_size", None) or 16
    height, width = (patch, patch) if isinstance(patch, int) else patch
    patches = max(1, shape[1] // height) * max(1, shape[2] // width)
    return torch.zeros((1, *shape), device="meta"), patches


def _image(config: Any, data: Data, image: Image) -> tuple[Inputs, int]:
    pixels, patches = _picture(config, image)
    # Two rows: of one alone, normalisation over a batch refuses a feature map of one pixel.
    return {"pixel_values": pixels.expand(2, -1, -1, -1)}, patches


def _image_text(config: Any, data: Data, image: Image) -> tuple[Inputs, int]:
    # Without a mask: to look into one takes its values.
    pixels, patches = _picture(config, image)
    return {"input_ids": _ids(_length(data)), "pixel_values": pixels}, _length(data) + patches


def _speech(config: Any, data: Data, image: Image) -> tuple[Inputs, int]:
    frames = config.max_source_positions
    features = torch.zeros((1, config.num_mel_bins, 2 * frames), device="meta")
    return {"input_features": features, "decoder_input_ids": _ids(_length(data))}, frames + _length(data)


_INPUTS: dict[str, Callable[[Any, Data, Image], tuple[Inputs, int]]] = {
    "masked_lm": _text,
    "bert_pretraining": _text,
    "text_classification": _text,
    "seq2seq": _pair,
    "image_classification": _image,
    "masked_image": _image,
    "contrastive": _image_text,
    "vision_language": _image_text,
    "speech_to_text": _speech,
}
