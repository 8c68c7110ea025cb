"""The z-loss against its formula, for every objective with a vocabulary: whole logits, parts of them, memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
)

from shardyard.errors import ModelError
from shardyard.objectives.base import IGNORED, Z_LOSS, Measured, Objective, Tensors, Totals
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.losses import cross_entropy
from shardyard.objectives.make import make_objective
from shardyard.objectives.registry import specs
from shardyard.objectives.routing import num_experts
from shardyard.objectives.z_loss import each_z_loss, with_z_loss
from shardyard.planning.plan import World, make_plan
from shardyard.planning.plan_text import rows as plan_rows
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.rules import check
from shardyard.recipe.schema import Audio, Experts, Loss
from support.measured import GPT2
from support.tiny import CONFIGS

VOCABULARY, ROWS, LENGTH, WEIGHT = 199, 3, 11, 0.03
SIZES = {
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
MODELS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "causal_lm": (AutoModelForCausalLM, "gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}),
    "masked_lm": (AutoModelForMaskedLM, "bert", SIZES),
    "bert_pretraining": (AutoModelForPreTraining, "bert", SIZES),
    "seq2seq": (
        AutoModelForSeq2SeqLM,
        "t5",
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0},
    ),
}
for name in ("instruction", "preference", "distillation"):
    MODELS[name] = MODELS["causal_lm"]


def model_of(objective: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    auto, family, sizes = MODELS[objective]
    torch.manual_seed(seed)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = auto.from_config(AutoConfig.for_model(family, vocab_size=VOCABULARY, **tokens, **sizes)).to(dtype)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(5)  # so that log Z is not nearly the same for all tokens
    return model.train()


def batch_of(objective: str) -> Tensors:
    generator = torch.Generator().manual_seed(1)

    def tokens() -> Tensor:
        return torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=generator)

    def labels() -> Tensor:
        return torch.where(torch.rand(ROWS, LENGTH, generator=generator) < 0.4, IGNORED, tokens())

    positions = torch.arange(LENGTH).expand(ROWS, LENGTH)
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    found = {"input_ids": tokens(), "labels": labels()}
    if objective in ("causal_lm", "distillation"):
        return found | {"position_ids": positions}
    if objective == "instruction":
        return found | {"target_weights": torch.rand(ROWS, LENGTH, generator=generator) + 0.1}
    if objective == "bert_pretraining":
        return found | {"next_sentence_label": torch.tensor([0, 1, 1])}
    if objective == "seq2seq":
        return found | {"attention_mask": mask, "decoder_input_ids": tokens()}
    if objective == "preference":
        return {
            f"{answer}_{name}": value
            for answer in ("chosen", "rejected")
            for name, value in {"input_ids": tokens(), "attention_mask": mask, "labels": labels()}.items()
        }
    return found


def make(objective: str, z_loss: float, **more: Any) -> Objective:
    frozen = model_of(objective, seed=9).eval() if objective in ("preference", "distillation") else None
    loss = Loss(z_loss=z_loss, **({"label_smoothing": 0.1} if objective in SMOOTHED else {}))
    return make_objective(objective, ObjectiveInputs(loss=loss, sequence_length=LENGTH, frozen=frozen, **more))


SMOOTHED = ("causal_lm", "masked_lm", "seq2seq", "instruction")


def mean_of(objective: Objective, measured: Measured, batch: Tensors) -> Tensor:
    """The weighted sum of the means, as the engine makes it."""
    counts = objective.counts(batch)
    return torch.stack([w * measured.losses[term] / counts[term] for term, w in objective.weights.items()]).sum()


def expected(objective: str, model: Any, batch: Tensors) -> tuple[Tensor, Tensor]:
    """The loss without z-loss, and the mean of (log Z)² by its formula, from logits that a hook takes."""
    taken: list[Any] = []
    hook = model.register_forward_hook(lambda module, given, output: taken.append(output))
    plain = make(objective, 0.0)
    loss = mean_of(plain, plain.measure(model, batch), batch)
    hook.remove()
    logits = taken[0]["prediction_logits" if objective == "bert_pretraining" else "logits"]
    names = ("chosen_labels", "rejected_labels") if objective == "preference" else ("labels",)
    labels = torch.cat([batch[name] for name in names])
    kept = labels != IGNORED
    weights = batch["target_weights"][kept].double() if "target_weights" in batch else torch.ones(int(kept.sum()))
    squares = logits[kept].exp().sum(-1).log() ** 2
    return loss, (squares * weights).sum() / weights.sum()


@pytest.mark.parametrize("chunk", [0, 4])
@pytest.mark.parametrize("objective", MODELS)
def test_losses_and_gradients_are_those_of_the_formula(objective: str, chunk: int) -> None:
    model, batch = model_of(objective), batch_of(objective)
    loss, squares = expected(objective, model, batch)
    (loss + WEIGHT * squares).backward()
    wanted = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    made = make(objective, WEIGHT, logits_chunk=chunk)
    measured, counts = made.measure(model, batch), made.counts(batch)
    found = mean_of(made, measured, batch)
    assert found.item() == pytest.approx(loss.item() + WEIGHT * squares.item(), rel=1e-12)
    found.backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, wanted[name], rtol=1e-9, atol=1e-12, msg=name)
    totals = Totals({name: value.item() for name, value in measured.losses.items()}, measured.observed, counts)
    metrics = made.train_metrics(totals)
    assert metrics["train/z_loss"] == pytest.approx(squares.item(), rel=1e-12)
    # The losses without it have a metric too.
    others = [value for name, value in metrics.items() if "loss_" in name] or [metrics[ALONE[objective]]]
    weights = [weight for term, weight in made.weights.items() if term != Z_LOSS]
    assert sum(w * one for w, one in zip(weights, others, strict=True)) == pytest.approx(loss.item(), rel=1e-9)


ALONE = dict.fromkeys(SMOOTHED, "train/cross_entropy") | {"preference": "train/dpo"}


def test_every_objective_with_a_vocabulary_has_it() -> None:
    # vision_language has the loss of instruction, speech_to_text that of seq2seq.
    others = {"vision_language", "speech_to_text"}
    assert {spec.name for spec in specs() if spec.vocabulary} == set(MODELS) | others


@pytest.mark.parametrize("objective", MODELS)
def test_evaluations_leave_it_out(objective: str) -> None:
    model, batch = model_of(objective).eval(), batch_of(objective)
    with torch.no_grad():
        losses = make(objective, WEIGHT).measure(model, batch).losses
        plain = make(objective, 0.0).measure(model, batch).losses
    assert losses.pop(Z_LOSS) == 0
    assert losses == plain


def test_beside_ctc_it_is_that_of_the_decoder() -> None:
    """The loss of a decoder alone is what remains without the others."""
    totals = Totals({"loss": 30.0, Z_LOSS: 50.0}, {"ctc": torch.tensor(40.0)}, {"loss": 10.0, Z_LOSS: 10.0})
    inputs = ObjectiveInputs(
        audio=Audio(ctc=0.5), loss=Loss(z_loss=WEIGHT), sequence_length=LENGTH, tokenizer=torch.nn.Module()
    )
    inputs.tokenizer.eos_token_id = 0
    found = make_objective("speech_to_text", inputs).train_metrics(totals)
    assert found == {"train/ctc_loss": 4.0, "train/z_loss": 5.0, "train/cross_entropy": 1.0}


def test_routers_have_a_z_loss_of_their_own() -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("mixtral", vocab_size=VOCABULARY, **CONFIGS["mixtral"])
    model, batch = AutoModelForCausalLM.from_config(config).train(), batch_of("causal_lm")
    assert num_experts(config)
    inputs = ObjectiveInputs(loss=Loss(z_loss=WEIGHT), experts=Experts(z_loss=0.5), model=config)
    made = make_objective("causal_lm", inputs)
    measured, counts = made.measure(model, batch), made.counts(batch)
    totals = Totals({name: value.item() for name, value in measured.losses.items()}, measured.observed, counts)
    found = made.train_metrics(totals)
    whole = found["train/cross_entropy"] + WEIGHT * found["train/z_loss"] + 0.5 * found["moe/z_loss"]
    assert made.total(totals) == pytest.approx(whole, rel=1e-9)
    assert found["train/z_loss"] == pytest.approx(math.log(VOCABULARY) ** 2, rel=0.05)
    assert found["moe/z_loss"] == pytest.approx(math.log(num_experts(config)) ** 2, rel=0.2)


def logits_of(dtype: torch.dtype, factor: float = 1.0, rows: int = 6) -> Tensor:
    made = torch.randn(rows, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (made * factor).to(dtype).requires_grad_()


LABELS = torch.tensor([1, 2, IGNORED, 4, IGNORED, 0])


def test_the_gradient_is_that_of_the_value() -> None:
    weights = torch.rand(6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: each_z_loss(x, LABELS, weights=weights), [logits_of(torch.float64)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_gradients_are_added_up_before_they_are_rounded(dtype: torch.dtype) -> None:
    narrow = logits_of(dtype, 3.0)
    wide = narrow.detach().double().requires_grad_()
    for logits in (narrow, wide):
        found = with_z_loss(cross_entropy, logits, LABELS)
        (found[0] + WEIGHT * found[1]).backward()
    assert found[1].item() == pytest.approx(each_z_loss(narrow, LABELS).sum().item(), rel=1e-5)
    # One rounding, of half a unit in the last place.
    assert torch.allclose(narrow.grad.double(), wide.grad, rtol=torch.finfo(dtype).eps / 2 * 1.01, atol=1e-7)


@pytest.mark.parametrize("factor", [1e4, 1e-4, 0.0])
def test_extreme_logits_have_finite_losses_and_gradients(factor: float) -> None:
    logits = logits_of(torch.float32, factor)
    found = each_z_loss(logits, LABELS)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(logits.grad).all()
    assert torch.count_nonzero(logits.grad[LABELS == IGNORED]) == 0


class _Largest(TorchDispatchMode):
    """The most numbers that a tensor had."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize("objective", MODELS)
def test_no_tensor_holds_more_logits_than_asked_for(objective: str) -> None:
    model, batch = model_of(objective), batch_of(objective)
    made = make(objective, WEIGHT, logits_chunk=16)
    with _Largest() as largest:
        mean_of(made, made.measure(model, batch), batch).backward()
    assert largest.numbers < ROWS * LENGTH * VOCABULARY


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes of all tensors that a backward pass will read."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    del result
    return sum(kept.values())


def test_whole_logits_are_kept_once_more_for_nothing() -> None:
    """The plan counts the logits in the model's precision, and in fp32; the z-loss adds numbers of tokens alone."""
    torch.manual_seed(0)
    hidden, layer = torch.randn(64, 8, dtype=torch.bfloat16), nn.Linear(8, 500, dtype=torch.bfloat16)
    labels = torch.randint(0, 500, (64,))
    logits = layer(hidden)
    alone = kept_bytes(lambda: cross_entropy(logits, labels))
    both = kept_bytes(lambda: with_z_loss(cross_entropy, logits, labels).sum())
    assert both - alone - logits.untyped_storage().nbytes() < 64 * 16


RECIPE: dict[str, Any] = {
    "name": "z",
    "model": {"family": "gpt2", "config": CONFIGS["gpt2"]},
    "data": {"sequence_length": 32, "train": [{"source": "python-docs"}]},
    "train": {"steps": 2, "global_batch": 2},
    "optimizer": {"lr": 1e-3},
    "loss": {"z_loss": 1e-4},
}


@pytest.mark.parametrize("objective", ["speech_ctc", "image_classification", "token_classification", "embedding"])
def test_objectives_without_target_tokens_refuse_it(objective: str) -> None:
    told = dict(check(parse_recipe({**RECIPE, "objective": objective})))
    assert f"needs target tokens of a vocabulary, of which {objective} predicts none" in told["loss", "z_loss"]


def test_other_losses_of_a_target_are_still_refused_beside_it() -> None:
    fields = {**RECIPE, "objective": "distillation", "distillation": {"teacher": "run:t"}}
    assert not check(parse_recipe(fields))
    told = dict(check(parse_recipe({**fields, "loss": {"z_loss": 1e-4, "label_smoothing": 0.1}})))
    assert "does nothing for the objective distillation" in told["loss",]


def test_an_objective_from_outside_that_ignores_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardyard.objectives.make.plugins.load", lambda reference: lambda inputs: Objective())
    with pytest.raises(ModelError, match=r"loss.z_loss is 0.03, but the objective causal_lm has no loss term"):
        make_objective("causal_lm", ObjectiveInputs(loss=Loss(z_loss=WEIGHT)))


def test_the_plan_explains_it() -> None:
    plan = make_plan(parse_recipe(RECIPE), GPT2, World(size=1, gpu=False))
    row = next(row for row in plan_rows(plan) if row[0] == "z-loss")
    assert row == ("z-loss", "0.0001 × mean (log Z)²", "of target tokens, beside their loss, in training")
    plain = make_plan(parse_recipe({**RECIPE, "loss": {}}), GPT2, World(size=1, gpu=False))
    assert plan.memory == plain.memory
    assert plan.flops == plain.flops
    assert not any(row[0] == "z-loss" for row in plan_rows(plain))


def test_the_plan_counts_the_logits_that_it_keeps_of_a_chunk() -> None:
    def logits_bytes(z_loss: float) -> int:
        fields = {**RECIPE, "model": {**RECIPE["model"], "logits_chunk": 8}, "loss": {"z_loss": z_loss}}
        fields["train"] = {**RECIPE["train"], "precision": "fp32"}
        return make_plan(parse_recipe(fields), GPT2, World(size=1, gpu=False)).memory.logits_bytes

    assert logits_bytes(1e-4) - logits_bytes(0.0) == 4 * 8 * GPT2.vocabulary
