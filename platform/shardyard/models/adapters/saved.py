"""Adapters as files in peft's format: read to continue from, and written to use elsewhere.

r: rank
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from shardyard.errors import ModelError
from shardyard.models.adapters.targets import Target, adaptable, chosen, first_names, places
from shardyard.recipe.schema import Adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FIELD = "model.adapter.pretrained"


class SavedConfig(TypedDict):
    """The fields of adapter_config.json that are read or written; peft gives all others their defaults."""

    peft_type: str
    r: int
    lora_alpha: float
    task_type: NotRequired[str | None]
    base_model_name_or_path: NotRequired[str | None]
    lora_dropout: NotRequired[float]
    target_modules: NotRequired[list[str] | str | None]
    target_parameters: NotRequired[list[str] | None]
    modules_to_save: NotRequired[list[str] | None]
    use_rslora: NotRequired[bool]
    use_dora: NotRequired[bool]
    fan_in_fan_out: NotRequired[bool]
    init_lora_weights: NotRequired[bool | str]
    bias: NotRequired[str]
    lora_bias: NotRequired[bool]
    rank_pattern: NotRequired[dict[str, int]]
    alpha_pattern: NotRequired[dict[str, float]]
    inference_mode: NotRequired[bool]
    auto_mapping: NotRequired[dict[str, str] | None]


def check_saved(adapter: Adapter, targets: Sequence[Target]) -> None:
    """Check that the adapter to continue from has the form that the recipe describes.

    Raises:
        ModelError: it cannot be read, is no LoRA, or has another rank, scale, variant or targets.
    """
    assert adapter.pretrained is not None
    folder = Path(adapter.pretrained).expanduser()
    config = _config(folder)
    own = {
        "rank": (adapter.rank, config["r"]),
        "alpha": (adapter.alpha, config["lora_alpha"]),
        "rslora": (adapter.rslora, config.get("use_rslora", False)),
        "dora": (adapter.dora, config.get("use_dora", False)),
    }
    other = [f"{name}: {str(theirs).lower()}" for name, (ours, theirs) in own.items() if ours != theirs]
    if other:
        raise ModelError(f"{_FIELD}: the adapter in {folder} has other settings; set {', '.join(other)}.")
    expected, names = set(_tensors_of(targets, dora=adapter.dora)), _names(folder)
    there = {name for name in names if ".lora_" in name}
    missing, unexpected = sorted(expected - there), sorted(there - expected)
    if missing or unexpected:
        lacks = f"lacks {_some(missing)}" if missing else ""
        has = f"has {_some(unexpected)} besides" if unexpected else ""
        raise ModelError(
            f"{_FIELD}: the adapter in {folder} adapts other weights than model.adapter.targets: it "
            f"{' and '.join(filter(None, (lacks, has)))}; set targets to what it adapts."
        )


def load_saved(model: PreTrainedModel, adapter: Adapter, targets: Sequence[Target]) -> None:
    """Give the adapters of a model, and what is trained in full beside them, the values of saved ones, in place.

    Raises:
        ModelError: a tensor has another shape, or belongs to a parameter that is not trained.
    """
    assert adapter.pretrained is not None
    folder = Path(adapter.pretrained).expanduser()
    # Tied weights have several names, and an adapter may hold them under each.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    adapters, given = _tensors_of(targets, dora=adapter.dora), dict[int, tuple[str, Tensor]]()
    for name, tensor in load_file(folder / WEIGHTS).items():
        plain = name.removeprefix(_PREFIX)
        parameter = parameters.get(adapters.get(plain, plain))
        if parameter is None or not parameter.requires_grad:
            raise ModelError(
                f"{_FIELD}: the adapter in {folder} also holds {plain}, which this run does not train; name it in "
                "model.adapter.modules_to_save."
            )
        if parameter.shape != tensor.shape:
            raise ModelError(
                f"{_FIELD}: {plain} in {folder} has shape {list(tensor.shape)}, and this model needs "
                f"{list(parameter.shape)}; the adapter belongs to another base model."
            )
        first, same = given.setdefault(id(parameter), (plain, tensor))
        if not torch.equal(same, tensor):
            raise ModelError(
                f"{_FIELD}: {first} and {plain} in {folder} differ, and are one tensor in this model; set "
                "model.config.tie_word_embeddings to false."
            )
        parameter.data.copy_(tensor)


def other_base(adapter: Adapter, base: str) -> str | None:
    """The name of the model that a saved adapter belongs to, if it is not that of `base`.

    The same model may be a hub id, or a folder of the same name.
    """
    assert adapter.pretrained is not None
    named = _config(Path(adapter.pretrained).expanduser()).get("base_model_name_or_path")
    if not named or _last(named) == _last(base):
        return None
    return named


def _last(name: str) -> str:
    """`org/name@revision`, `/models/name`, and `…/models--org--name/snapshots/…` of a hub's cache → `name`; of a run,
    its folder."""
    cached = re.search(r"models--(?:.*--)?([^/]+)/snapshots/", name)
    path = Path(name.partition("@")[0])
    return cached[1] if cached else path.parent.name if path.name == "final" else path.name


def save_adapter(
    folder: Path,
    *,
    weights: Mapping[str, Tensor],
    adapter: Adapter,
    model: PreTrainedModel,
    trained: Sequence[str],
    base: str,
    start: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an adapter alone, for `peft.PeftModel.from_pretrained` and servers that read its format.

    Args:
        folder: exists; gets adapter_config.json and adapter_model.safetensors.
        weights: of the adapted model, by name.
        adapter: the recipe's section.
        model: the plain model, for shapes; it may be on the meta device.
        trained: names of the parameters of the plain model that were trained in full.
        base: name of the base model, for adapter_config.json.
        start: the pretrained weights by name. PiSSA needs them: its adapter is written as one of rank 2r over these
            weights, because the trained one belongs to what is left of them.

    Raises:
        ModelError: the adapter belongs to weights that nobody else has (PiSSA over quantised weights).
    """
    targets = chosen(model, adapter)
    tensors = {name: weights[source] for name, source in _tensors_of(targets, dora=adapter.dora).items()}
    rank, alpha = adapter.rank, adapter.alpha
    if adapter.init != "kaiming":
        if adapter.quantize is not None:
            raise ModelError(
                "the adapter belongs to what PiSSA left of the pretrained weights, rounded to "
                f"{adapter.quantize}, which no base model has; export the merged model instead."
            )
        assert start is not None, "the caller has the pretrained weights"
        for target in targets:
            _over_whole_weight(tensors, target, weights, start, adapter, model)
        rank, alpha = 2 * rank, adapter.scale * (2 * rank) ** (0.5 if adapter.rslora else 1)
    tied = {alias: name for alias, name in first_names(model).items() if name in trained}
    modules = sorted({name.rpartition(".")[0] for name in tied})
    members = {name: name for name in weights for module in modules if name.rpartition(".")[0] == module}
    # peft gives each module its own copy: without that of a tied head it would keep the head of the base model.
    tensors |= {alias: weights[name].detach().clone() for alias, name in (members | tied).items()}
    save_file(
        {f"{_PREFIX}{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    config: SavedConfig = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "base_model_name_or_path": base,
        "task_type": _task_of(model),
        "lora_dropout": adapter.dropout,
        "target_modules": _short(targets, model, adapter),
        "target_parameters": sorted(target.name for target in targets if target.stacked) or None,
        "modules_to_save": modules or None,
        "use_rslora": adapter.rslora,
        "use_dora": adapter.dora,
        "fan_in_fan_out": any(isinstance(model.get_submodule(t.name), Conv1D) for t in targets if not t.stacked),
        "inference_mode": True,
    }
    if config["task_type"] is None:  # by these, `AutoPeftModel` finds the class of the base model
        config["auto_mapping"] = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _task_of(model: PreTrainedModel) -> str | None:
    """peft's name of the task of a class of transformers; None if it has none that changes nothing else."""
    if type(model) in MODEL_FOR_CAUSAL_LM_MAPPING.values():
        return "CAUSAL_LM"
    return "SEQ_2_SEQ_LM" if type(model) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING.values() else None


def _over_whole_weight(
    tensors: dict[str, Tensor],
    target: Target,
    weights: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    adapter: Adapter,
    model: PreTrainedModel,
) -> None:
    """W - s·B₀·A₀ + s·B·A is what was trained: as an adapter over W, it has the rows of A and A₀ and rank 2r."""
    taken = start[target.weight].float() - weights[f"{target.name}.base_layer.weight"].float()
    if isinstance(model.get_submodule(target.name), Conv1D):
        taken = taken.T
    left, values, right = torch.linalg.svd(taken, full_matrices=False)
    rank, precision = adapter.rank, tensors[f"{target.name}.lora_A.weight"].dtype
    root = (values[:rank] / adapter.scale).sqrt()
    down, up = root[:, None] * right[:rank], left[:, :rank] * root
    for part, more, axis in (("A", down, 0), ("B", -up, 1)):
        name = f"{target.name}.lora_{part}.weight"
        tensors[name] = torch.cat([tensors[name].float(), more], dim=axis).to(precision)


def _tensors_of(targets: Sequence[Target], *, dora: bool) -> dict[str, str]:
    """Name of a tensor in peft's file, without its prefix → name in the adapted model."""
    found: dict[str, str] = {}
    for place in places(targets).values():
        found |= {f"{place}.lora_{part}.weight": f"{place}.lora_{part}.default.weight" for part in "AB"}
        if dora:
            found[f"{place}.lora_magnitude_vector"] = f"{place}.lora_magnitude_vector.default.weight"
    return found


def _short(targets: Sequence[Target], model: PreTrainedModel, adapter: Adapter) -> list[str]:
    """The adapted linear layers: by the ends of their names if these match no other layer, else by whole names."""
    names = {target.name for target in targets if not target.stacked}
    kinds = {target.kind for target in targets if not target.stacked}
    layers = [target for target in adaptable(model, adapter) if not target.stacked]
    matched = {layer.name for layer in layers if layer.kind in kinds}
    return sorted(kinds if matched == names else names)


def _config(folder: Path) -> SavedConfig:
    try:
        config: SavedConfig = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{_FIELD}: {folder} has no readable {CONFIG}; give a folder that peft's save_pretrained wrote"
        ) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{_FIELD}: {folder} holds no LoRA adapter (its {CONFIG} has another peft_type).")
    changed = config.get("init_lora_weights", True)
    reasons = {
        f"init_lora_weights: {changed}": isinstance(changed, str) and changed not in ("gaussian", "orthogonal"),
        "bias": config.get("bias", "none") != "none" or config.get("lora_bias"),
        "rank_pattern": config.get("rank_pattern"),
        "alpha_pattern": config.get("alpha_pattern"),
    }
    used = [name for name, found in reasons.items() if found]
    if used:
        raise ModelError(
            f"{_FIELD}: the adapter in {folder} uses {', '.join(used)}, which Shardyard does not continue; merge it "
            "into its base model and start a new adapter."
        )
    return config


def _names(folder: Path) -> list[str]:
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return [name.removeprefix(_PREFIX) for name in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{_FIELD}: {folder / WEIGHTS} cannot be read: {error}") from error


def _some(names: Sequence[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more tensors" if len(names) > shown else "")
