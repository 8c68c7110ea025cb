"""Distillation on models, against torch's own divergence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from shardyard.data.tokenizers.compare import check_same_tokens
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.errors import ModelError
from shardyard.models.frozen import frozen_causal_lm
from shardyard.objectives.base import Totals
from shardyard.objectives.distillation.loss import make
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.recipe.schema import Distillation
from support.pretrained import write_pretrained

SETTINGS = Distillation(teacher="t", temperature=3.0, weight=0.7)


@pytest.fixture
def models(tmp_path: Path) -> tuple[Any, Any]:
    """Student and teacher, of other families."""
    student, teacher = (
        frozen_causal_lm(
            str(write_pretrained(tmp_path / family, family)),
            vocabulary=257,
            precision="fp32",
            device=torch.device("cpu"),
        )
        for family in ("gpt2", "llama")
    )
    return student.requires_grad_(True), teacher


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(0, 257, (2, 12))
    labels[0, 5:] = -100
    return {
        "input_ids": torch.randint(0, 257, (2, 12)),
        "labels": labels,
        "position_ids": torch.arange(12).expand(2, 12),
    }


def test_both_terms_are_the_papers(models: tuple[Any, Any]) -> None:
    student, teacher = models
    objective, rows = make(ObjectiveInputs(distillation=SETTINGS, frozen=teacher)), batch()
    measured = objective.measure(student, rows)
    inputs = {"input_ids": rows["input_ids"], "position_ids": rows["position_ids"]}
    kept = rows["labels"] != -100
    q, p = (model(**inputs).logits[kept] for model in (student, teacher))
    labels = functional.cross_entropy(q, rows["labels"][kept])
    softened = [(logits / 3.0).log_softmax(-1) for logits in (q, p)]
    divergence = 9.0 * functional.kl_div(*softened, reduction="batchmean", log_target=True)
    counts = objective.counts(rows)
    assert counts == {"labels": 17, "teacher": 17}
    totals = Totals({name: float(loss) for name, loss in measured.losses.items()}, measured.observed, counts)
    assert objective.total(totals) == pytest.approx(float(0.3 * labels + 0.7 * divergence), rel=1e-5)
    metrics = objective.metrics(totals)
    assert metrics["loss_labels"] == pytest.approx(float(labels), rel=1e-5)
    assert metrics["loss_teacher"] == pytest.approx(float(divergence), rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(float(labels)), rel=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(models: tuple[Any, Any]) -> None:
    _, teacher = models
    measured = make(ObjectiveInputs(distillation=SETTINGS, frozen=teacher)).measure(teacher, batch())
    assert float(measured.losses["teacher"]) == pytest.approx(0.0, abs=1e-5)
    assert float(measured.losses["labels"]) > 1


def test_gradients_reach_the_student_alone(models: tuple[Any, Any]) -> None:
    student, teacher = models
    measured = make(ObjectiveInputs(distillation=SETTINGS, frozen=teacher)).measure(student, batch())
    measured.losses["teacher"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for name, parameter in student.named_parameters() if "wpe" not in name)


def teacher_of(folder: Path, vocabulary: int, tokens: int = 257) -> Any:
    return frozen_causal_lm(
        str(write_pretrained(folder, "llama", vocabulary=vocabulary)),
        vocabulary=257,
        tokens=tokens,
        precision="fp32",
        device=torch.device("cpu"),
    )


def test_rows_that_only_pad_a_vocabulary_are_left_out(models: tuple[Any, Any], tmp_path: Path) -> None:
    student, _ = models
    teacher = teacher_of(tmp_path / "padded", 320)
    rows = batch()
    measured = make(ObjectiveInputs(distillation=SETTINGS, frozen=teacher)).measure(student, rows)
    inputs = {"input_ids": rows["input_ids"], "position_ids": rows["position_ids"]}
    kept = rows["labels"] != -100
    q, p = student(**inputs).logits[kept], teacher(**inputs).logits[kept]
    assert (q.shape[-1], p.shape[-1]) == (257, 320)
    softened = [(logits / 3.0).log_softmax(-1) for logits in (q, p[..., :257])]
    expected = 9.0 * functional.kl_div(*softened, reduction="sum", log_target=True)
    assert float(measured.losses["teacher"]) == pytest.approx(float(expected), rel=1e-5)


def test_a_teacher_with_too_few_or_other_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has a vocabulary of 256 entries and the model that is trained one of 257"):
        teacher_of(tmp_path / "small", 256)
    ours = load_tokenizer("bytes")
    check_same_tokens(str(tmp_path / "small"), ours)  # it has no tokenizer of its own
    longer = load_tokenizer("bytes", ["<a>", "<b>"])
    longer.save_pretrained(tmp_path / "longer")
    check_same_tokens(str(tmp_path / "longer"), ours)
    check_same_tokens(str(tmp_path / "longer"), load_tokenizer("bytes", ["<a>"]))
    with pytest.raises(ModelError, match=r"2 of 259 ids stand for other tokens, the first of them 257: '<a>' for the"):
        check_same_tokens(str(tmp_path / "longer"), load_tokenizer("bytes", ["<b>", "<a>"]))
