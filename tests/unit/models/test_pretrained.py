"""Where a recipe starts: names that become paths once, weights that fit, parts that are not trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from shardyard.data.datasets import store
from shardyard.errors import DataError, ModelError, RecipeError, UsageError
from shardyard.launch.run.initial import check_unchanged, for_planning, locate
from shardyard.launch.run.prepare import prepare
from shardyard.models import pretrained
from shardyard.models.build import architecture_config, construct_pretrained
from shardyard.models.pretrained import fingerprint, freeze
from shardyard.optim.groups import parameter_groups
from shardyard.planning.plan import World
from shardyard.recipe.initial_weights import PRETRAINED_CONFIGS, PRETRAINED_FAMILIES
from shardyard.recipe.rules import rules
from shardyard.recipe.schema import Adapter, Model, Recipe
from shardyard.tracking.run.folder import RunFolder
from support.pretrained import write_pretrained
from support.tiny import tiny_recipe

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def recipe_from(pretrained: str, folder: Path, family: str = "gpt2", **sections: Any) -> Recipe:
    corpus = folder / "corpus.jsonl"
    if not corpus.exists():
        corpus.write_text('{"text": "a document"}\n')
    given = tiny_recipe(corpus, family=family, **sections)
    update = {"pretrained": pretrained, "config": {}, "family": family}
    return given.model_copy(update={"model": given.model.model_copy(update=update)})


def run_of(runs: Path, name: str, state: str, *, seed: int = 1) -> RunFolder:
    folder = RunFolder.create(runs, name, "", "")
    folder.update(state=state)
    write_pretrained(folder.final, seed=seed)
    return folder


def findings(recipe: Recipe) -> list[str]:
    return [f"{'.'.join(map(str, path))}: {message}" for path, message in rules.check(recipe)]


def test_a_run_is_the_newest_that_finished(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run_of(runs, "base", "finished", seed=1)
    newest = run_of(runs, "base", "finished", seed=2)
    run_of(runs, "base", "failed", seed=3)
    run_of(runs, "base-other", "finished", seed=4)
    located, found = locate(recipe_from("run:base", tmp_path), runs)
    assert located.model.pretrained == str(newest.final)
    assert found["model.pretrained"] == {
        "name": "run:base",
        "path": str(newest.final),
        "sha256": fingerprint(newest.final),
    }


def test_a_missing_run_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.pretrained: .* `shardyard launch gpt/quickstart` makes one"):
        locate(recipe_from("run:gpt-quickstart", tmp_path), tmp_path / "runs")
    with pytest.raises(UsageError, match="launch a recipe whose name is mine first"):
        locate(recipe_from("run:mine", tmp_path), tmp_path / "runs")


def test_a_prepared_model_that_is_not_here_names_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDYARD_DATA", str(tmp_path / "none"))
    recipe = recipe_from("minilm", tmp_path, family="gpt2")
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"family": "bert"})})
    with pytest.raises(DataError, match="shardyard data prepare minilm"):
        locate(recipe, tmp_path)


def test_a_tokenizer_may_lie_with_a_run(tmp_path: Path) -> None:
    run = run_of(tmp_path / "runs", "base", "finished")
    recipe = recipe_from("run:base", tmp_path).model_copy(update={"tokenizer": "run:base"})
    assert not [finding for finding in findings(recipe) if finding.startswith("tokenizer")]
    assert locate(recipe, tmp_path / "runs")[0].tokenizer == str(run.final)


def adapter_from(pretrained: str, base: str, folder: Path) -> Recipe:
    recipe = recipe_from(base, folder)
    adapter = Adapter(rank=2, targets=["c_attn"], pretrained=pretrained)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"adapter": adapter})})


def test_the_adapter_of_a_run_is_continued_over_the_weights_that_it_adapted(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    base, other = write_pretrained(tmp_path / "base"), write_pretrained(tmp_path / "other", seed=9)
    _, starting = locate(recipe_from(str(base), tmp_path), runs)
    run = RunFolder.create(runs, "tuned", "", "", starting=starting)
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text("{}")
    recipe = adapter_from("run:tuned", str(base), tmp_path)
    with pytest.raises(UsageError, match=r"^model\.adapter\.pretrained: .* has no finished run of the recipe tuned"):
        locate(recipe, runs)
    unfinished = for_planning(recipe, runs).model.adapter
    assert unfinished is not None
    assert unfinished.pretrained is None, "a plan needs no values"
    run.update(state="finished")
    located, found = locate(recipe, runs)
    assert located.model.adapter == Adapter(rank=2, targets=["c_attn"], pretrained=str(run.adapter))
    assert found["model.adapter.pretrained"] == {
        "name": "run:tuned",
        "path": str(run.adapter),
        "sha256": fingerprint(run.adapter),
    }
    assert for_planning(recipe, runs).model.adapter == located.model.adapter
    with pytest.raises(UsageError, match=rf"adapted {base}, and model\.pretrained is {other}, which has other weights"):
        locate(adapter_from("run:tuned", str(other), tmp_path), runs)
    assert not findings(recipe)
    (found_problem,) = findings(adapter_from("minilm", str(base), tmp_path))
    assert found_problem.startswith("model.adapter.pretrained: minilm is a pretrained model, not an adapter")
    (found_problem,) = findings(adapter_from("org/adapter", str(base), tmp_path))
    assert found_problem.startswith("model.adapter.pretrained: no folder 'org/adapter'; give the folder of an adapter")


def test_what_was_found_is_checked_against_the_recipe(tmp_path: Path) -> None:
    run_of(tmp_path / "runs", "base", "finished")
    recipe = recipe_from("run:base", tmp_path, data={"sequence_length": 512})
    with pytest.raises(RecipeError, match="512 tokens are more than the 64 positions"):
        locate(recipe, tmp_path / "runs")


def test_a_resumed_run_begins_with_the_same_weights(tmp_path: Path) -> None:
    start = write_pretrained(tmp_path / "start")
    _, found = locate(recipe_from(str(start), tmp_path), tmp_path)
    folder = RunFolder.create(tmp_path / "runs", "tuned", "", "", starting=found)
    check_unchanged(folder)
    weights = load_file(start / "model.safetensors")
    weights["transformer.ln_f.bias"] += 1e-3
    save_file(weights, start / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"model\.pretrained .* has changed since"):
        check_unchanged(folder)


@pytest.mark.parametrize("name", ["run:gpt-quickstart", "minilm"])
def test_a_recipe_is_planned_before_its_weights_are_here(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDYARD_DATA", str(tmp_path / "none"))
    recipe = recipe_from(name, tmp_path)
    family, parameters = {"minilm": ("bert", 22_700_000), "run:gpt-quickstart": ("gpt2", 859_000)}[name]
    update = {"family": family, "dropout": None}
    recipe = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update=update),
            "tokenizer": "minilm" if name == "minilm" else "bytes",
            "objective": "masked_lm" if name == "minilm" else "causal_lm",
        }
    )
    planned = for_planning(recipe, tmp_path / "runs")
    assert planned.model.pretrained is None
    plan = prepare(planned, World(size=1, gpu=False))
    assert plan.architecture.parameters == pytest.approx(parameters, rel=0.01)
    planned = for_planning(recipe.model_copy(update={"added_tokens": ["<a>", "<b>"]}), tmp_path / "runs")
    longer = prepare(planned, World(size=1, gpu=False)).architecture
    assert longer.vocabulary == plan.architecture.vocabulary + 2


def test_the_known_sizes_of_a_prepared_model_are_its_own() -> None:
    """Where it is prepared: the sizes that plans are made with are those of its configuration."""
    stored = store.data_root() / "minilm" / "config.json"
    if stored.is_file():
        config = json.loads(stored.read_text())
        assert {key: config[key] for key in PRETRAINED_CONFIGS["minilm"]} == PRETRAINED_CONFIGS["minilm"]
        assert config["model_type"] == PRETRAINED_FAMILIES["minilm"]
    assert PRETRAINED_CONFIGS.keys() == PRETRAINED_FAMILIES.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": "run:"}, "model.pretrained: lacks the name of a recipe"),
        ({"pretrained": "digits"}, "model.pretrained: digits is a set of rows"),
        ({"pretrained": "minilm"}, "model.family: is gpt2, but minilm holds a model of type bert"),
        ({"adapter": {"rank": 4}}, "model.adapter: adapts weights that were never trained"),
        (
            {"pretrained": "run:base", "adapter": {}, "freeze": ["*"]},
            "model.freeze: does nothing beside model.adapter",
        ),
    ],
)
def test_contradictions(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "a document"}\n')
    found = findings(tiny_recipe(corpus, model=changes))
    assert any(finding.startswith(message) for finding in found), found


def test_parts_trained_whole_would_change_the_reference_of_preferences(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "a document"}\n')
    model = {"pretrained": "run:base", "adapter": {"modules_to_save": ["lm_head.*"]}}
    assert any(
        text.startswith("model.adapter.modules_to_save: would change the reference model")
        for text in findings(tiny_recipe(corpus, model=model, objective="preference"))
    )


def test_a_folder_of_another_family_is_told(tmp_path: Path) -> None:
    start = write_pretrained(tmp_path / "start", "llama")
    assert any(
        "holds a model of type llama; write llama" in text for text in findings(recipe_from(str(start), tmp_path))
    )


def test_preferences_need_a_model_that_answers(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "a document"}\n')
    found = findings(tiny_recipe(corpus, objective="preference"))
    assert any(text.startswith("model: lacks pretrained") for text in found)


def load(start: Path, family: str, objective: str, **config: Any) -> Any:
    model = Model(family=family, pretrained=str(start), config=config)
    return construct_pretrained(model, architecture_config(model, vocabulary=257), objective, seed=7)


def test_a_new_head_depends_on_the_seed_alone(tmp_path: Path) -> None:
    start = write_pretrained(tmp_path / "start", "bert", objective="masked_lm", **BERT)
    heads = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.rand(seed)
        state = torch.get_rng_state()
        loaded = load(start, "bert", "text_classification", num_labels=5)
        assert torch.equal(torch.get_rng_state(), state)
        heads.append(loaded.model.classifier.weight)
    assert torch.equal(*heads)
    assert heads[0].std() > 0
    assert {"classifier.weight", "classifier.bias"} <= set(loaded.new)
    assert any(name.startswith("cls.") for name in loaded.unused)
    stored = load_file(start / "model.safetensors")
    own = loaded.model.bert.encoder.layer[1].output.dense.weight
    assert torch.equal(own, stored["bert.encoder.layer.1.output.dense.weight"])


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    start = write_pretrained(tmp_path / "start", "gpt2")
    weights = {name: tensor for name, tensor in load_file(start / "model.safetensors").items() if "h." not in name}
    save_file(weights, start / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 24 of the 28 parameters of this gpt2"):
        load(start, "gpt2", "causal_lm")


def test_frozen_parts_get_no_gradient_and_no_optimizer_state(tmp_path: Path) -> None:
    model = load(write_pretrained(tmp_path / "start"), "gpt2", "causal_lm").model
    frozen = freeze(model, ["transformer.wte.*", "transformer.h.0.*"])
    assert len(frozen) == 1 + 12
    trained = {id(p) for group in parameter_groups(model, 0.1) for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name not in frozen), name
        assert (id(parameter) in trained) == (name not in frozen), name


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("transformer.hh.*", "transformer.h.*"),
        ("transformer.h.0.attn.c_atn.weight", "transformer.h.0.attn.c_attn.weight"),
    ],
)
def test_a_pattern_that_matches_nothing_names_the_nearest(pattern: str, near: str, tmp_path: Path) -> None:
    model = load(write_pretrained(tmp_path / "start"), "gpt2", "causal_lm").model
    with pytest.raises(ModelError, match="no parameter is called") as caught:
        freeze(model, [pattern])
    assert repr(near) in str(caught.value)


def test_something_must_be_left_to_train(tmp_path: Path) -> None:
    model = load(write_pretrained(tmp_path / "start"), "gpt2", "causal_lm").model
    with pytest.raises(ModelError, match="nothing is left to train"):
        freeze(model, ["*"])


def test_the_plan_counts_what_is_trained(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "a document"}\n')
    whole = prepare(tiny_recipe(corpus), World(size=1, gpu=False))
    half = prepare(tiny_recipe(corpus, model={"freeze": ["transformer.h.0.*"]}), World(size=1, gpu=False))
    block = 12 * 32 * 32 + 13 * 32
    assert whole.architecture.trainable_parameters is None
    assert half.architecture.trainable_parameters == whole.architecture.parameters - block
    assert whole.memory.optimizer_bytes - half.memory.optimizer_bytes == 8 * block
    assert whole.memory.parameters_bytes == half.memory.parameters_bytes


def test_the_plan_counts_both_answers_and_the_reference(tmp_path: Path) -> None:
    start = str(write_pretrained(tmp_path / "start"))
    one = prepare(recipe_from(start, tmp_path), World(size=1, gpu=False))
    # A plan reads the first rows of local files.
    rows = [{"prompt": f"a{number}", "chosen": f"b{number}", "rejected": "c"} for number in range(100)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = prepare(recipe_from(start, tmp_path, objective="preference"), World(size=1, gpu=False))
    assert pairs.tokens_per_row == 2 * one.tokens_per_row
    assert pairs.flops_per_token == one.flops_per_token
    assert pairs.micro_batch == one.micro_batch
    # Packed rows have a mask besides, which pairs have not.
    seen = recipe_from(start, tmp_path, data={"isolation": "rows"})
    unmasked = prepare(seen, World(size=1, gpu=False)).memory.activations_bytes
    assert one.memory.activations_bytes > unmasked
    assert pairs.memory.activations_bytes == pytest.approx(2 * unmasked, rel=0.05)
    assert pairs.memory.logits_bytes == 2 * one.memory.logits_bytes
    assert pairs.memory.parameters_bytes == 2 * one.memory.parameters_bytes


def test_the_commit_of_a_hub_id_is_that_of_what_was_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "models--team--model"
    for commit in ("a" * 40, "b" * 40):
        (cache / "snapshots" / commit).mkdir(parents=True)
        (cache / "snapshots" / commit / "config.json").write_text("{}")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    (cache / "refs" / "v2").write_text("b" * 40)
    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "pretrained_config", asked.append)
    assert pretrained.hub_commit("team/model") == "a" * 40
    assert pretrained.hub_commit("team/model@v2") == "b" * 40
    assert pretrained.hub_commit(str(tmp_path)) is None
    assert asked == ["team/model", "team/model@v2", str(tmp_path)]
