"""Reading pretrained weights in slices: names, conversions, ties and missing weights are those of transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightTransform

from shardyard.models.build import architecture_config, construct_in_slices, construct_pretrained
from shardyard.models.pretrained import Loaded
from shardyard.models.slices import sources
from shardyard.models.slices.quirks import Conversion, WholeNeededError
from shardyard.models.slices.sources import Converted, Stored, whole
from shardyard.recipe.schema import Model
from support.memory.ranks import peak_bytes
from support.pretrained import write_pretrained


def both(start: Path, family: str, objective: str = "causal_lm", vocabulary: int = 257) -> tuple[Loaded, Loaded]:
    model = Model(family=family, pretrained=str(start))
    given = model, architecture_config(model, vocabulary=vocabulary), objective
    return construct_pretrained(*given, seed=3), construct_in_slices(*given, seed=3)


def check_same(entire: Loaded, sliced: Loaded) -> None:
    """Every parameter whole and in uneven parts, every buffer, and what is told are the same."""
    assert (sliced.new, sliced.unused, sliced.resized) == (entire.new, entire.unused, entire.resized)
    ours, theirs = dict(sliced.model.named_parameters()), dict(entire.model.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        source, third = sliced.sources.of(ours[name]), expected.numel() // 3
        assert torch.equal(whole(source, torch.float32), expected), name
        for start, stop in ((0, third), (third, 2 * third + 1), (expected.numel(), expected.numel())):
            part = source.part(start, stop, torch.bfloat16)
            assert torch.equal(part, expected.detach().flatten()[start:stop].bfloat16()), name
    buffers = dict(sliced.model.named_buffers())
    for name, expected in entire.model.named_buffers():
        assert torch.equal(buffers[name], expected), name
        assert buffers[name].dtype == expected.dtype, name


@pytest.mark.parametrize(
    ("family", "objective"),
    [("gpt2", "causal_lm"), ("llama", "causal_lm"), ("mixtral", "causal_lm")],
)
@pytest.mark.parametrize("vocabulary", [257, 300, 250])
def test_slices_hold_what_transformers_loads(family: str, objective: str, vocabulary: int, tmp_path: Path) -> None:
    entire, sliced = both(write_pretrained(tmp_path / family, family), family, objective, vocabulary)
    check_same(entire, sliced)
    assert len(sliced.sources) == len(list(sliced.model.parameters()))
    held = sum(one.untyped_storage().nbytes() for one in sliced.model.parameters())
    assert held <= 4 * len(sliced.sources)


def change(start: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = start / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})


def test_a_new_head_is_drawn_as_before(tmp_path: Path) -> None:
    start = write_pretrained(tmp_path / "start", "llama")
    change(start, lambda state: {name: one for name, one in state.items() if "lm_head" not in name})
    entire, sliced = both(start, "llama")
    assert sliced.new == ("lm_head.weight",)
    check_same(entire, sliced)


@pytest.mark.parametrize("same", [True, False])
def test_weights_whose_ties_the_file_repeats_are_tied_if_they_are_equal(same: bool, tmp_path: Path) -> None:
    start = write_pretrained(tmp_path / "start", "gpt2")

    def repeated(state: dict[str, Tensor]) -> dict[str, Tensor]:
        table = state["transformer.wte.weight"].clone()
        return {**state, "lm_head.weight": table if same else table + 1}

    change(start, repeated)
    entire, sliced = both(start, "gpt2")
    check_same(entire, sliced)
    model = sliced.model
    assert (model.lm_head.weight is model.transformer.wte.weight) == same


def test_the_body_of_a_model_and_unknown_weights(tmp_path: Path) -> None:
    start = write_pretrained(tmp_path / "start", "gpt2")

    def body(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**{name.removeprefix("transformer."): one for name, one in state.items()}, "odd.weight": torch.ones(2)}

    change(start, body)
    entire, sliced = both(start, "gpt2")
    assert sliced.unused == ("odd.weight",)
    check_same(entire, sliced)


def test_other_precisions_are_rounded_once(tmp_path: Path) -> None:
    start = write_pretrained(tmp_path / "start", "llama")
    change(start, lambda state: {name: one.half() if "norm" in name else one.double() for name, one in state.items()})
    check_same(*both(start, "llama"))


STORED = [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("stored", STORED, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_weights_stored_in_8_bits_or_as_integers_are_those_that_transformers_loads(
    stored: torch.dtype, tmp_path: Path
) -> None:
    start = write_pretrained(tmp_path / "start", "llama")
    least = 0 if stored is torch.uint8 else -100

    def narrowed(state: dict[str, Tensor]) -> dict[str, Tensor]:
        codes = {name: (one * 100).round().clamp(least, 100).to(stored) for name, one in state.items()}
        assert codes["model.layers.0.mlp.up_proj.weight"].float().unique().numel() > 10
        return {name: codes[name] if "proj" in name else one for name, one in state.items()}

    change(start, narrowed)
    check_same(*both(start, "llama"))


def test_weights_with_scales_are_not_read_as_if_they_had_none(tmp_path: Path) -> None:
    start = write_pretrained(tmp_path / "start", "llama")
    config = json.loads((start / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (start / "config.json").write_text(json.dumps(config))
    section = Model(family="llama", pretrained=str(start))
    with pytest.raises(WholeNeededError, match="they are quantised"):
        construct_in_slices(section, architecture_config(section, vocabulary=257))


def test_only_the_rows_of_a_part_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.arange(4 * 3 * 2, dtype=torch.float32).view(4, 3, 2)
    save_file({"one": table}, tmp_path / "file.safetensors")
    source, read = Stored(tmp_path / "file.safetensors", "one", table.shape), []

    class Noting:
        def __init__(self, *given: Any, **options: Any) -> None:
            self._file = opened(*given, **options)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def get_slice(self, key: str) -> Any:
            stored = self._file.get_slice(key)

            class Slice:
                get_dtype = stored.get_dtype

                def __getitem__(self, index: Any) -> Tensor:
                    got: Tensor = stored[index]
                    read.append(got.numel())
                    return got

            return Slice()

    opened = sources.safe_open
    monkeypatch.setattr(sources, "safe_open", Noting)
    for start, stop, expected in ((0, 24, 24), (7, 11, 6), (6, 12, 6), (8, 10, 2), (9, 10, 1), (5, 13, 18)):
        assert torch.equal(source.part(start, stop, torch.float32), table.flatten()[start:stop])
        assert read.pop() == expected, (start, stop)


def test_a_part_of_a_tensor_takes_no_memory_for_the_rest(tmp_path: Path) -> None:
    shape = torch.Size((4096, 4096))
    save_file({"one": torch.ones(shape, dtype=torch.bfloat16)}, tmp_path / "file.safetensors")
    source, size = Stored(tmp_path / "file.safetensors", "one", shape), 2 * math.prod(shape)
    source.part(0, 10, torch.bfloat16)
    before = peak_bytes(reset=True)
    assert source.part(3 * shape.numel() // 4, shape.numel(), torch.bfloat16).sum() == shape.numel() // 4
    assert peak_bytes() - before < size // 2 + (2 << 20), "a quarter, and a few pages of the file"


def test_a_part_of_stacked_experts_reads_these_experts_alone(tmp_path: Path) -> None:
    experts = [torch.randn(2, 3) for _ in range(5)]
    save_file({f"experts.{number}.w.weight": one for number, one in enumerate(experts)}, tmp_path / "file")
    stored = [Stored(tmp_path / "file", f"experts.{number}.w.weight", torch.Size((2, 3))) for number in range(5)]
    transform = WeightConverter(["experts.*.w.weight"], ["experts.all"], [MergeModulelist(dim=0)])
    model: Any = SimpleNamespace(config=None)
    conversion = Conversion(transform, "experts.all", model)
    asked: list[int] = []

    class Counted(Conversion):
        def __init__(self) -> None:
            vars(self).update(vars(conversion))

        def __call__(self, tensors: Any) -> dict[str, Tensor]:
            asked.append(len(tensors["experts.*.w.weight"]))
            return super().__call__(tensors)

    converted = Converted(Counted(), {"experts.*.w.weight": stored}, {"experts.all": torch.Size((5, 2, 3))})
    part = converted.part("experts.all", 7, 13, torch.float32)
    assert torch.equal(part, torch.stack(experts).flatten()[7:13])
    assert asked == [2]
    across = WeightConverter(["a", "b"], ["c"], [MergeModulelist(dim=0), Concatenate(dim=0)])
    assert not Conversion(across, "c", model).by_rows


def test_what_cannot_be_read_in_slices_says_why(tmp_path: Path) -> None:
    start = write_pretrained(tmp_path / "start", "gpt2")
    model = AutoModelForCausalLM.from_pretrained(start)
    (start / "model.safetensors").unlink()
    torch.save(model.state_dict(), start / "pytorch_model.bin")
    section = Model(family="gpt2", pretrained=str(start))
    with pytest.raises(WholeNeededError, match="no safetensors files"):
        construct_in_slices(section, architecture_config(section, vocabulary=257))


def test_transformers_loads_as_before_afterwards(tmp_path: Path) -> None:
    start = write_pretrained(tmp_path / "start", "gpt2")
    before = vars(PreTrainedModel)["_load_pretrained_model"], WeightTransform.add_tensor
    assert isinstance(before[0], staticmethod)
    both(start, "gpt2")
    assert (vars(PreTrainedModel)["_load_pretrained_model"], WeightTransform.add_tensor) == before
