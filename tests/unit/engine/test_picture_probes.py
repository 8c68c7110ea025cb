"""What the probes of models that read pictures find: answers that are seen too early, padding that changes a row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shardyard.engine import picture_probes
from shardyard.engine.picture_probes import Seen, look_at, probe_pictures
from shardyard.models.probes.narrow import NotNarrowedError, randomise
from shardyard.planning.findings import Findings
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.schema import Recipe
from support.objectives.picture_families import FAMILIES, Tiny, recipe_fields, tiny
from support.objectives.vision_language import write_data


def random_weights(name: str) -> Tiny:
    """Gates of cross-attention begin at zero, and would hide what they pass on."""
    one = tiny(name)
    randomise(one.model)
    return one


@pytest.fixture(scope="module")
def gemma() -> Tiny:
    return random_weights("gemma3")


class Leaking(nn.Module):
    """A model whose logits also depend on what they must not: all tokens of their row, or the size of the batch."""

    def __init__(self, inner: Any, *, ahead: float = 0.0, padding: float = 0.0) -> None:
        super().__init__()
        self.inner, self.ahead, self.padding = inner, ahead, padding

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def forward(self, input_ids: Tensor, **inputs: Any) -> SimpleNamespace:
        logits = self.inner(input_ids=input_ids, **inputs).logits
        seen = self.ahead * input_ids.float().mean(-1)[:, None, None] + self.padding * len(input_ids)
        return SimpleNamespace(logits=logits + seen * torch.arange(logits.shape[-1]))


def test_answers_are_not_seen_and_padding_changes_nothing(gemma: Tiny) -> None:
    seen = look_at(gemma.model, gemma.inputs)
    assert max(seen.ahead, seen.padding) <= seen.tolerance == 1e-5


def test_leaks_are_found(gemma: Tiny) -> None:
    ahead = look_at(Leaking(gemma.model, ahead=1e-3), gemma.inputs)
    assert ahead.ahead > 100 * ahead.tolerance
    padding = look_at(Leaking(gemma.model, padding=1e-3), gemma.inputs)
    assert padding.ahead == 0
    assert padding.padding > 100 * padding.tolerance


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_sees_an_answer_or_its_padding(name: str) -> None:
    one = random_weights(name)
    for model in (one.model.eval(), one.model.train()):  # PaliGemma makes another mask in training
        seen = look_at(model, one.inputs)
        assert max(seen.ahead, seen.padding) <= seen.tolerance, seen


@pytest.fixture
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return parse_recipe(recipe_fields("llava", write_data(tmp_path_factory.mktemp("pictures")), 2))


def without(recipe: Recipe, **probes: bool) -> Recipe:
    model = recipe.model.model_copy(update={"probes": recipe.model.probes.model_copy(update=probes)})
    return recipe.model_copy(update={"model": model})


def test_what_is_found_is_refused_or_told(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_probes, "_of_narrow_copy", lambda _: Seen(0.5, 0.25, 1e-5))
    ((path, refusal),) = probe_pictures(recipe).refusals
    assert path == "model.family"
    assert "llava is not causal" in refusal
    assert "model.probes.causality=false" in refusal
    (notice,) = probe_pictures(without(recipe, causality=False)).notices
    assert "padding is not without effect in llava" in notice
    assert "25.0%" in notice
    assert probe_pictures(without(recipe, causality=False, padding=False)) == Findings()


def test_a_model_that_cannot_be_narrowed_is_told_of(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Recipe) -> Seen:
        raise NotNarrowedError("no narrow copy")

    monkeypatch.setattr(picture_probes, "_of_narrow_copy", refuse)
    (notice,) = probe_pictures(recipe).notices
    assert notice.startswith("the model was not probed: no narrow copy")


def test_a_narrow_copy_of_the_recipes_model_is_probed(recipe: Recipe) -> None:
    assert probe_pictures(recipe) == Findings()


def test_no_hub_is_asked(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_probes, "_of_narrow_copy", lambda _: Seen(0.5, 0.25, 1e-5))
    elsewhere = recipe.model_copy(update={"tokenizer": "org/name"})
    assert probe_pictures(elsewhere) == Findings()
