"""Each loss against torch's or transformers' own or the paper's formula, its sums, its gradients and extreme values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.loss.loss_for_object_detection import dice_loss, sigmoid_focal_loss
from transformers.models.clip.modeling_clip import image_text_contrastive_loss
from transformers.trainer_pt_utils import LabelSmoother

from shardyard.objectives import losses
from shardyard.objectives.losses import IGNORED

ROWS, LENGTH, CLASSES, WIDTH = 4, 5, 7, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value(loss: Tensor) -> float:
    return loss.detach().item()


def some_labels() -> Tensor:
    labels = torch.randint(0, CLASSES, (ROWS, LENGTH), generator=torch.Generator().manual_seed(9))
    labels[0, 1:3] = IGNORED
    labels[2] = IGNORED
    return labels


LABELS = some_labels()
KEPT = LABELS != IGNORED
ALPHA = torch.linspace(0.1, 1.0, CLASSES, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A loss as a function of tensors that want gradients and of a part of the rows."""

    loss: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]

    def inputs(self, dtype: torch.dtype = torch.float64, factor: float = 1.0) -> list[Tensor]:
        tensors = [normal(*shape, seed=index) * factor for index, shape in enumerate(self.shapes)]
        return [tensor.to(dtype).requires_grad_() for tensor in tensors]

    def __call__(self, inputs: list[Tensor], rows: slice = slice(None)) -> Tensor:
        return self.loss(*(tensor[rows] for tensor in inputs), rows=rows)


def labelled(loss: Callable[..., Tensor], **settings: Any) -> Case:
    return Case(lambda logits, rows: loss(logits, LABELS[rows], **settings), ((ROWS, LENGTH, CLASSES),))


def regression(loss: Callable[..., Tensor], **settings: Any) -> Case:
    shape = (ROWS, LENGTH)
    return Case(lambda a, b, rows: loss(a, b, mask=KEPT[rows], **settings), (shape, shape))


def preference(**settings: Any) -> Case:
    return Case(lambda *pairs, rows: losses.dpo(*pairs, **settings), ((ROWS,),) * 4)


# In numbers that fp16 and bf16 hold without rounding.
TEACHER = normal(ROWS, LENGTH, CLASSES, seed=50).bfloat16().double()
KEYS = functional.normalize(normal(2 * ROWS, WIDTH, seed=60), dim=-1).bfloat16().double()
SHARES = torch.rand(ROWS, LENGTH, generator=torch.Generator().manual_seed(70), dtype=torch.float64)
RELEVANCE = torch.randint(-1, 3, (ROWS, LENGTH), generator=torch.Generator().manual_seed(72))
SPELLED = torch.tensor([[1, 2, 0], [3, 3, 0], [4, 0, IGNORED], [5, 6, 1]])
CASES = {
    "cross_entropy": labelled(losses.cross_entropy),
    "label smoothing": labelled(losses.cross_entropy, label_smoothing=0.1),
    "focal": labelled(losses.focal, gamma=2.0, alpha=ALPHA),
    "focal with a root": labelled(losses.focal, gamma=0.5),
    "dice": labelled(losses.dice),
    "mse": regression(losses.mse),
    "mae": regression(losses.mae),
    "huber": regression(losses.huber, delta=0.7),
    "triplet": Case(lambda a, p, n, rows: losses.triplet(a, p, n, margin=0.5), ((ROWS, WIDTH),) * 3),
    # All parts are compared with all keys, and know where theirs begin.
    "info_nce": Case(
        lambda queries, rows: losses.info_nce(queries, KEYS.to(queries), 5.0, 2 + (rows.start or 0)), ((ROWS, WIDTH),)
    ),
    "sigmoid_pairs": Case(
        lambda queries, rows: losses.sigmoid_pairs(queries, KEYS.to(queries), 5.0, -2.0, 2 + (rows.start or 0)),
        ((ROWS, WIDTH),),
    ),
    "in_batch_margin": Case(
        lambda queries, rows: losses.in_batch_margin(
            queries, KEYS.to(queries), margin=0.7, first_target=2 + (rows.start or 0)
        ),
        ((ROWS, WIDTH),),
    ),
    "binary_cross_entropy": Case(
        lambda logits, rows: losses.binary_cross_entropy(logits, SHARES[rows], mask=KEPT[rows]), ((ROWS, LENGTH),)
    ),
    "listwise": Case(lambda scores, rows: losses.listwise(scores, RELEVANCE[rows]), ((ROWS, LENGTH),)),
    "pairwise_margin": Case(
        lambda scores, rows: losses.pairwise_margin(scores, RELEVANCE[rows], margin=0.7), ((ROWS, LENGTH),)
    ),
    "distillation": Case(
        lambda logits, rows: losses.distillation(logits, TEACHER[rows].to(logits), temperature=2.0, mask=KEPT[rows]),
        ((ROWS, LENGTH, CLASSES),),
    ),
    "dpo": preference(beta=0.3),
    "dpo with smoothing": preference(beta=0.3, label_smoothing=0.1),
    "sequence_log_probability": Case(
        lambda logits, rows: losses.sequence_log_probability(logits, LABELS[rows]).sum(), ((ROWS, LENGTH, CLASSES),)
    ),
    "ctc": Case(lambda logits, rows: losses.ctc(logits, SPELLED[rows], blank=0), ((ROWS, LENGTH, CLASSES),)),
}
every_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def test_no_loss_is_left_out() -> None:
    public = {name for name, found in vars(losses).items() if callable(found) and found.__module__ == losses.__name__}
    tested = {name.partition(" with ")[0] for name in CASES} - {"label smoothing"}
    assert {name for name in public if not name.startswith("_")} == tested


@every_loss
def test_the_gradient_is_that_of_the_value(case: Case) -> None:
    assert torch.autograd.gradcheck(lambda *inputs: case(list(inputs)), case.inputs())


@every_loss
def test_two_halves_add_up_to_the_whole(case: Case) -> None:
    inputs = case.inputs()
    with torch.no_grad():
        first, second, whole = (value(case(inputs, rows)) for rows in (slice(0, 1), slice(1, ROWS), slice(None)))
    assert first + second == pytest.approx(whole, rel=1e-12)
    assert min(abs(first), abs(second)) > 1e-3


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_anything_else(case: Case, dtype: torch.dtype) -> None:
    rounded = case.inputs(dtype)
    found = case(rounded)
    assert (found.shape, found.dtype) == ((), torch.float32)
    assert value(found) == pytest.approx(value(case([tensor.double() for tensor in rounded])), rel=1e-5)


@every_loss
@pytest.mark.parametrize("factor", [1e4, 1e-4, 0.0])
def test_extreme_inputs_have_finite_losses_and_gradients(case: Case, factor: float) -> None:
    inputs = case.inputs(torch.float32, factor)
    found = case(inputs)
    found.backward()
    assert torch.isfinite(found)
    assert all(torch.isfinite(tensor.grad).all() for tensor in inputs if tensor.grad is not None)
    assert inputs[0].grad is not None


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if len(case.shapes[0]) == 3])
@pytest.mark.parametrize("right", [True, False])
def test_saturated_logits_are_exact(name: str, right: bool) -> None:
    """Logits of ±1e4: p is 0 or 1 to the last bit, where a logarithm of p would be infinite."""
    targets = LABELS.clamp(min=0) if right else (LABELS.clamp(min=0) + 1) % CLASSES
    logits = (functional.one_hot(targets, CLASSES) * 2e4 - 1e4).float().requires_grad_()
    found = CASES[name]([logits])
    found.backward()
    count = int(KEPT.sum())
    # The nats of a target that is missed by 2e4; smoothing spreads a tenth over seven classes.
    known = {
        "cross_entropy": 0.0 if right else 2e4 * count,
        "label smoothing": (2e4 * 0.1 * 6 / 7 if right else 2e4 * (0.9 + 0.1 * 6 / 7)) * count,
        "focal with a root": 0.0 if right else 2e4 * count,
        "sequence_log_probability": 0.0 if right else -2e4 * count,
    }
    assert value(found) == pytest.approx(known.get(name, value(found)), rel=1e-6)
    assert torch.isfinite(found)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", ["cross_entropy", "label smoothing", "focal", "dice", "distillation", "mse", "huber"])
def test_what_is_ignored_changes_neither_value_nor_gradient(name: str) -> None:
    case = CASES[name]
    inputs = case.inputs()
    changed = [tensor.detach().clone() for tensor in inputs]
    for tensor in changed:
        tensor[~KEPT] = 77.0
    changed = [tensor.requires_grad_() for tensor in changed]
    before, after = case(inputs), case(changed)
    assert value(after) == pytest.approx(value(before), rel=1e-12)
    after.backward()
    for tensor in changed:
        assert torch.count_nonzero(tensor.grad[~KEPT]) == 0
        assert torch.count_nonzero(tensor.grad[KEPT]) > 0


@pytest.mark.parametrize("name", ["cross_entropy", "label smoothing", "focal", "dice", "distillation", "mae"])
def test_rows_without_a_target_add_zero(name: str) -> None:
    inputs = CASES[name].inputs()
    nothing = CASES[name](inputs, slice(2, 3))
    nothing.backward()
    assert value(nothing) == pytest.approx(0.0, abs=1e-15)
    assert torch.count_nonzero(inputs[0].grad) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_that_of_torch_and_transformers(smoothing: float) -> None:
    logits = normal(ROWS, LENGTH, CLASSES)
    found = losses.cross_entropy(logits, LABELS, label_smoothing=smoothing)
    mean = functional.cross_entropy(logits.view(-1, CLASSES), LABELS.view(-1), label_smoothing=smoothing)
    theirs = LabelSmoother(epsilon=smoothing)({"logits": logits}, LABELS)
    assert value(found) == pytest.approx(value(mean * KEPT.sum()), rel=1e-12)
    assert value(found) == pytest.approx(value(theirs * KEPT.sum()), rel=1e-6)


def test_cross_entropy_takes_any_leading_axes() -> None:
    logits, labels = normal(2, 3, 4, CLASSES), torch.arange(24).reshape(2, 3, 4) % CLASSES
    whole = losses.cross_entropy(logits, labels)
    single = sum(losses.cross_entropy(logits[index], labels[index]) for index in np.ndindex(2, 3, 4))
    assert value(whole) == pytest.approx(value(single), rel=1e-12)


def test_focal_of_two_classes_is_the_sigmoid_form_of_transformers() -> None:
    logits, labels = normal(ROWS, LENGTH), torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % 2
    two = torch.stack([torch.zeros_like(logits), logits], dim=-1)
    theirs = sigmoid_focal_loss(logits, labels.double(), num_boxes=1, alpha=0.25, gamma=2) * LENGTH
    ours = losses.focal(two, labels, gamma=2, alpha=torch.tensor([0.75, 0.25], dtype=torch.float64))
    assert value(ours) == pytest.approx(value(theirs), rel=1e-12)


def test_focal_follows_the_paper_and_without_gamma_is_cross_entropy() -> None:
    logits, y = normal(ROWS, CLASSES).numpy(), np.array([0, 3, 6, 3])
    p = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[np.arange(ROWS), y]
    expected = (-ALPHA.numpy()[y] * (1 - p) ** 1.5 * np.log(p)).sum()
    found = losses.focal(torch.tensor(logits), torch.tensor(y), gamma=1.5, alpha=ALPHA)
    assert value(found) == pytest.approx(expected, rel=1e-12)
    plain = [
        loss(torch.tensor(logits), torch.tensor(y)) for loss in (partial(losses.focal, gamma=0), losses.cross_entropy)
    ]
    assert value(plain[0]) == pytest.approx(value(plain[1]), rel=1e-12)


def test_dice_follows_the_paper_in_each_class() -> None:
    logits, labels = normal(ROWS, LENGTH, CLASSES).numpy(), LABELS.numpy()
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = 0.0
    for row in range(ROWS):
        kept = labels[row] != IGNORED
        scores = []
        for c in range(CLASSES):
            p_c, g_c = p[row, kept, c], (labels[row, kept] == c).astype(float)
            scores.append((2 * (p_c * g_c).sum() + 0.5) / ((p_c**2).sum() + (g_c**2).sum() + 0.5))
        expected += 1 - np.mean(scores)
    found = losses.dice(torch.tensor(logits), LABELS, smoothing=0.5)
    assert value(found) == pytest.approx(expected, rel=1e-12)


def test_dice_of_hard_regions_is_that_of_transformers() -> None:
    """Where p is 0 or 1 its square is p itself, and the two forms of the denominator agree."""
    hard, labels = normal(ROWS, 4, 5).sign(), (normal(ROWS, 4, 5, seed=1) > 0).long()
    ours = losses.dice(torch.stack([-hard, hard], dim=-1) * 1e4, labels)
    theirs = [dice_loss(sign * hard * 1e4, (labels == c).double().flatten(1), 1) for c, sign in ((0, -1), (1, 1))]
    assert value(ours) == pytest.approx(value(sum(theirs)) / 2, rel=1e-12)
    assert value(losses.dice(torch.stack([-hard, hard], dim=-1) * 1e4, (hard > 0).long())) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (losses.mse, torch.nn.MSELoss(reduction="sum")),
        (losses.mae, torch.nn.L1Loss(reduction="sum")),
        (lambda a, b: losses.huber(a, b, delta=0.4), torch.nn.HuberLoss(reduction="sum", delta=0.4)),
    ],
    ids=["mse", "mae", "huber"],
)
def test_regression_is_that_of_torch(ours: Callable[..., Tensor], theirs: Callable[..., Tensor]) -> None:
    predictions, targets = normal(ROWS, LENGTH), normal(ROWS, LENGTH, seed=1)
    assert value(ours(predictions, targets)) == pytest.approx(value(theirs(predictions, targets)), rel=1e-12)


def test_huber_is_square_near_and_linear_far() -> None:
    errors = torch.tensor([0.0, 0.5, -2.0, 2.5, -10.0], dtype=torch.float64)
    expected = 0 + 0.125 + 2 + 2 * (2.5 - 1) + 2 * (10 - 1)
    assert value(losses.huber(errors, torch.zeros_like(errors), delta=2.0)) == pytest.approx(expected, rel=1e-12)


def test_a_mask_takes_in_whole_patches_and_hides_what_is_no_number() -> None:
    predictions, targets = normal(ROWS, LENGTH, WIDTH).requires_grad_(), normal(ROWS, LENGTH, WIDTH, seed=1)
    expected = losses.mse(predictions[KEPT], targets[KEPT])
    targets[~KEPT] = torch.nan
    found = losses.mse(predictions, targets, mask=KEPT[..., None])
    found.backward()
    assert value(found) == pytest.approx(value(expected), rel=1e-12)
    assert torch.isfinite(predictions.grad).all()


def test_triplet_is_that_of_torch_and_of_the_formula() -> None:
    a, p, n = (normal(ROWS, WIDTH, seed=seed) for seed in (0, 1, 2))
    found = losses.triplet(a, p, n, margin=0.5)
    assert value(found) == pytest.approx(
        value(torch.nn.TripletMarginLoss(margin=0.5, reduction="sum")(a, p, n)), rel=1e-12
    )
    gaps = np.linalg.norm(a - p, axis=1) - np.linalg.norm(a - n, axis=1) + 0.5
    assert (gaps < 0).any()
    assert (gaps > 0).any()
    assert value(found) == pytest.approx(np.maximum(gaps, 0).sum(), rel=1e-5)


def test_binary_cross_entropy_is_that_of_torch() -> None:
    logits = normal(ROWS, LENGTH, seed=1)
    expected = functional.binary_cross_entropy_with_logits(logits[KEPT], SHARES[KEPT], reduction="sum")
    spoilt = torch.where(KEPT, logits, torch.nan)
    assert value(losses.binary_cross_entropy(spoilt, SHARES, mask=KEPT)) == pytest.approx(value(expected))


def test_lists_by_the_formula() -> None:
    scores, relevance = torch.tensor([[2.0, 1.0, 0.0, 9.0]]), torch.tensor([[1, 0, 2, -1]])
    log_p = torch.tensor([2.0, 1.0, 0.0]).log_softmax(0)
    assert value(losses.listwise(scores, relevance)) == pytest.approx(-value(log_p[0] + 2 * log_p[2]) / 3)
    # Pairs: 0 before 1, 2 before 0, 2 before 1.
    found = losses.pairwise_margin(scores, relevance, margin=0.5)
    assert value(found) == pytest.approx((0.0 + 2.5 + 1.5) / 3)
    nothing = torch.zeros_like(relevance)
    assert value(losses.listwise(scores, nothing)) == value(losses.pairwise_margin(scores, nothing, margin=1.0)) == 0


def test_info_nce_of_both_directions_is_the_loss_of_clip() -> None:
    images, texts = (functional.normalize(normal(ROWS, WIDTH, seed=seed), dim=-1) for seed in (0, 1))
    scale = torch.tensor(14.3, dtype=torch.float64, requires_grad=True)
    theirs = image_text_contrastive_loss(scale * texts @ images.T) * ROWS
    ours = (losses.info_nce(images, texts, scale) + losses.info_nce(texts, images, scale)) / 2
    assert value(ours) == pytest.approx(value(theirs), rel=1e-12)
    gradients = [torch.autograd.grad(loss, scale)[0] for loss in (ours, theirs)]
    assert value(gradients[0]) == pytest.approx(value(gradients[1]), rel=1e-12)


def test_the_queries_of_a_rank_find_their_keys_among_all() -> None:
    images, texts = (functional.normalize(normal(ROWS, WIDTH, seed=seed), dim=-1) for seed in (0, 1))
    whole = losses.info_nce(images, texts, 5.0)
    ranks = losses.info_nce(images[:2], texts, 5.0, 0) + losses.info_nce(images[2:], texts, 5.0, 2)
    assert value(ranks) == pytest.approx(value(whole), rel=1e-12)
    # With no more than their own keys two halves have fewer negatives, and are another loss.
    alone = losses.info_nce(images[:2], texts[:2], 5.0) + losses.info_nce(images[2:], texts[2:], 5.0)
    assert value(alone) < 0.9 * value(whole)


def test_the_gradient_of_info_nce_reaches_keys_and_scale() -> None:
    queries, keys = normal(2, WIDTH).requires_grad_(), normal(ROWS, WIDTH, seed=1).requires_grad_()
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: losses.info_nce(*inputs, first_target=1), (queries, keys, scale))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_the_kl_divergence_of_torch_times_the_square(temperature: float) -> None:
    student, teacher = normal(ROWS, LENGTH, CLASSES), TEACHER
    p, q = (functional.softmax(logits[KEPT] / temperature, dim=-1) for logits in (teacher, student))
    theirs = torch.nn.KLDivLoss(reduction="sum")(q.log(), p) * temperature**2
    ours = losses.distillation(student, teacher, temperature=temperature, mask=KEPT)
    assert value(ours) == pytest.approx(value(theirs), rel=1e-12)
    assert value(losses.distillation(teacher, teacher, temperature=temperature)) == 0.0


def test_at_high_temperature_distillation_has_the_gradient_of_matched_logits() -> None:
    """Hinton et al., equation 4: the gradient tends to the difference of the centred logits over the classes."""
    student, teacher = normal(1, CLASSES).requires_grad_(), normal(1, CLASSES, seed=1)
    losses.distillation(student, teacher, temperature=1e4).backward()
    expected = ((student - student.mean()) - (teacher - teacher.mean())).detach() / CLASSES
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=1e-4)


def test_the_teacher_has_no_gradient_and_may_rule_classes_out() -> None:
    student, teacher = normal(ROWS, CLASSES).requires_grad_(), normal(ROWS, CLASSES, seed=1)
    teacher[:, 2] = -torch.inf
    teacher.requires_grad_()
    found = losses.distillation(student, teacher, temperature=2.0)
    found.backward()
    assert teacher.grad is None
    nearly = teacher.detach().clone()
    nearly[:, 2] = -1e4
    assert value(found) == pytest.approx(value(losses.distillation(student, nearly, temperature=2.0)), rel=1e-12)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_follows_the_paper(smoothing: float) -> None:
    chosen, rejected, old_chosen, old_rejected = (normal(ROWS, seed=seed).numpy() * 5 for seed in range(4))
    z = 0.1 * ((chosen - old_chosen) - (rejected - old_rejected))
    expected = (np.log1p(np.exp(-z)) * (1 - smoothing) + np.log1p(np.exp(z)) * smoothing).sum()
    found = losses.dpo(
        *(torch.tensor(values) for values in (chosen, rejected, old_chosen, old_rejected)),
        beta=0.1,
        label_smoothing=smoothing,
    )
    assert value(found) == pytest.approx(expected, rel=1e-12)


def test_dpo_begins_at_the_logarithm_of_two_and_falls_with_the_preference() -> None:
    old = normal(ROWS), normal(ROWS, seed=1)
    assert value(losses.dpo(*old, *old, beta=0.5)) == pytest.approx(ROWS * np.log(2))
    assert value(losses.dpo(old[0] + 1, old[1], *old, beta=0.5)) == pytest.approx(ROWS * np.log1p(np.exp(-0.5)))


def test_the_log_probability_of_a_row_is_the_sum_over_its_targets() -> None:
    logits = normal(ROWS, LENGTH, CLASSES)
    log_p = logits.log_softmax(-1)
    expected = [sum(value(log_p[row, t, LABELS[row, t]]) for t in range(LENGTH) if KEPT[row, t]) for row in range(ROWS)]
    found = losses.sequence_log_probability(logits, LABELS)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert found[2] == 0.0
    assert value(found.sum()) == pytest.approx(-value(losses.cross_entropy(logits, LABELS)), rel=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.mse(normal(ROWS, 1), normal(ROWS)),
        lambda: losses.huber(normal(ROWS), normal(1)),
        lambda: losses.cross_entropy(normal(ROWS, CLASSES), torch.zeros(ROWS, 1, dtype=torch.long)),
        lambda: losses.dice(normal(ROWS, LENGTH, CLASSES), LABELS[:1]),
        lambda: losses.dice(normal(ROWS, LENGTH, CLASSES), LABELS, smoothing=0),
        lambda: losses.triplet(normal(ROWS, WIDTH), normal(ROWS, WIDTH), normal(1, WIDTH), margin=1.0),
        lambda: losses.info_nce(normal(2, WIDTH), normal(3, WIDTH), 1.0, 2),
        lambda: losses.info_nce(normal(2, WIDTH), normal(3, WIDTH), 1.0, -1),
        lambda: losses.distillation(normal(ROWS, CLASSES), normal(1, CLASSES), temperature=1.0),
        lambda: losses.distillation(
            normal(ROWS, CLASSES), normal(ROWS, CLASSES), temperature=1.0, mask=torch.ones(ROWS, 1, dtype=torch.bool)
        ),
        lambda: losses.dpo(normal(ROWS), normal(ROWS), normal(1), normal(ROWS), beta=1.0),
    ],
)
def test_shapes_that_broadcasting_would_hide_are_refused(call: Callable[[], Tensor]) -> None:
    with pytest.raises(AssertionError):
        call()


def test_ctc_is_the_sum_over_all_alignments() -> None:
    """Every sequence of positions that spells the text once repetitions are merged and blanks are gone."""
    blank, texts = 2, [[0, 1], [1, 1], [0]]
    labels = torch.tensor([[0, 1, blank], [1, 1, blank], [0, blank, -100]])
    logits = torch.randn((3, 4, 3), generator=torch.Generator().manual_seed(0), requires_grad=True)
    probabilities = logits.detach().softmax(-1)
    expected = 0.0
    for row, text in enumerate(texts):
        paths = product(range(3), repeat=4)
        spelling = [path for path in paths if [token for token, _ in groupby(path) if token != blank] == text]
        expected -= (
            torch.stack([probabilities[row, range(4), list(path)].prod() for path in spelling]).sum().log().item()
        )
    found = losses.ctc(logits, labels, blank=blank)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert logits.grad is not None
    assert logits.grad.abs().amax(dim=(1, 2)).min() > 0
    too_long = torch.tensor([[0, 1, 0, 1, 0, 1, blank]])
    assert float(losses.ctc(logits.detach()[:1], too_long, blank=blank)) == 0.0
