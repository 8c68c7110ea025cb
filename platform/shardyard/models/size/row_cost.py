"""The cost of one row, counted on a forward pass on the meta device: nothing is allocated or computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from shardyard.errors import ModelError
from shardyard.models.checkpointing import kept_operations
from shardyard.models.outside import OutsideModel, blocks_of
from shardyard.models.size.fused import FusedAttention
from shardyard.models.size.row_shapes import row_shape
from shardyard.planning.activations import Kept
from shardyard.recipe.schema import Data, Image

# Forward and backward pass: the backward pass computes two products for each one in the forward pass.
PASSES = 3


@dataclass(frozen=True)
class RowCost:
    """The cost of one row: its positions, FLOPs of forward and backward pass, fp32 bytes of stored activations.

    kept: the same for each token.
    logits: numbers that the model predicts.
    """

    tokens: int
    flops: float
    activation_bytes: int
    kept: Kept
    logits: int


def row_cost(module: nn.Module, config: PreTrainedConfig, objective: str, data: Data, image: Image) -> RowCost:
    """Run one row of shapes through `module`, which is on the meta device.

    Raises:
        ModelError: the model does not accept the inputs of its objective.
    """
    inputs, tokens = row_shape(objective)(config, data, image)
    found = forward(module, inputs, config.model_type)
    rows = len(next(iter(inputs.values())))
    return RowCost(
        tokens=tokens,
        flops=float(PASSES * found.flops / rows),
        activation_bytes=found.total // rows,
        kept=found.kept(rows * tokens),
        logits=found.logits // rows,
    )


@dataclass(frozen=True)
class Passed:
    """What a forward pass stored for the backward pass, in bytes: in total, in each block, and as the input of each.

    selected: outputs of products and attention in blocks. shared: what all blocks get besides their input.
    flops: of matrix products and convolutions. logits: numbers that the model predicts.
    """

    total: int
    blocks: tuple[int, ...]
    inputs: tuple[int, ...]
    selected: int
    shared: int
    flops: int
    logits: int

    def kept(self, tokens: int) -> Kept:
        """The bytes of each of `tokens` tokens, attention matrices included."""
        return Kept(
            blocks=sum(self.blocks) / tokens,
            largest=max(self.blocks, default=0) / tokens,
            inputs=sum(self.inputs) / tokens,
            rest=(self.total - sum(self.blocks)) / tokens,
            pairs=0.0,
            selected=self.selected / tokens,
            shared=self.shared / tokens,
            count=len(self.blocks),
        )


def forward(module: nn.Module, inputs: Mapping[str, Any], family: str, *, unmasked: bool = False) -> Passed:
    """One forward pass of a module on the meta device. Attention counts as fused where it is torch's own.

    Args:
        unmasked: whether the model may find that no position is padding and each row is one document.

    Raises:
        ModelError: the model does not accept the inputs.
    """
    kept = _Kept(module)
    products, fused = _Products(kept.select, unmasked=unmasked), FusedAttention(kept.select)
    module.train()
    try:
        with torch.device("meta"), kept.hooks(), products, fused, _unchecked():
            output = module(**inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ModelError(f"model: {family} does not take a row of this objective: {error}") from error
    finally:
        kept.close()
    logits = output.get("logits", output.get("prediction_logits"))
    return Passed(
        total=kept.total(),
        blocks=tuple(kept.blocks),
        inputs=tuple(kept.inputs),
        selected=kept.selected,
        shared=sum(kept.shared.values()),
        flops=products.flops + fused.flops,
        logits=logits.numel() if isinstance(logits, Tensor) else 0,
    )


class _Kept:
    """Bytes of the tensors that a forward pass stores for the backward pass: in total, and for each block."""

    def __init__(self, module: nn.Module) -> None:
        self._weights = {p.untyped_storage()._cdata for p in module.parameters()}
        self._bytes: dict[int, int] = {}
        # Storages stay alive, because a new one could reuse the address of a freed one and count as the same.
        self._alive: list[torch.UntypedStorage] = []
        self.inputs: list[int] = []
        self.blocks: list[int] = []
        self.selected = 0
        self.shared: dict[int, int] = {}
        self._inside = False
        self._handles: list[RemovableHandle] = []
        for block in _checkpointable(module):
            self._handles.append(block.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._handles.append(block.register_forward_hook(self._leave))

    def hooks(self) -> AbstractContextManager[Any]:
        """The context manager for the forward pass."""
        hooks: AbstractContextManager[Any] = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        return hooks

    def close(self) -> None:
        """Remove the hooks from the blocks."""
        for handle in self._handles:
            handle.remove()

    def total(self) -> int:
        """Bytes of all stored tensors."""
        return sum(self._bytes.values())

    def select(self, output: Tensor) -> None:
        """Count the output of a product or of attention, if it is one of a block."""
        if self._inside:
            self.selected += output.numel() * output.element_size()

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights:
            self._alive.append(storage)
            # A view keeps all of its storage: queries, keys and values are often views of one product.
            self._bytes[storage._cdata] = storage.nbytes()
        return tensor

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, object]) -> None:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        self.inputs.append(given[0].numel() * given[0].element_size() if given else 0)
        self._alive += [one.untyped_storage() for one in given]
        self.shared |= {one.untyped_storage()._cdata: one.numel() * one.element_size() for one in given[1:]}
        self.blocks.append(-self.total())
        self._inside = True

    def _leave(self, block: nn.Module, args: Any, output: Any) -> None:
        self.blocks[-1] += self.total()
        self._inside = False


def _checkpointable(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks whose activations can be recomputed."""
    if isinstance(module, OutsideModel):
        yield from blocks_of(module.module)
    else:
        yield from (part for part in module.modules() if isinstance(part, GradientCheckpointingLayer))


class _Products(TorchDispatchMode):
    """Counts the FLOPs of matrix products and convolutions.

    Reading a scalar value returns 0: models read values to decide whether to skip a layer or a mask, and 0 keeps both.
    With `unmasked` what is asked holds, so that masks are skipped.
    """

    def __init__(self, select: Callable[[Tensor], None], *, unmasked: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops, self._select, self._unmasked = 0, select, unmasked
        self._shapes = _Shapes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return int(self._unmasked and args[0].dtype is torch.bool)
        if func is torch.ops.aten._grouped_mm.default:
            return self._grouped(*args, **(kwargs or {}))
        out = self._shapes.of(func, args, kwargs or {})
        if func in kept_operations():
            self._select(out)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out

    def _grouped(self, rows: Tensor, weights: Tensor, *others: Any, **options: Any) -> Tensor:
        """Rows [M, K], sorted by expert, times the weights [E, K, N] of their experts; meta accepts only bf16."""
        self.flops += 2 * rows.numel() * weights.size(-1)
        grouped = torch.ops.aten._grouped_mm.default
        out: Tensor = grouped(rows.bfloat16(), weights.bfloat16(), *others, **options).to(rows.dtype)
        self._select(out)
        return out


class _Shapes:
    """Outputs of operations on the meta device. The layers of a model repeat each other: an operation that has been
    asked for the same shapes gives new tensors of the shapes that it gave then."""

    def __init__(self) -> None:
        self._known: dict[object, list[_Shape]] = {}

    def of(self, func: Any, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Any:
        """What `func` gives: of the same sizes, strides and types, each on storage of its own where it had that."""
        given: list[Tensor] = []
        key = (func, _described(args, given), _described(tuple(kwargs.items()), given)) if _makes_new(func) else None
        if key is None or not all(one.is_meta for one in given):
            return func(*args, **kwargs)
        known = self._known.get(key)
        if known is not None:
            made = tuple(_empty(size, strides, dtype=dtype, device=_META) for size, strides, dtype in known)
            return made if len(made) > 1 else made[0]
        out = func(*args, **kwargs)
        found = out if isinstance(out, tuple) else (out,)
        if all(isinstance(one, Tensor) and one.is_meta for one in found) and _own_storages(found, given):
            self._known[key] = [(one.size(), one.stride(), one.dtype) for one in found]
        return out


def _own_storages(found: tuple[Tensor, ...], given: list[Tensor]) -> bool:
    """Whether each output fills a storage of its own: some operations give views without saying so in their schema."""
    before = {one.untyped_storage()._cdata for one in given}
    storages = {one.untyped_storage()._cdata for one in found} - before
    sizes = [
        _empty(one.size(), one.stride(), dtype=one.dtype, device=_META).untyped_storage().nbytes() for one in found
    ]
    return len(storages) == len(found) and sizes == [one.untyped_storage().nbytes() for one in found]


_Shape = tuple[torch.Size, tuple[int, ...], torch.dtype]
_META = torch.device("meta")
_empty = torch.ops.aten.empty_strided.default


@cache
def _makes_new(func: Any) -> bool:
    """Whether all that an operation gives are tensors that share nothing with its arguments, as its schema says."""
    schema = func._schema
    tensors = {str(one.type) for one in schema.returns} == {"Tensor"}
    return tensors and not any(part.alias_info for part in (*schema.returns, *schema.arguments))


def _described(value: Any, tensors: list[Tensor]) -> object:
    """What of an argument decides about the shape of an output; its tensors are appended to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.size(), value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(_described(one, tensors) for one in value)
    # 1, 1.0 and True are equal, and make tensors of different types.
    return type(value), value


@contextmanager
def _unchecked() -> Iterator[None]:
    """Disable transformers' checks of values, such as one text position for each image patch."""
    name = "TRANSFORMERS_DISABLE_TORCH_CHECK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
