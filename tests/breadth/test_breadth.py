"""A sample of the matrix: one cell of each kind of repair; `make breadth` runs all of them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from breadth import axes, dry_runs
from breadth.matrix import Cell, cells, in_short, objectives, run
from shardyard.objectives import registry

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE = (
    Cell("causal_lm", "openai-gpt"),  # weights that the constructor sets alone
    Cell("causal_lm", "xlstm"),  # a rule that reads the model around a module
    Cell("image_classification", "bit"),  # values in a constructor under ZeRO-3
    Cell("text_classification", "bart"),  # values on the meta device, an end token
    Cell("text_classification", "qwen2"),  # a tokenizer that transformers replaces
    Cell("seq2seq", "m2m_100"),  # positions counted from the padding
    Cell("causal_lm", "emu3"),  # a part of a family, exported as the family
    Cell("masked_image", "swin"),  # another head of the objective
    Cell("contrastive", "siglip2"),  # a configuration written by hand
    Cell("embedding", "t5"),  # a short cell
)


@pytest.mark.slow
def test_a_sample_of_the_matrix_passes(tmp_path: Path) -> None:
    results = list(run(SAMPLE, tmp_path / "results.jsonl", jobs=2, logs=tmp_path / "logs"))
    assert {(one["objective"], one["family"]) for one in results} == {(one.objective, one.family) for one in SAMPLE}
    assert not [one for one in results if one["status"] != "passed"]
    assert (tmp_path / "results.jsonl").read_text().count("\n") == len(SAMPLE)


def test_the_matrix_has_every_head_and_every_family_of_it() -> None:
    named = objectives()
    assert set(registry.OBJECTIVES) - set(named) == {"instruction", "preference", "distillation"}, "as causal_lm"
    assert {name for name in named if in_short(name)} == {
        "multi_label_classification",
        "text_regression",
        "reranker",
        "embedding",
    }
    assert len(cells(["causal_lm"])) > 150
    assert cells(named, ["t5"]) == [Cell(one, "t5") for one in named if Cell(one, "t5") in cells([one])]


def test_the_page_of_families_is_written_from_the_results() -> None:
    writer = runpy.run_path(str(REPOSITORY / "docs" / "develop" / "write_families.py"))
    written = writer["page"](*writer["read"]())
    assert writer["PAGE"].read_text(encoding="utf-8") == written, (
        "`python docs/develop/write_families.py` writes it anew"
    )


def test_the_page_of_axes_is_written_from_results_of_every_family_that_agree_with_one_rank() -> None:
    kept = json.loads(axes.RESULTS.read_text(encoding="utf-8"))
    assert axes.PAGE.read_text(encoding="utf-8") == axes.page(kept), "`make breadth` writes it anew"
    assert {(one["axis"], one["family"], one["stage"]) for one in kept["cases"]} == set(axes.cases())
    assert [one for one in kept["cases"] if not one["difference"] < axes.MOST] == []


def test_the_table_of_dry_runs_is_written_from_the_results_and_the_large_recipes_agree() -> None:
    kept = dry_runs.read()
    text = dry_runs.PAGE.read_text(encoding="utf-8")
    assert text == dry_runs.page(text, list(kept.values())), "`python -m breadth.dry_runs --page` writes it anew"
    assert set(kept) <= set(dry_runs.names())
    large = ("finetune/llama3-8b-sft", "gpt/llama2-70b", "gpt/gpt3-175b", "moe/deepseek-v3")
    assert {name: kept[name].agrees for name in large} == dict.fromkeys(large, True)
