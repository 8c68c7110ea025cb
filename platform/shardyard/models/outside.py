"""Custom modules (`model.module`): constructs, calls, saves and loads any `nn.Module` in place of a family."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import load_torch_model
from torch import Tensor, distributed, nn
from torch.nn.parameter import UninitializedParameter
from transformers import GenerationConfig, PreTrainedConfig

from shardyard import plugins
from shardyard.errors import ModelError, ShardyardError
from shardyard.models.checkpointing import checkpoint_function, is_checkpointed
from shardyard.recipe.schema import Model
from shardyard.recipe.sections.model import MODULE
from shardyard.suggest import suggestion

PREFIX = "module."
# Configuration fields that the plan, the row formats and sampling read; a constructor need not accept them.
_READ_BY_US = frozenset(
    {
        "bos_token_id",
        "decoder_start_token_id",
        "eos_token_id",
        "hidden_size",
        "image_size",
        "is_encoder_decoder",
        "max_position_embeddings",
        "num_attention_heads",
        "num_channels",
        "num_hidden_layers",
        "num_labels",
        "pad_token_id",
        "patch_size",
        "vocab_size",
    }
)
# Values of the run that a constructor receives if it has parameters of these names.
_OFFERED = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
# The main input of a row; passed by position to a module that names it differently, such as nn.Sequential.
_MAIN = ("input_ids", "pixel_values", "input_features")
# Arguments that do not change the result of a module without a cache. `check_rows` checks where position ids matter.
_IDLE = frozenset({"use_cache", "return_dict", "position_ids"})
# The attribute of a block that computes its activations again: the function that does.
CHECKPOINT_FUNCTION = "checkpoint_function"


class ModuleConfig(PreTrainedConfig):  # type: ignore[misc]
    """The configuration interface that other code expects, for a custom module: `model.config` as attributes.

    module: its reference, for information only; code is looked up from the recipe. arguments: the constructor arguments
    that can be written as JSON.
    """

    model_type = MODULE


class OutputError(ModelError, AttributeError):
    """A module did not return an output that the objective reads."""


class Output(dict[str, Any]):
    """The outputs of a module by name: `logits` and any others."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            given = ", ".join(self) or "nothing"
            raise OutputError(
                f"model.module: forward() returned {given}, and the objective reads {name!r}; return it too."
            ) from None


class OutsideModel(nn.Module):
    """Wraps a module with the interface that training needs: keyword arguments, named outputs, `generate`, `config`."""

    def __init__(self, config: ModuleConfig, module: nn.Module) -> None:
        super().__init__()
        self.config, self.module = config, module
        self.generation_config = GenerationConfig(eos_token_id=config.eos_token_id)
        parameters = inspect.signature(module.forward).parameters.values()
        self._takes = {one.name for one in parameters}
        self._takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
        self._first = next((one.name for one in parameters if one.kind is not one.VAR_KEYWORD), None)

    def takes(self, name: str) -> bool:
        """Whether `forward` has a parameter of this name, or accepts any keyword argument."""
        return self._takes_any or name in self._takes

    def forward(self, **inputs: Any) -> Output:
        """Call the module with the inputs of a row that it accepts.

        Raises:
            ModelError: the module does not accept an input of the objective, or returns an output without names.
        """
        first, given = self._split(inputs)
        refused = [name for name in given if not self.takes(name)]
        if refused:
            raise ModelError(
                f"model.module: forward() takes no {' and no '.join(refused)}, which the rows of this objective have; "
                "add parameters of these names (or **kwargs)."
            )
        return _as_output(self.module(*first, **given))

    def _split(self, inputs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = {name: value for name, value in inputs.items() if self.takes(name) or name not in _IDLE}
        main = next((name for name in _MAIN if name in given), None)
        if main is None or self.takes(main) or self._first is None or self._first in given:
            return (), given
        return (given.pop(main),), given

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        *,
        max_new_tokens: int,
        do_sample: bool = False,
        temperature: float = 1.0,
        synced_gpus: bool = False,
        **_: object,
    ) -> Tensor:
        """Continue one row of tokens [1, T] up to the end-of-text token; returns [1, T + new]. There is no cache.

        An encoder–decoder (`is_encoder_decoder`) generates a new text that starts with `decoder_start_token_id`. With
        `synced_gpus` a rank goes on with passes that do not count until all ranks are done, as transformers does.
        """
        source = input_ids if self.config.is_encoder_decoder else None
        if source is not None:
            input_ids = input_ids.new_full((1, 1), _decoder_start(self.config))
        left = max_new_tokens
        while _any_goes_on(left > 0, input_ids.device, synced_gpus):
            logits = self(**self._step_inputs(source, input_ids)).logits[:, -1].float()  # [1, V]
            if not left:
                continue
            if do_sample:
                chosen = torch.multinomial((logits / temperature).softmax(-1), 1)
            else:
                chosen = logits.argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, chosen], dim=1)
            left = 0 if int(chosen) == self.config.eos_token_id else left - 1
        return input_ids

    def _step_inputs(self, source: Tensor | None, written: Tensor) -> dict[str, Tensor]:
        read = written if source is None else source
        inputs = {"input_ids": read} if source is None else {"input_ids": read, "decoder_input_ids": written}
        if "attention_mask" in self._takes:
            inputs["attention_mask"] = torch.ones_like(read)
        if "position_ids" in self._takes:
            inputs["position_ids"] = torch.arange(read.shape[1], device=read.device)[None]
        return inputs


def module_config(
    model: Model, *, vocabulary: int | None, special_tokens: Mapping[str, int | None] | None = None
) -> ModuleConfig:
    """The configuration of `model.module`: fields derived from the tokenizer, overridden by the recipe's.

    Args:
        vocabulary: length of the tokenizer, None for an objective without text.
    """
    text: dict[str, object] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    text |= {} if vocabulary is None else {"vocab_size": vocabulary, **(special_tokens or {})}
    fields = {**text, **({} if model.dropout is None else {"dropout": model.dropout}), **model.config}
    # Methods such as `from_dict` are not fields.
    plain = {name: value for name, value in fields.items() if not callable(getattr(PreTrainedConfig, name, None))}
    config = ModuleConfig(**plain, module=model.module)
    config.is_encoder_decoder = bool(model.config.get("is_encoder_decoder", False))
    return config


def make_module(model: Model, config: ModuleConfig) -> OutsideModel:
    """`model.module` in fp32, with the weights that its constructor draws from torch's global generator.

    Raises:
        ModelError: it cannot be imported or constructed, is not a module, or has no parameters to train.
        UsageError: its code is not available.
    """
    reference = reference_of(model)
    factory = plugins.load(reference)
    arguments = _arguments(factory, model, config)
    try:
        module = factory(**arguments)
    except ShardyardError:
        raise
    except Exception as error:
        raise ModelError(f"model.module: {reference} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"model.module: {reference} gives no torch.nn.Module but {type(module).__name__}.")
    parameters = list(module.parameters())
    if not parameters:
        raise ModelError(f"model.module: {reference} has no parameters, so there is nothing to train.")
    if any(isinstance(parameter, UninitializedParameter) for parameter in parameters):
        raise ModelError(
            f"model.module: {reference} has lazy layers, whose shapes are not known before a first pass; give their "
            "sizes to the constructor."
        )
    config.arguments = {name: value for name, value in arguments.items() if _is_json(value)}
    built = OutsideModel(config, module.float())
    if model.checkpointing != "none":
        _checkpoint_blocks(built, reference, model)
    return built


def reference_of(model: Model) -> str:
    """The reference to the code of `model.module`.

    Raises:
        ModelError: no installed package provides this name.
    """
    assert model.module is not None, "asked of modules alone"
    found = plugins.find("models", model.module)
    if found is None:
        raise ModelError(
            f"model.module: no installed package brings a model {model.module!r}; "
            f"{suggestion(model.module, plugins.installed('models'))}"
        )
    return found


def check_rows(model: nn.Module, *, isolate_documents: bool, packed: bool) -> None:
    """Check that a module can isolate the documents of a row, if it has to.

    Args:
        packed: whether rows hold several documents.

    Raises:
        ModelError: the module does not accept position ids, which mark where documents begin.
    """
    if isinstance(model, OutsideModel) and packed and isolate_documents and not model.takes("position_ids"):
        raise ModelError(
            "model.module: forward() takes no position_ids, which begin again with each document of a row, so "
            "documents would see each other. Take them into account, or set data.isolate_documents to false."
        )


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a module: the entries of its outermost `nn.ModuleList`s."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks_of(child)


def fitting_names(model: OutsideModel, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights of the file of a module, under its own names, tied ones once: shapes and precisions (meta) by name,
    and name → name in `tensors`.

    Args:
        model: on the meta device; determines which weights are expected.
        tensors: shapes and precisions (meta) of the weights, under the names of `OutsideModel`.

    Raises:
        ModelError: the weights do not match the module.
    """
    given = {name.removeprefix(PREFIX): name for name in tensors}
    expected = model.module.state_dict()
    # A tied weight is one parameter under several names.
    kept = {name for name, _ in model.module.named_parameters()}
    kept |= expected.keys() - {name for name, _ in model.module.named_parameters(remove_duplicate=False)}
    missing, unexpected = sorted(kept - given.keys()), sorted(given.keys() - expected.keys())
    wrong = [name for name in kept & given.keys() if tensors[given[name]].numel() != expected[name].numel()]
    if missing or unexpected or wrong:
        raise ModelError(
            f"the weights do not fit the module: missing {missing[:3]}, unexpected {unexpected[:3]}, of another size "
            f"{sorted(wrong)[:3]}"
        )
    names = {name: given[name] for name in expected if name in kept}
    # `give_axes` added an axis to scalars for DeepSpeed; `reshape` removes it.
    return {name: tensors[source].reshape(expected[name].shape) for name, source in names.items()}, names


def save_config(folder: Path, model: OutsideModel, tensors: Mapping[str, Tensor]) -> None:
    """Write config.json of a module with these weights."""
    model.config.dtype = next((one.dtype for one in tensors.values() if one.is_floating_point()), torch.float32)
    # With a model type that it does not know, transformers would warn when somebody loads the tokenizer.
    fields = {name: value for name, value in model.config.to_diff_dict().items() if name != "model_type"}
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_config(folder: Path) -> ModuleConfig | None:
    """The configuration of a saved module; None if the folder holds something else."""
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return ModuleConfig(**stored) if isinstance(stored, dict) and "module" in stored else None


def load_module_weights(model: nn.Module, folder: Path) -> tuple[list[str], list[str]]:
    """Load weights that the export wrote; returns the names of missing and of unexpected ones.

    Raises:
        ModelError: the folder has no weights, or their shapes differ.
    """
    assert isinstance(model, OutsideModel), "made by make_module"
    try:
        report: Any = load_torch_model(model.module, folder)
    except (OSError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:400]
        raise ModelError(f"the weights in {folder} do not fit the module: {text}") from error
    names = dict(model.module.named_parameters())
    return [name for name in report.missing_keys if name in names], list(report.unexpected_keys)


@contextmanager
def meta_device(reference: str) -> Iterator[None]:
    """Context in which a module is constructed on the meta device, with shapes but no values.

    Raises:
        ModelError: the module's constructor needs values.
    """
    try:
        with torch.device("meta"):
            yield
    except ModelError as error:
        cause = error.__cause__
        if isinstance(cause, RuntimeError | NotImplementedError):
            raise ModelError(
                f"model.module: {reference} cannot be made of shapes alone (torch's meta device), which is how a plan "
                f"counts weights: {cause}. Its constructor must not look at values of tensors."
            ) from cause
        raise


def _arguments(factory: Callable[..., object], model: Model, config: ModuleConfig) -> dict[str, Any]:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return dict(model.config)
    fields = {**model.config, **({} if model.dropout is None else {"dropout": model.dropout})}
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    found = {name: value for name, value in fields.items() if takes_any or name in parameters}
    offered = {name: getattr(config, name, None) for name in _OFFERED} | {"config": config}
    found |= {name: value for name, value in offered.items() if name in parameters and name not in found}
    unknown = [name for name in fields if name not in found and name not in _READ_BY_US and "config" not in parameters]
    if unknown:
        where = "model.dropout" if unknown == ["dropout"] and "dropout" not in model.config else "model.config"
        raise ModelError(
            f"{where}: {model.module} takes no argument {unknown[0]!r}; {suggestion(unknown[0], list(parameters))}"
        )
    needed = [one.name for one in parameters.values() if one.default is one.empty and one.kind not in _VARIADIC]
    missing = [name for name in needed if name not in found]
    if missing:
        raise ModelError(f"model.config: {model.module} needs the argument(s) {', '.join(missing)}; add them there.")
    return found


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _as_output(value: Any) -> Output:
    if isinstance(value, Tensor):
        return Output(logits=value)
    if isinstance(value, Mapping):
        return Output(value)
    found = {name: one for name in ("logits", "loss") if (one := getattr(value, name, None)) is not None}
    if not found:
        raise ModelError(
            f"model.module: forward() returned {type(value).__name__}; return the logits as a tensor, or a mapping or "
            "an object with `logits`."
        )
    return Output({**found, **{name: one for name, one in getattr(value, "__dict__", {}).items() if one is not None}})


def _any_goes_on(goes_on: bool, device: torch.device, synchronised: bool) -> bool:
    if not synchronised:
        return goes_on
    flag = torch.tensor(float(goes_on), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag)


def _decoder_start(config: ModuleConfig) -> int:
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id", "eos_token_id")
    return next((int(value) for name in names if (value := getattr(config, name, None)) is not None), 0)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


class _CheckpointedBlock(nn.Module):
    """Mixin for the class of a block; makes the backward pass recompute the block's activations."""

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return super().__call__(*inputs, **named)
        function: Any = getattr(self, CHECKPOINT_FUNCTION)
        return function(super().__call__, *inputs, **named)


def _checkpoint_blocks(built: OutsideModel, reference: str, model: Model) -> None:
    blocks = list(blocks_of(built.module))
    if not blocks:
        raise ModelError(
            f"model.activation_checkpointing: {reference} has no nn.ModuleList, whose entries are what is computed "
            "anew; keep its blocks in one, or set this to none."
        )
    function = checkpoint_function(model)
    for index, block in enumerate(blocks):
        kind = type(block)
        if is_checkpointed(model, index) and not issubclass(kind, _CheckpointedBlock):
            setattr(block, CHECKPOINT_FUNCTION, function)
            block.__class__ = type(kind.__name__, (_CheckpointedBlock, kind), {})
