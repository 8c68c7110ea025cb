"""The weights that adapters adapt: linear layers and stacked experts, chosen by name or regular expression.

O: outputs, I: inputs of a linear layer; E: experts that one tensor stacks; r: rank
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from shardyard.errors import ModelError
from shardyard.models.pretrained import matching
from shardyard.recipe.schema import Adapter
from shardyard.suggest import suggestion

# A pattern for `targets` that leaves experts out.
_WITHOUT_EXPERTS = r"(?!.*\.experts\.).*"
_ROUTER = {"gate", "router", "wg"}
_READ_BY_KERNELS = {"x_proj", "dt_proj", "out_proj"}


@dataclass(frozen=True)
class Target:
    """A weight that can have an adapter.

    name: of a linear layer, or of a parameter that stacks the matrices of E experts.
    shape: of the weight: [O, I] ([I, O] for a Conv1D), or three axes, E first.
    router: whether it chooses experts; routers get an adapter only if a target names them.
    read: whether the kernels of a state-space layer read it without calling it, so that they would not see an adapter.
    """

    name: str
    shape: tuple[int, ...]
    router: bool = False
    read: bool = False

    @property
    def stacked(self) -> bool:
        """Whether it is a parameter with the matrices of several experts."""
        return len(self.shape) == 3

    @property
    def weight(self) -> str:
        """The name of its parameter."""
        return self.name if self.stacked else f"{self.name}.weight"

    @property
    def kind(self) -> str:
        """A name that the same weights of all layers share, such as `q_proj` or `experts.down_proj`."""
        parts = [part for part in self.name.split(".") if not part.isdecimal()]
        return ".".join(parts[-2:] if self.stacked else parts[-1:])

    def size(self, rank: int) -> int:
        """Number of parameters of A and B: r·(O + I) for each matrix."""
        experts = self.shape[0] if self.stacked else 1
        return rank * experts * sum(self.shape[-2:])


def chosen(model: PreTrainedModel, adapter: Adapter) -> list[Target]:
    """The weights that get an adapter, in the order of the model.

    Raises:
        ModelError: a target of the recipe matches nothing, there is nothing to adapt, or the section asks of stacked
            experts what peft does only for linear layers.
    """
    found = selected(model, adapter)
    if not found:
        raise ModelError(
            f"model.adapter: {model.config.model_type} has no linear layer and no stacked experts to adapt (its "
            "weights belong to other modules); train the weights themselves, or some of them with model.freeze."
        )
    _check_stacked(adapter, found)
    read = {weight.kind: None for weight in found if weight.read}
    if read:
        raise ModelError(
            f"model.adapter.targets: the kernels of {model.config.model_type}'s state-space layers read the weights of "
            f"{', '.join(read)} without calling these layers, and would not see an adapter; leave them out of targets."
        )
    return found


def selected(model: PreTrainedModel, adapter: Adapter) -> list[Target]:
    """`chosen` without its checks of what the weights can have.

    Raises:
        ModelError: a target of the recipe matches nothing.
    """
    weights = adaptable(model, adapter)
    if not adapter.targets:
        return [weight for weight in weights if not weight.router and not weight.read]
    wanted = {weight.name for target in adapter.targets for weight in _matched(target, weights, model)}
    return [weight for weight in weights if weight.name in wanted]


def adaptable(model: PreTrainedModel, adapter: Adapter) -> list[Target]:
    """All weights of the body that can have an adapter and are not trained in full."""
    full = set(fully_trained_names(model, adapter))
    return [weight for weight in (*_linear_layers(model), *_stacks(model)) if weight.weight not in full]


def fully_trained_names(model: PreTrainedModel, adapter: Adapter) -> list[str]:
    """The parameters that `modules_to_save` names; a tied weight may be named by any of its names.

    Raises:
        ModelError: a pattern matches nothing.
    """
    names = first_names(model)
    matched = matching(names, adapter.modules_to_save, "model.adapter.modules_to_save")
    return list(dict.fromkeys(names[name] for name in matched))


def first_names(model: PreTrainedModel) -> dict[str, str]:
    """Every name of a parameter → the first name of it. A tied weight has several."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}


def places(targets: Iterable[Target]) -> dict[str, str]:
    """Where the adapter of each target lies in the adapted model: name of the target → name before `.lora_A`.

    The layers around the experts of one module are nested, the last adapted parameter outside: of two, the first has
    the name `experts.base_layer`, the second `experts`.
    """
    found: dict[str, str] = {}
    outside: Counter[str] = Counter()
    for target in reversed(list(targets)):
        module = target.name.rpartition(".")[0]
        found[target.name] = module + ".base_layer" * outside[module] if target.stacked else target.name
        outside[module] += target.stacked
    return found


def described(model: PreTrainedModel, adapter: Adapter) -> tuple[str, str]:
    """Which weights get an adapter, and which matrices of the body get none, as text: `2 q_proj, 2 v_proj`.

    Embeddings and heads are not counted as matrices of the body.
    """
    targets = chosen(model, adapter)
    trained = {*fully_trained_names(model, adapter), *(target.weight for target in targets)}
    matrices = _matrices(model)
    total = sum(tensor.numel() for tensor in matrices.values())
    rest = {name: tensor for name, tensor in matrices.items() if name not in trained}
    left = sum(tensor.numel() for tensor in rest.values())
    if not left:
        return _counted(target.kind for target in targets), ""
    kinds = _counted(_kind_of_parameter(name) for name in sorted(rest, key=lambda name: -rest[name].numel()))
    return _counted(target.kind for target in targets), f"{kinds} ({left / total:.2%} of the body's matrices)"


def _matched(target: str, weights: list[Target], model: PreTrainedModel) -> list[Target]:
    """The weights whose name ends with `target`, or matches it as a regular expression.

    Raises:
        ModelError: none does.
    """
    pattern = re.compile(target)
    found = [
        weight
        for weight in weights
        if f".{weight.name}".endswith(f".{target}")
        or (weight.stacked and f".{weight.name.rpartition('.')[0]}".endswith(f".{target}"))
        or pattern.fullmatch(weight.name)
    ]
    if found:
        return found
    tables = (nn.Linear, nn.Embedding, Conv1D)
    for name, module in model.named_modules():
        if isinstance(module, tables) and f".{name}".endswith(f".{target}"):
            raise ModelError(
                f"model.adapter.targets: {name} is an embedding, a head, or trained in full, and gets no adapter; take "
                f"it out. To train it as a whole, name {name}.* in model.adapter.modules_to_save."
            )
    plain = re.fullmatch(r"[\w.]+", target) is not None
    near = suggestion(target, {weight.kind for weight in weights} if plain else {weight.name for weight in weights})
    matches = "linear layer is called" if plain else "whole name of a linear layer matches"
    raise ModelError(f"model.adapter.targets: no {matches} '{target}'; {near}")


def _check_stacked(adapter: Adapter, targets: list[Target]) -> None:
    stacks = {target.kind: None for target in targets if target.stacked}
    asked = {"dropout": adapter.dropout > 0, "dora": adapter.dora, "init": adapter.init != "kaiming"}
    for field, used in asked.items():
        if used and stacks:
            raise ModelError(
                f"model.adapter.{field} works on linear layers, and {', '.join(stacks)} stack the experts of a layer "
                f"in one tensor; remove it, or leave the experts out with targets: ['{_WITHOUT_EXPERTS}']."
            )


def _linear_layers(model: PreTrainedModel) -> list[Target]:
    """All linear layers of the body, without the objective's head."""
    body = {id(module) for module in model.base_model.modules()}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    routers = _routers(model)
    return [
        Target(name, tuple(module.weight.shape), id(module) in routers, _is_read(model, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and isinstance(module.weight, Tensor)
        and id(module) in body
        and module is not head
    ]


def _stacks(model: PreTrainedModel) -> list[Target]:
    """The parameters of the body that stack matrices of experts."""
    body = {id(module) for module in model.base_model.modules()}
    return [
        Target(f"{prefix}.{name}", tuple(parameter.shape))
        for prefix, module in model.named_modules()
        if _holds_experts(module) and id(module) in body
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
    ]


def _holds_experts(module: nn.Module) -> bool:
    return "Experts" in type(module).__name__


def _routers(model: PreTrainedModel) -> set[int]:
    """Ids of the linear layers that choose experts: they lie next to experts and are called gate or router."""
    return {
        id(layer)
        for block in model.modules()
        if any(_holds_experts(child) for child in block.children())
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear) and _ROUTER & set(name.split("."))
    }


def _is_read(model: PreTrainedModel, name: str) -> bool:
    """Whether a linear layer belongs to a state-space mixer (Mamba) and not to its input."""
    parent, _, own = name.rpartition(".")
    return own in _READ_BY_KERNELS and hasattr(model.get_submodule(parent), "A_log")


def _matrices(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters of the body with at least two axes, by name, without embeddings and heads."""
    tables = {id(p) for part in model.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    tables |= {id(parameter) for parameter in head.parameters()} if head is not None else set()
    body = {id(parameter) for parameter in model.base_model.parameters()}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2 and id(parameter) in body and id(parameter) not in tables
    }


def _kind_of_parameter(name: str) -> str:
    return ".".join([part for part in name.split(".") if not part.isdecimal()][-2:])


def _counted(kinds: Iterable[str], shown: int = 12) -> str:
    found = [f"{count} {kind}" for kind, count in Counter(kinds).items()]
    return ", ".join(found[:shown]) + (f" and {len(found) - shown} more kinds" if len(found) > shown else "")
