"""The probes of a recipe's model: what they find in families that are known to behave so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import AutoConfig

from shardyard.models.build import architecture_config
from shardyard.models.probes import probe
from shardyard.models.probes.causality import look_ahead
from shardyard.models.probes.documents import find_isolation, leak
from shardyard.models.probes.narrow import NotNarrowedError, narrow_model
from shardyard.models.probes.padding import padding_leak
from shardyard.models.probes.tokens import TOLERANCE, tolerance_of
from shardyard.models.probes.training import is_untied, randomness, without_gradient
from shardyard.planning.findings import Findings
from shardyard.recipe.schema import Recipe
from support.tiny import tiny_recipe

IDS = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": SMALL,
    "llama": SMALL,
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
}


def found(family: str, *, config: dict[str, Any] | None = None, **sections: Any) -> Findings:
    model = {"family": family, "config": config or CONFIGS[family], **sections.pop("model", {})}
    recipe = tiny_recipe(Path("unread"), model=model, **sections)
    return probe.probe_recipe(recipe, config_of(recipe))


def config_of(recipe: Recipe) -> Any:
    return architecture_config(recipe.model, vocabulary=257, special_tokens=IDS)


@pytest.mark.parametrize(
    ("family", "isolation"),
    [
        ("llama", "positions"),
        ("gpt2", "positions"),
        ("falcon", "mask"),
        ("opt", "mask"),
        ("bloom", "rows"),
        ("mamba", "rows"),
    ],
)
def test_the_first_way_that_isolates_is_taken(family: str, isolation: str) -> None:
    findings = found(family)
    assert findings.isolation == isolation
    assert not findings.refusals
    assert not findings.decoder
    assert ("positions: logits differ" in findings.isolation_why) == (isolation != "positions")


def test_layers_with_windows_get_masks_of_their_own() -> None:
    """gpt_oss alternates layers with and without a window; a mask without it would show tokens outside of it."""
    config = {**SMALL, "head_dim": 16, "num_key_value_heads": 1, "num_local_experts": 2, "sliding_window": 16}
    assert found("gpt_oss", config=config).isolation == "mask"


def test_attention_that_a_family_lacks_is_refused_by_the_plan() -> None:
    config = {**SMALL, "head_dim": 16, "num_key_value_heads": 1, "num_local_experts": 2}
    ((path, refusal),) = found("gpt_oss", config=config, model={"attention": "sdpa"}).refusals
    assert path == "model.attention"
    assert "transformers computes gpt_oss in another way than sdpa; leave it out" in refusal
    assert found("gpt_oss", config=config, model={"attention": "eager"}).refusals == ()


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_encoder_becomes_a_decoder_for_a_causal_objective(family: str) -> None:
    findings = found(family)
    assert findings.decoder
    assert findings.isolation == "mask"
    assert findings.notices[0].startswith("is_decoder is set")


def test_a_family_that_is_never_causal_is_refused() -> None:
    ((path, refusal),) = found("xlnet").refusals
    assert path == "model.family"
    assert "xlnet is not causal" in refusal
    assert "model.probes.causality=false" in refusal
    assert "`-s model.config.attn_type=uni` makes it causal" in refusal
    assert found("xlnet", config={**CONFIGS["xlnet"], "attn_type": "uni"}).refusals == ()


def test_is_decoder_of_the_recipe_is_not_overridden() -> None:
    ((_, refusal),) = found("bert", config={**SMALL, "is_decoder": False}).refusals
    assert "bert is not causal" in refusal


def test_each_probe_can_be_turned_off() -> None:
    findings = found("bert", model={"probes": {"causality": False, "isolation": False}})
    assert findings == Findings()


def test_documents_that_may_see_each_other_are_not_probed() -> None:
    assert found("mamba", data={"isolate_documents": False}).isolation is None


def test_what_cannot_be_narrowed_gets_rows_of_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotNarrowedError("no narrow copy")

    monkeypatch.setattr(probe, "narrow_model", refuse)
    findings = found("llama")
    assert findings.isolation == "rows"
    (notice,) = findings.notices
    assert notice == "the model was not probed: no narrow copy; whether a token sees those after it is not known"


def narrow(family: str, auto: str = "AutoModelForCausalLM", **config: Any) -> Any:
    recipe = tiny_recipe(Path("unread"), model={"family": family, "config": {**CONFIGS[family], **config}})
    return narrow_model(config_of(recipe), auto).model


def test_a_way_must_isolate_in_the_teacher_too() -> None:
    assert find_isolation([narrow("llama"), narrow("opt")]).isolation == "mask"


def test_leaks_are_as_large_as_they_are() -> None:
    opt = narrow("opt")
    assert leak(opt, "positions") > 0.01
    assert leak(opt, "mask") < TOLERANCE
    assert look_ahead(opt) < TOLERANCE
    assert look_ahead(narrow("bert")) > 0.001


def test_padding_is_without_effect_where_it_is_masked() -> None:
    assert padding_leak(narrow("bert", "AutoModelForMaskedLM")) < TOLERANCE
    assert padding_leak(narrow("bert", "AutoModelForSequenceClassification")) < TOLERANCE


def test_dropout_is_where_it_was_asked_for() -> None:
    gpt2 = {"objective": "causal_lm"}
    assert not found("gpt2", model={"dropout": 0.1}, **gpt2).notices
    assert not found("gpt2", model={"dropout": 0.0}, **gpt2).notices
    assert found("mamba", model={"dropout": 0.1}).notices == ("model.dropout 0.1 has no effect: mamba has no dropout",)
    assert randomness(narrow("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)) == 0


def test_weights_that_should_be_tied_are_seen() -> None:
    model = narrow("gpt2")
    assert not is_untied(model)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    assert is_untied(model)


def test_weights_without_a_gradient_are_listed() -> None:
    model = narrow("llama")
    assert without_gradient(model) == []
    model.unused = nn.Linear(2, 2)
    assert without_gradient(model) == ["unused.weight", "unused.bias"]


def test_padding_that_changes_logits_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "padding_leak", lambda _: 0.25)
    (notice,) = found("bert", objective="masked_lm").notices
    assert "padding is not without effect in bert" in notice
    assert "25.0%" in notice


def test_rounding_in_a_deep_model_is_no_leak() -> None:
    """Gemma 4 has a kind of layer that comes last, so its copy has all 30 layers, which multiply rounding."""
    model = narrow_model(AutoConfig.for_model("gemma4_text")).model
    assert TOLERANCE < leak(model, "positions") < tolerance_of(model)
    assert find_isolation([model]).isolation == "positions"
    assert tolerance_of(narrow("llama")) == TOLERANCE


def test_tables_smaller_than_a_probe_are_no_hindrance() -> None:
    small = {**CONFIGS["gpt2"], "n_positions": 8, "vocab_size": 257}
    assert found("gpt2", config=small, data={"sequence_length": 8}).isolation == "positions"


def test_a_family_that_refuses_plain_tokens_is_not_tried() -> None:
    """BART classifies at its end token, which the tokens of the probe lack."""
    config = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    assert found("bart", config=config, objective="text_classification").refusals == ()
