"""What is read from the sources of transformers agrees with transformers itself."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from shardyard import hardware
from shardyard.objectives.registry import objective_spec
from shardyard.recipe import families
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.model import model_rules
from support.waiting import PATIENCE_SECONDS


def test_the_causal_families_are_those_of_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert families.families_with(objective_spec("causal_lm")) == frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_the_activations_are_those_of_transformers() -> None:
    from transformers.activations import ACT2CLS

    assert families.activation_names() == frozenset(ACT2CLS)


@pytest.mark.parametrize(
    ("family", "positions"), [("gpt2", 1024), ("llama", 2048), ("mixtral", 131072), ("gpt_neox", 2048), ("bloom", None)]
)
def test_positions_are_found_under_their_standard_name(family: str, positions: int | None) -> None:
    assert families.config_value(family, {}, "max_position_embeddings") == positions


def test_the_recipes_own_value_wins_under_either_name() -> None:
    assert families.config_value("gpt2", {"n_positions": 64}, "max_position_embeddings") == 64
    assert families.config_value("gpt2", {"max_position_embeddings": 32}, "max_position_embeddings") == 32
    assert families.config_value("no-such-family", {"hidden_size": 8}, "hidden_size") == 8
    assert families.config_value("no-such-family", {}, "hidden_size") is None


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen2", "qwen3_moe", "opt", "gpt_neox", "phi", "bert"])
def test_names_and_defaults_agree_with_the_configuration_class(family: str) -> None:
    from transformers import AutoConfig

    fields = families.config_fields(family)
    assert fields is not None
    real = AutoConfig.for_model(family)
    declared = {field.name for field in dataclasses.fields(real) if not field.name.startswith("_")}
    assert declared <= fields.names
    assert dict(fields.attribute_map) == type(real).attribute_map
    for standard in (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "vocab_size",
    ):
        assert families.config_value(family, {}, standard) == getattr(real, standard), standard


def test_nearly_every_family_is_understood() -> None:
    understood = [
        name for name in families.families_with(objective_spec("causal_lm")) if families.config_fields(name) is not None
    ]
    assert len(understood) >= 0.95 * len(families.families_with(objective_spec("causal_lm")))


def test_inherited_fields_come_from_the_base_class() -> None:
    fields = families.config_fields("gpt2")
    assert fields is not None
    assert "chunk_size_feed_forward" in fields.names
    assert "rope_theta" in fields.names
    assert "cache_dir" not in fields.names
    assert fields.kinds["n_inner"] == {"int", "None"}


def test_reading_is_fast_and_imports_nothing() -> None:
    script = (
        "import sys, time\nfrom shardyard.recipe import families\n"
        "from shardyard.objectives.registry import objective_spec\nstart = time.process_time()\n"
        "families.families_with(objective_spec('causal_lm'))\n"
        "families.config_fields('llama'), families.activation_names()\n"
        "print(time.process_time() - start, [m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    )
    seconds, modules = done.stdout.split(maxsplit=1)
    assert modules.strip() == "[]"
    assert float(seconds) < 1.0


@pytest.mark.parametrize(
    ("cpuinfo", "fp16"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512_fp16 amx_tile\n", True),
        ("flags\t\t: fpu amx_fp16\n", True),
        ("flags\t\t: fpu avx2 f16c avx512_bf16\n", False),
        ("Features\t: fp asimd fphp asimdhp\n", True),
        ("", None),
        ("processor : 0\n", None),
    ],
)
def test_fp16_arithmetic_is_read_from_the_text_of_cpuinfo(cpuinfo: str, fp16: bool | None) -> None:
    assert hardware.computes_fp16(cpuinfo) is fp16


def test_this_machine_is_read_without_error() -> None:
    assert isinstance(hardware.read_cpuinfo(), str)
    assert hardware.has_gpu() is any(Path("/dev").glob("nvidia[0-9]*"))


@pytest.mark.parametrize(
    ("objective", "family", "text"),
    [
        (
            "masked_image",
            "videomae",
            "Shardyard does not train videomae for masked_image yet; it trains ",
        ),
        ("seq2seq", "qwen2_audio", "seq2seq trains encoder–decoders, and 'qwen2_audio' is none; it trains bart, "),
        (
            "causal_lm",
            "vit",
            "transformers has 'vit', but without the AutoModelForCausalLM that causal_lm needs, and Shardyard ",
        ),
        ("causal_lm", "gtp2", "transformers has no model of type 'gtp2' for the objective causal_lm; did you mean 'gp"),
    ],
)
def test_a_refusal_names_what_is_missing_and_where(objective: str, family: str, text: str) -> None:
    fields = {"objective": objective, "model": {"family": family}, "data": {"train": [{"path": "x"}]}, "name": "x"}
    training = {"train": {"steps": 1, "global_batch": 2}, "optimizer": {"name": "adamw", "lr": 1e-3}}
    findings = dict(model_rules(parse_recipe({**fields, **training})))
    assert text in findings["model", "family"]


def test_a_sequence_is_turned_into_another_by_encoder_decoders() -> None:
    from transformers import AutoConfig

    supported = families.families_with(objective_spec("seq2seq"))
    assert {"bart", "t5", "marian"} < supported
    assert all(AutoConfig.for_model(name).is_encoder_decoder for name in sorted(supported))
