"""Models of several files: written piece by piece, by several ranks, as `save_pretrained` writes them."""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from shardyard.models.build import auto_class
from shardyard.models.export import export as export_module
from shardyard.models.export import layout, shards
from shardyard.models.export.export import export_model
from shardyard.models.export.layout import make_layout, units_of_names
from shardyard.models.export.shards import ShardFile
from shardyard.models.export.together import until_all
from shardyard.models.weight_source import InMemory, Ranks, WeightSource, on_meta
from support.tiny import CONFIGS

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
SIDE = {name: TEXT[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
VISION = SIDE | {"image_size": 16, "patch_size": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("causal_lm", CONFIGS["gpt2"]),
    "mixtral": ("causal_lm", TEXT | {"num_local_experts": 4}),
    "qwen3_moe": ("causal_lm", TEXT | {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 16}),
    "t5": ("seq2seq", {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 64}),
    "marian": (
        "seq2seq",
        {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 64, "pad_token_id": 1},
    ),
    "clip": (
        "contrastive",
        {"text_config": SIDE | {"vocab_size": 64}, "vision_config": VISION, "projection_dim": 16},
    ),
    "bert": ("bert_pretraining", SIDE | {"vocab_size": 64}),
    "resnet": ("image_classification", {"embedding_size": 8, "hidden_sizes": [32, 64], "depths": [1, 1]}),
    "llava": (
        "vision_language",
        {
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": VISION | {"model_type": "clip_vision_model"},
        },
    ),
}


def built(family: str) -> tuple[PreTrainedModel, PreTrainedConfig, str]:
    objective, fields = FAMILIES[family]
    config = AutoConfig.for_model(family, **copy.deepcopy(fields))
    torch.manual_seed(3)
    return auto_class(objective, family).from_config(config).to(torch.bfloat16), config, objective


def export(folder: Path, family: str, **changes: Any) -> Path:
    model, config, objective = built(family)
    weights = changes.pop("weights", model.state_dict())
    return export_model(
        folder, config=config, weights=weights, tokenizer=None, card="card", objective=objective, **changes
    )


def together(folder: Path, config: PreTrainedConfig, weights: WeightSource, rank: Ranks) -> Path:
    return export_model(
        folder,
        config=copy.deepcopy(config),
        weights=weights,
        tokenizer=None,
        card="card",
        shard_bytes=9000,
        ranks=rank,
    )


def weights_in(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        assert not found.keys() & tensors.keys()
        found |= tensors
    return found


@dataclass(frozen=True)
class Thread:
    """One of several ranks that are threads of one process."""

    index: int
    size: int
    barrier: threading.Barrier
    values: list[Any]

    def gather(self, value: Any) -> list[Any]:
        self.values[self.index] = value
        self.barrier.wait(timeout=20)
        found = list(self.values)
        self.barrier.wait(timeout=20)
        return found


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are constructed one after the other: transformers sets torch's default type for all threads meanwhile."""
    lock, construct = threading.Lock(), export_module._model

    def locked(*arguments: Any) -> Any:
        with lock:
            return construct(*arguments)

    monkeypatch.setattr(export_module, "_model", locked)


def on_ranks(size: int, work: Callable[[Thread], Any]) -> list[Any]:
    """The result or the exception of each rank."""
    barrier, values = threading.Barrier(size), [None] * size
    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(work, Thread(rank, size, barrier, values)) for rank in range(size)]
        return [future.exception() or future.result() for future in futures]


class Collective(InMemory):
    """Weights that all ranks read together, as under ZeRO-3: whoever keeps them gets them."""

    collective = True

    def __init__(self, weights: Mapping[str, Tensor], rank: Thread) -> None:
        super().__init__(weights)
        self._rank = rank
        self.largest = 0

    def read(self, names: Sequence[str], keepers: Collection[int]) -> Mapping[str, Tensor]:
        assert len(set(map(str, self._rank.gather(list(names))))) == 1, "all ranks read the same"
        found = super().read(names, keepers)
        self.largest = max(self.largest, sum(tensor.nbytes for tensor in found.values()))
        return found if self._rank.index in keepers else {}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_values_are_those_of_save_pretrained(tmp_path: Path, family: str) -> None:
    """transformers reverses the conversions of its loading: experts become layers, fused weights are split."""
    model, _, objective = built(family)
    model.save_pretrained(tmp_path / "theirs")
    theirs = weights_in(tmp_path / "theirs")
    for size in (10**9, 6000):
        path = export(tmp_path / "ours", family, shard_bytes=size)
        ours = weights_in(path)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert all(ours[name].dtype == theirs[name].dtype for name in theirs)
        loaded, info = auto_class(objective, family).from_pretrained(path, dtype="auto", output_loading_info=True)
        assert not any(info.values())
        own = model.state_dict()
        assert all(torch.equal(tensor, own[name]) for name, tensor in loaded.state_dict().items())
    assert len(list(path.glob("model-*-of-*.safetensors"))) > 2
    for part in path.glob("*.safetensors"):
        assert sum(tensor.nbytes for tensor in load_file(part).values()) <= 6000 or len(load_file(part)) == 1


def test_the_index_is_that_of_save_pretrained(tmp_path: Path) -> None:
    model, _, _ = built("gpt2")
    model.save_pretrained(tmp_path / "theirs", max_shard_size=6000)
    export(tmp_path / "ours", "gpt2", shard_bytes=6000)
    ours, theirs = ((tmp_path / name / layout.INDEX).read_text() for name in ("ours", "theirs"))
    assert json.loads(ours) == json.loads(theirs)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs")]
    assert configs[0] == configs[1]


@pytest.mark.usefixtures("one_at_a_time")
def test_ranks_write_a_model_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each its own shards, a layer of experts that lies in two of them included, and a piece at a time."""
    monkeypatch.setattr(layout, "PIECE_BYTES", 4096)
    writers: dict[str, int] = {}
    opened = ShardFile.__init__

    def note(self: ShardFile, path: Path, tensors: Mapping[str, Tensor]) -> None:
        writers[path.name] = threading.get_ident()
        opened(self, path, tensors)

    monkeypatch.setattr(ShardFile, "__init__", note)
    model, config, _ = built("mixtral")
    weights = model.state_dict()
    largest = max(tensor.nbytes for tensor in weights.values())
    sources: list[Collective] = []

    def work(rank: Thread) -> Path:
        source = Collective(weights, rank)
        sources.append(source)
        return together(tmp_path / "final", config, source, rank)

    assert on_ranks(3, work) == [tmp_path / "final"] * 3
    assert os.listdir(tmp_path) == ["final"]
    assert len(writers) > 6
    assert len(set(writers.values())) == 3
    export(tmp_path / "alone", "mixtral", shard_bytes=9000)
    shared, alone = weights_in(tmp_path / "final"), weights_in(tmp_path / "alone")
    assert shared.keys() == alone.keys()
    assert all(torch.equal(shared[name], alone[name]) for name in alone)
    for name in (layout.INDEX, "config.json", "README.md"):
        assert (tmp_path / "final" / name).read_text() == (tmp_path / "alone" / name).read_text()
    assert max(source.largest for source in sources) <= largest + 2 * 4096
    AutoModelForCausalLM.from_pretrained(tmp_path / "final")


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize("collective", [True, False])
def test_a_rank_that_cannot_write_stops_all_and_leaves_the_older_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collective: bool
) -> None:
    monkeypatch.setattr(layout, "PIECE_BYTES", 4096)
    export(tmp_path / "final", "gpt2")
    write = ShardFile.write

    def full(self: ShardFile, name: str, tensor: Tensor) -> None:
        if name == "transformer.h.1.mlp.c_fc.weight":
            raise OSError(28, "No space left on device")
        write(self, name, tensor)

    monkeypatch.setattr(ShardFile, "write", full)
    model, config, _ = built("gpt2")
    weights = model.state_dict()

    def work(rank: Thread) -> Path:
        source = Collective(weights, rank) if collective else InMemory(weights)
        return together(tmp_path / "final", config, source, rank)

    problems = on_ranks(3, work)
    assert all(isinstance(problem, OSError) and problem.errno == 28 for problem in problems)
    assert os.listdir(tmp_path) == ["final"]
    assert sorted(path.name for path in (tmp_path / "final").glob("*.safetensors")) == ["model.safetensors"]


def test_nobody_waits_in_a_collective_for_a_slow_writer() -> None:
    """Its rank says every few seconds that it is not done, instead of being missed."""
    rounds = iter([False, False, False, True])
    met = []

    class Counted:
        size, index = 2, 0

        def gather(self, value: Any) -> list[Any]:
            met.append(value)
            return [value, (True, None)]

    until_all(Counted(), lambda: next(rounds))
    assert len(met) == 4


def test_shards_are_dealt_to_ranks_all_over_the_run() -> None:
    """To every second one rather than to the first half: the first half may share one node."""
    tensors = {f"layer.{at:02d}": torch.empty(10, 10, device="meta") for at in range(8)}
    units = units_of_names(tensors, {name: name for name in tensors})
    few = make_layout(units, shard_bytes=800, ranks=8)
    assert len(few.shards) == 4
    assert list(few.writer.values()) == [0, 2, 4, 6]
    many = make_layout(units, shard_bytes=400, ranks=3)
    assert list(many.writer.values()) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert [sorted(piece.writers) for piece in many.pieces] == [[0], [1], [2], [0], [1], [2], [0], [1]]
    assert make_layout(units, shard_bytes=10**9, ranks=8).writer == {"model.safetensors": 0}
    assert few.size_bytes == 8 * 400


def test_a_file_has_every_type_of_tensor_as_safetensors_reads_them(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    types = [one for one in shards.TYPES if one not in (torch.uint64, torch.uint32, torch.uint16)]
    tensors = {str(one): (torch.rand(3, 5, generator=generator) * 100).to(one) for one in types}
    tensors |= {"none": torch.empty(0, 4), "one": torch.tensor(1.5), "turned": tensors["torch.float32"].T}
    ordered = dict(sorted(tensors.items(), key=lambda one: -one[1].itemsize))
    file = ShardFile(tmp_path / "model.safetensors", {name: on_meta(tensor) for name, tensor in ordered.items()})
    for name in reversed(ordered):
        file.write(name, ordered[name])
    file.close()
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].shape, read[name].dtype) == (tensor.shape, tensor.dtype)
        ours, theirs = (one.contiguous().reshape(-1).view(torch.uint8) for one in (read[name], tensor))
        assert torch.equal(ours, theirs), name
