"""What `validate` says of encoders under causal objectives, without building a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from shardyard.cli.main import run
from shardyard.recipe.rules.causality import ENCODERS, NOT_CAUSAL

FOUND = Path(__file__).parents[2] / "breadth" / "isolation.jsonl"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.yaml"
    path.write_text(
        "name: encoder\nmodel: {family: bert}\n"
        "data: {sequence_length: 64, train: [{source: python-docs}], validation: [{source: python-docs}]}\n"
        "train: {steps: 3, global_batch: 4}\noptimizer: {lr: 1e-3}\n"
    )
    return path


def test_the_names_are_those_that_the_probes_found() -> None:
    lines = [json.loads(line) for line in FOUND.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["version"] == transformers.__version__]
    if not lines:
        pytest.skip("the families of this version of transformers were not probed")
    assert {line["family"] for line in lines if line["findings"]["decoder"]} == ENCODERS
    assert {line["family"] for line in lines if line["findings"]["refusals"]} == NOT_CAUSAL.keys()


def test_an_encoder_is_noted(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", str(recipe)]) == 0
    assert "note: bert is an encoder" in capsys.readouterr().out
    for given in ("model.config.is_decoder=true", "model.probes.causality=false", "model.family=gpt2"):
        assert run(["validate", str(recipe), "-s", given]) == 0
        assert "note:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("family", "causal"), [("xlnet", "model.config.attn_type=uni"), ("xlm", "model.config.causal=true"), ("cpmant", "")]
)
def test_a_family_that_is_not_causal_is_refused_with_what_makes_it_so(
    family: str, causal: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["validate", str(recipe), "-s", f"model.family={family}"]
    assert run(given) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"{family} is not causal: a token sees those after it" in told
    assert (f"`-s {causal}` makes it causal" in told) == bool(causal)
    if causal:
        assert run([*given, "-s", causal]) == 0
    assert run([*given, "-s", "model.probes.causality=false"]) == 0


def test_an_encoder_without_the_head_is_told_what_it_is_trained_for(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["validate", str(recipe), "-s", "model.family=distilbert"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "Shardyard trains it for" in told
    assert "masked_lm" in told
