"""An exported model is whole or not there, and it is the model that was trained."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from ruamel.yaml import YAML
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.errors import ModelError
from shardyard.launch.run.prepare import prepare
from shardyard.models.build import architecture_config, construct, special_token_ids
from shardyard.models.export.card import TrainedRun, model_card
from shardyard.models.export.export import export_model
from shardyard.models.fused import fuse_activations
from shardyard.planning.plan import World
from shardyard.recipe.schema import Model, Recipe
from support.pretrained import write_pretrained
from support.tiny import CONFIGS, tiny_recipe
from support.wordpieces import tiny_wordpiece


def trained(family: str, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedConfig]:
    """A model with weights, and a configuration of its own, as the engine holds both."""
    torch.manual_seed(3)
    model = Model(family=family, config=CONFIGS[family], dropout=0.0)
    ids = special_token_ids(load_tokenizer("bytes"))
    config = architecture_config(model, vocabulary=257, special_tokens=ids)
    built = construct(model, config).eval()
    for parameter in built.parameters():
        # Parameters alone: rotary frequencies stay in fp32, in training as in what is loaded.
        parameter.data = parameter.data.to(dtype)
    return built, architecture_config(model, vocabulary=257, special_tokens=ids)


def write(folder: Path, family: str = "gpt2", **changes: Any) -> Path:
    model, config = trained(family)
    arguments = {"config": config, "weights": model.state_dict(), "tokenizer": load_tokenizer("bytes"), "card": "card"}
    return export_model(folder, **{**arguments, **changes})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", CONFIGS)
def test_transformers_loads_the_same_model(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    model, config = trained(family, dtype)
    path = write(tmp_path / "final", family, config=config, weights=model.state_dict())
    assert path == tmp_path / "final"
    assert (path / "model.safetensors").is_file()
    assert not list(path.glob("*.bin"))
    loaded = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
    assert loaded.dtype == dtype
    assert loaded.config.use_cache
    ids = torch.randint(0, 257, (2, 20), generator=torch.Generator().manual_seed(0))
    # GPT-2's activation function in one operation rounds otherwise than in eight.
    fuse_activations(loaded)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    tied = config.tie_word_embeddings
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied
    assert ("lm_head.weight" in load_file(path / "model.safetensors")) != tied
    # The exporter takes the model's tensors as they are; it must not change them.
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_part_of_a_family_that_reads_text_is_found_by_the_family(tmp_path: Path) -> None:
    """`AutoModelForCausalLM` knows emu3, and not the configuration of its decoder."""
    side = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    section = Model(family="emu3", config={"text_config": {**side, "num_key_value_heads": 2}}, dropout=0.0)
    ids = special_token_ids(load_tokenizer("bytes"))
    config = architecture_config(section, vocabulary=257, special_tokens=ids)
    torch.manual_seed(3)
    model = construct(section, config).eval()
    path = write(tmp_path / "final", config=config, weights=model.state_dict())
    loaded = AutoModelForCausalLM.from_pretrained(path).eval()
    assert (type(loaded), loaded.config.use_cache) == (type(model), True)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_a_body_alone_keeps_no_cache(tmp_path: Path) -> None:
    """That of bamba or xlstm fails with the one that it makes itself."""
    section = Model(family="xlstm", config={"hidden_size": 32, "embedding_dim": 32, "num_blocks": 2, "num_heads": 2})
    ids = special_token_ids(load_tokenizer("bytes"))
    config = architecture_config(section, vocabulary=257, special_tokens=ids)
    body = AutoModel.from_config(config).eval()
    path = write(tmp_path / "final", config=config, weights=body.state_dict(), objective="embedding")
    loaded = AutoModel.from_pretrained(path).eval()
    assert not loaded.config.use_cache
    rows = torch.arange(32).reshape(2, 16)
    with torch.no_grad():
        assert loaded(input_ids=rows).last_hidden_state.shape == (2, 16, 32)


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    path = write(tmp_path / "final")
    loaded, ours = AutoTokenizer.from_pretrained(path), load_tokenizer("bytes")
    for text in ("plain text", "naïve ☃ 𝔘", "\x00\t\n", "<|endoftext|>"):
        assert loaded(text)["input_ids"] == ours(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == ours.decode(ours(text)["input_ids"])
    assert loaded.eos_token_id == ours.eos_token_id
    assert AutoModelForCausalLM.from_pretrained(path).config.eos_token_id == ours.eos_token_id


def test_what_is_written_replaces_an_older_export_and_leaves_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "final")
    (tmp_path / "final" / "stale.txt").write_text("of the older export")
    (tmp_path / ".final.old").mkdir()
    (tmp_path / ".final.partial").mkdir()
    (tmp_path / ".final.partial" / "junk").write_text("of a writer that was killed")
    write(tmp_path / "final", card="naïve ☃")
    assert os.listdir(tmp_path) == ["final"]
    assert (tmp_path / "final" / "README.md").read_text(encoding="utf-8") == "naïve ☃"
    assert {"junk", "stale.txt"}.isdisjoint(os.listdir(tmp_path / "final"))


class Broken:
    """A tokenizer whose folder cannot be written."""

    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / "tokenizer.json").write_text("{")
        raise OSError(28, "No space left on device")


def test_a_failure_midway_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "final", tokenizer=Broken())
    assert os.listdir(tmp_path) == []


def test_a_failure_midway_leaves_the_older_export(tmp_path: Path) -> None:
    write(tmp_path / "final", card="older")
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "final", tokenizer=Broken())
    assert os.listdir(tmp_path) == ["final"]
    assert (tmp_path / "final" / "README.md").read_text() == "older"


def test_a_failure_to_give_the_name_leaves_the_older_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "final", card="older")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "final")
    assert os.listdir(tmp_path) == ["final"]
    assert (tmp_path / "final" / "README.md").read_text() == "older"


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        with pytest.raises(OSError, match="No space left"):
            write(disk / "final")
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def damaged(kind: str) -> dict[str, Tensor]:
    weights = dict(trained("llama")[0].state_dict())
    name = "model.layers.1.mlp.up_proj.weight"
    if kind == "missing":
        del weights[name]
    elif kind == "too many":
        weights["model.layers.2.mlp.up_proj.weight"] = weights[name]
    elif kind == "of another shape":
        weights[name] = weights[name][1:]
    return weights if kind != "none at all" else {}


@pytest.mark.parametrize("kind", ["missing", "too many", "of another shape", "none at all"])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ModelError, match="the weights do not fit the configuration") as caught:
        write(tmp_path / "final", "llama", weights=damaged(kind))
    if kind != "none at all":
        assert "up_proj" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def card_of(recipe: Recipe, loss: float | None = 1.23456, **info: Any) -> str:
    run = TrainedRun(info.get("id", "unknown"), info.get("step", 20), info.get("provenance", {}))
    return model_card(recipe, prepare(recipe, World(size=2, gpu=False)), run, {} if loss is None else {"loss": loss})


def test_the_card_states_the_standard_error_of_a_metric(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "corpus.jsonl")
    plan, run = prepare(recipe, World(size=1, gpu=False)), TrainedRun("a", 20, {})
    card = model_card(recipe, plan, run, {"loss": 1.23456, "perplexity": 3.4}, {"loss": 0.0321})
    assert "| held-out data | loss 1.2346 ± 0.0321, perplexity 3.4000 on 8 held-out rows |" in card


def test_the_card_has_the_facts_and_a_header_that_the_hub_reads(tmp_path: Path) -> None:
    sources = [
        {"path": "org/set", "config": "en", "revision": "abc123", "weight": 0.7},
        {"source": "python-docs", "weight": 0.3},
    ]
    recipe = tiny_recipe(
        tmp_path / "corpus.jsonl",
        description="What it is for: everything.",
        paper="Radford et al. 2019",
        data={"train": sources},
        cluster={"workers": 2},
    )
    card = card_of(recipe, id="tiny-1", step=15, provenance={"git": "deadbeef", "note": "naïve"})
    empty, header, body = card.split("---\n", 2)
    assert empty == ""
    assert YAML(typ="safe").load(header) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["shardyard", "gpt2"],
        "datasets": ["org/set"],
    }
    for fact in (
        "# tiny\n",
        "What it is for: everything.",
        "| paper | Radford et al. 2019 |",
        "15 of 20 steps of 256 tokens, fp32, ZeRO stage 0, 2 ranks",
        "adamw, peak learning rate 0.003, cosine schedule",
        "loss 1.2346 on 8 held-out rows",
        "| run | tiny-1 |",
        "| tokenizer | bytes, 257 entries |",
        "- org/set (en, abc123), weight 0.7",
        "- embedded corpus python-docs, weight 0.3",
        '"git": "deadbeef"',
    ):
        assert fact in body, fact


def test_the_card_says_what_it_does_not_know(tmp_path: Path) -> None:
    card = card_of(tiny_recipe(tmp_path / "corpus.jsonl"), loss=None)
    assert "| held-out data | not measured |" in card
    assert "| paper | none given |" in card
    assert "20 of 20 steps" in card


def test_auto_tokenizer_loads_the_tokenizer_of_the_run_whatever_the_family(tmp_path: Path) -> None:
    """For qwen2, transformers takes a class that replaces the way in which a text is divided."""
    tokenizer = tiny_wordpiece()
    path = write(tmp_path / "final", "qwen2", tokenizer=tokenizer)
    text = "a model batch. Weight"
    assert AutoTokenizer.from_pretrained(path)(text).input_ids == tokenizer(text).input_ids
    assert "auto_map" not in (write(tmp_path / "llama", "llama") / "tokenizer_config.json").read_text()


def test_the_card_names_the_base_model_the_licence_and_the_limits(tmp_path: Path) -> None:
    write_pretrained(tmp_path / "base", "gpt2")
    recipe = tiny_recipe(
        tmp_path / "corpus.jsonl", license="apache-2.0", model={"pretrained": str(tmp_path / "base"), "config": {}}
    )
    plan = prepare(recipe, World(size=1, gpu=False))
    run = TrainedRun("tiny-1", 20, {}, base="org/name@abc123")
    for adapter in (False, True):
        card = ModelCard(model_card(recipe, plan, run, {"loss": 1.0}, adapter=adapter))
        assert card.data.license == "apache-2.0"
        assert card.data.base_model == "org/name", "the hub resolves it, without the commit"
        assert card.data.to_dict()["base_model_relation"] == ("adapter" if adapter else "finetune")
        assert card.data.library_name == ("peft" if adapter else "transformers")
        assert "| base model | org/name@abc123 |" in card.text
        assert "It reads at most 64 tokens; rows of training had at most 32." in card.text
        assert "not on tasks, for safety, or for bias" in card.text
        assert ('base = AutoModelForCausalLM.from_pretrained("org/name")\nmodel = Peft' in card.text) == adapter
    folder = ModelCard(model_card(recipe, plan, TrainedRun("tiny-1", 20, {}, base="run:other"), {}))
    assert folder.data.base_model is None, "the name of a run is nothing on a hub"
    assert "| base model | run:other |" in folder.text
    assert "- It was not measured." in folder.text
