"""Findings of probes: remembered, applied to recipes, and refused or told by plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config

from shardyard.engine import findings
from shardyard.errors import RecipeError
from shardyard.launch.run.prepare import as_before, prepare
from shardyard.models.build import architecture_config
from shardyard.planning.findings import Findings, with_findings
from shardyard.planning.plan import RunPlan, World, fixed, make_plan
from shardyard.planning.plan_text import as_dict, from_dict, resolved_text, rows
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder
from support.tiny import tiny_recipe

WORLD = World(size=1, gpu=False)
OPT = {
    "family": "opt",
    "config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    },
    "dropout": None,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "probed"


def opt(**sections: Any) -> Recipe:
    return tiny_recipe(Path("unread"), model=OPT, **sections)


def plan_with(found: Findings, recipe: Recipe) -> RunPlan:
    measured = prepare(tiny_recipe(Path("unread")), WORLD).architecture
    return make_plan(recipe, replace(measured, findings=found), WORLD)


def test_findings_are_remembered(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = opt()
    config = architecture_config(recipe.model, vocabulary=257, special_tokens={"pad_token_id": 0})
    first = findings.find(recipe, config)
    assert first.isolation == "mask"
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(findings, "probe_recipe", lambda *_: pytest.fail("probed again"))
    assert findings.find(recipe, config) == first


def test_a_plan_fixes_what_isolates() -> None:
    recipe = opt()
    plan = prepare(recipe, WORLD)
    assert plan.isolation == "mask"
    assert "positions: logits differ" in plan.reasons["isolation"]
    assert fixed(recipe, plan).data.isolation == "mask"
    assert "  isolation: mask\n" in resolved_text(recipe, plan)
    assert any(row[:2] == ("isolation", "mask") for row in rows(plan))
    assert from_dict(as_dict(plan)) == plan
    again = prepare(fixed(recipe, plan), WORLD)
    assert (again.isolation, again.reasons["isolation"]) == ("mask", "given by data.isolation")


def test_the_usual_way_is_not_told() -> None:
    plan = plan_with(Findings("positions", "fine"), tiny_recipe(Path("unread")))
    assert plan.isolation == "positions"
    assert not any(row[0] == "isolation" for row in rows(plan))


def test_a_mask_takes_memory() -> None:
    recipe = tiny_recipe(Path("unread"))
    usual, masked = (plan_with(Findings(way, "why"), recipe).memory for way in ("positions", "mask"))
    mask = 8 * 32 * 32 * 4  # 8 rows of 32 × 32 numbers in fp32
    bare = tiny_recipe(Path("unread"), model={"attention": "varlen"})
    without = plan_with(Findings("positions", "why"), bare).memory
    assert masked.activations_bytes - without.activations_bytes == mask
    # transformers' own mask is stored by each of two layers; the backward pass begins when the larger logits are gone.
    assert usual.activations_bytes - without.activations_bytes == 2 * mask


def test_a_way_that_leaks_is_told_if_it_was_given() -> None:
    plan = plan_with(Findings("mask", "positions: leaks"), tiny_recipe(Path("unread"), data={"isolation": "positions"}))
    assert plan.isolation == "positions"
    assert plan.reasons["isolation"] == "given by data.isolation, but documents see each other (positions: leaks)"
    assert any(row[0] == "isolation" for row in rows(plan))


def test_where_nothing_isolates_the_recipe_is_refused() -> None:
    nothing = Findings(None, "rows: leaks")
    with pytest.raises(RecipeError, match=r"data.isolate_documents: nothing keeps .* apart in gpt2 \(rows: leaks\)"):
        plan_with(nothing, tiny_recipe(Path("unread")))
    assert plan_with(nothing, tiny_recipe(Path("unread"), data={"isolate_documents": False})).isolation is None


def test_refusals_name_their_field() -> None:
    with pytest.raises(RecipeError, match=r"model\.family: it is not causal"):
        plan_with(Findings(refusals=(("model.family", "it is not causal"),)), tiny_recipe(Path("unread")))


def test_a_decoder_is_recorded_in_the_configuration() -> None:
    recipe = with_findings(tiny_recipe(Path("unread")), Findings(decoder=True))
    assert recipe.model.config["is_decoder"] is True


def test_a_teacher_with_fewer_tokens_is_refused(tmp_path: Path) -> None:
    GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=100).save_pretrained(tmp_path / "teacher")
    sections = {"objective": "distillation", "distillation": {"teacher": str(tmp_path / "teacher")}}
    with pytest.raises(RecipeError, match=r"distillation\.teacher: .*teacher has a vocabulary of 100 entries"):
        prepare(tiny_recipe(Path("unread"), **sections), WORLD)
    off = {"model": {"probes": {"vocabulary": False, "isolation": False}}}
    assert prepare(tiny_recipe(Path("unread"), **sections, **off), WORLD).steps == 20


def test_a_run_from_before_goes_on_as_it_began(tmp_path: Path) -> None:
    text = resolved_text(opt(), prepare(opt(), WORLD))
    folder = RunFolder.create(tmp_path, "run", text, text, world_size=1, total_steps=1)
    assert as_before(folder) == ()
    earlier = "\n".join(line for line in text.splitlines() if not line.startswith("    tokenizer:"))
    folder.resolved.write_text(earlier, encoding="utf-8")
    assert as_before(folder) == ("model.probes.tokenizer=false",)
    before = "\n".join(line for line in text.splitlines() if not line.startswith("  isolation:"))
    folder.resolved.write_text(before, encoding="utf-8")
    assert as_before(folder) == ("data.isolation=positions", "model.probes.causality=false")
    for broken in ("", "- a list", "data: [", "name: x"):
        folder.resolved.write_text(broken, encoding="utf-8")
        assert as_before(folder) == ()
    assert parse_recipe({**opt().model_dump(mode="json")}).data.isolation == "auto"
