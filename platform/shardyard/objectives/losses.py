"""Losses as functions of tensors, with no model and no state.

Each returns a scalar, the **sum** over its targets: the engine divides by the number of targets of the whole global
batch, so all targets have the same weight, however the batch is split into micro-batches and ranks. The loss of a batch
is the sum of the losses of its parts; only `info_nce` and `sigmoid_pairs` compare rows with each other, and take the
keys of the whole batch.

Arithmetic is in fp32 at least: fp16 and bf16 are widened first, fp64 stays fp64. Labels of -100 are not targets.
Mismatching shapes are errors of the caller and `assert`ed, because broadcasting would hide them.

    B: rows, C: classes, D: size of an embedding, G: rows of the global batch, T: tokens in a row, V: vocabulary,
    …: any number of axes, including none

Losses of tokens also take `ChunkedLogits`, which stand for logits that are computed for some tokens at a time.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from shardyard.objectives.base import IGNORED
from shardyard.objectives.chunked import ChunkedLogits


def cross_entropy(
    logits: Tensor | ChunkedLogits, labels: Tensor, *, label_smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Negative log-probability of the labelled classes, in nats; each label is one target.

    With p = softmax(logits), label y and smoothing ε:  (1 - ε)·(-log p_y) + ε·mean_c(-log p_c).
    Label smoothing: Szegedy et al. 2016 (Rethinking the Inception Architecture), section 7.

    Args:
        logits: […, C].
        labels: […], classes; -100 is not a target.
        label_smoothing: ε, the share of the target that is spread over all classes, including the labelled one.
        weights: […], factors of the targets, which then count as much; None means 1 for all.
    """
    if isinstance(logits, ChunkedLogits):
        smoothed = partial(cross_entropy, label_smoothing=label_smoothing)
        return logits.map(lambda part, own, weighed: smoothed(part, own, weights=weighed), labels, weights).sum()
    flat, targets = _flat(logits, labels)
    losses = functional.cross_entropy(
        flat,
        targets,
        ignore_index=IGNORED,
        reduction="sum" if weights is None else "none",
        label_smoothing=label_smoothing,
    )
    return losses if weights is None else (losses * weights.reshape(-1).to(losses.dtype)).sum()


def focal(logits: Tensor | ChunkedLogits, labels: Tensor, *, gamma: float, alpha: Tensor | None = None) -> Tensor:
    """Cross-entropy that gives less weight to labels that are already classified well; each label is one target.

    With p the softmax probability of label y:  -α_y·(1 - p)^γ·log p.  γ = 0 is cross-entropy.
    Lin et al. 2017 (Focal Loss for Dense Object Detection), equation 5, with a softmax in place of the sigmoid.

    Args:
        logits: […, C].
        labels: […], classes; -100 is not a target.
        gamma: γ ≥ 0, how fast the weight falls; the paper uses 2.
        alpha: [C], a weight for each class; None means 1 for all.
    """
    if isinstance(logits, ChunkedLogits):
        return logits.map(partial(focal, gamma=gamma, alpha=alpha), labels).sum()
    flat, targets = _flat(logits, labels)
    # No mask as an index: the host would wait for the device to learn how many targets there are.
    kept, targets = targets != IGNORED, targets.clamp(min=0)
    log_p = flat.log_softmax(-1).gather(-1, targets[:, None])[:, 0]  # [N]
    # 1 - p without cancellation. The floor keeps the derivative of the power finite at p = 1 for γ < 1.
    missing = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
    losses = -(missing**gamma) * log_p
    if alpha is not None:
        losses = losses * alpha.to(losses)[targets]
    return torch.where(kept, losses, 0).sum()


def dice(logits: Tensor, labels: Tensor, *, smoothing: float = 1.0) -> Tensor:
    """Overlap of predicted and labelled regions; each row is one target, whatever its number of pixels.

    With p = softmax(logits), g the one-hot labels, sums over a row's pixels, and smoothing s:
    1 - mean_c((2·Σ p_c·g_c + s) / (Σ p_c² + Σ g_c² + s)).
    Milletari et al. 2016 (V-Net), section 3, whose formula for two regions is averaged over all classes here. For a
    class that is neither predicted nor labelled, s makes the fraction 1, where the paper has 0/0.

    Args:
        logits: [B, …, C].
        labels: [B, …], classes; -100 is left out of all sums. A row with no other label adds zero and is not a target.
        smoothing: s > 0, in pixels.
    """
    assert labels.shape == logits.shape[:-1], (labels.shape, logits.shape)
    assert smoothing > 0, smoothing
    rows, classes = logits.shape[0], logits.shape[-1]
    kept = (labels != IGNORED).reshape(rows, -1, 1)  # [B, pixels, 1]
    p = _wide(logits).softmax(-1).reshape(rows, -1, classes)
    p = torch.where(kept, p, 0)
    g = functional.one_hot(labels.clamp(min=0), classes).reshape(rows, -1, classes) * kept
    overlap = 2 * (p * g).sum(1) + smoothing  # [B, C]
    extent = (p * p).sum(1) + g.sum(1) + smoothing  # g² = g
    return (1 - (overlap / extent).mean(-1)).sum()


def mse(predictions: Tensor, targets: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Squared error, (prediction - target)²; each number is one target.

    Args:
        predictions, targets: […].
        mask: bool, one value for each number or broadcast to them; where it is False, the number is not a target and
            may be anything, including NaN.
    """
    return _errors(predictions, targets, mask).square().sum()


def mae(predictions: Tensor, targets: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Absolute error, |prediction - target|; its derivative at zero is zero. Arguments as for `mse`."""
    return _errors(predictions, targets, mask).abs().sum()


def huber(predictions: Tensor, targets: Tensor, *, delta: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """Squared error near the target, absolute error far from it; each number is one target.

    With e the error:  e²/2 where |e| ≤ δ, and δ·(|e| - δ/2) elsewhere.
    Huber 1964 (Robust Estimation of a Location Parameter). Arguments as for `mse`; delta > 0.
    """
    errors = _errors(predictions, targets, mask)
    return functional.huber_loss(errors, torch.zeros_like(errors), reduction="sum", delta=delta)


def binary_cross_entropy(logits: Tensor, targets: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Negative log-probability of independent yes-or-no labels, in nats; each number is one target.

    With p = σ(logit) and target y:  -y·log p - (1 - y)·log(1 - p).

    Args:
        logits, targets: […]; targets from 0 to 1.
        mask: bool […]; where it is False, the number is not a target and may be anything, including NaN.
    """
    assert logits.shape == targets.shape, (logits.shape, targets.shape)
    logits, targets = _wide(logits), targets.to(_wide(logits).dtype)
    loss = functional.binary_cross_entropy_with_logits
    if mask is None:
        return loss(logits, targets, reduction="sum")
    # No mask as an index: the host would wait for the device to learn how many targets there are.
    losses = loss(logits.where(mask, 0), targets.where(mask, 0), reduction="none")
    return torch.where(mask, losses, 0).sum()


def listwise(scores: Tensor, relevance: Tensor) -> Tensor:
    """Cross-entropy of a list's scores and relevance, in nats; each row is one target.

    With p = softmax(scores) and r the relevance:  -Σ_k (r_k / Σ r)·log p_k.
    Cao et al. 2007 (ListNet), section 4.2, with the relevance itself, not its exponential, as weights. A row without a
    relevant entry adds zero.

    Args:
        scores: [B, K].
        relevance: [B, K], 0 or more; negative values stand for entries that do not exist.
    """
    assert scores.shape == relevance.shape, (scores.shape, relevance.shape)
    there = relevance >= 0
    weights = relevance.clamp(min=0).to(_wide(scores).dtype)
    # An entry that does not exist has no share of the softmax, and 0·(-inf) would be NaN.
    log_p = _wide(scores).masked_fill(~there, -torch.inf).log_softmax(-1).masked_fill(~there, 0)
    totals = weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return -(weights / totals * log_p).sum()


def pairwise_margin(scores: Tensor, relevance: Tensor, *, margin: float) -> Tensor:
    """Hinge loss of all pairs of a list in which one entry is more relevant than the other; each row is one target.

    The mean of max(0, margin - s_i + s_j) over pairs with r_i > r_j.
    Herbrich et al. 1999 (Support Vector Learning for Ordinal Regression). A row without such a pair adds zero.

    Args:
        scores: [B, K].
        relevance: [B, K], 0 or more; negative values stand for entries that do not exist.
        margin: in units of the scores.
    """
    assert scores.shape == relevance.shape, (scores.shape, relevance.shape)
    wide = _wide(scores)
    pairs = (relevance[:, :, None] > relevance[:, None, :]) & (relevance >= 0)[:, None, :]  # [B, K, K]
    violations = (margin - wide[:, :, None] + wide[:, None, :]).clamp(min=0)
    return (torch.where(pairs, violations, 0).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)).sum()


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float) -> Tensor:
    """Triplet loss: moves the anchor closer to the positive than to the negative by a margin; each row is one target.

    max(0, ‖a - p‖ - ‖a - n‖ + margin).  Schroff et al. 2015 (FaceNet), section 3.1, with Euclidean distances instead of
    their squares; torch adds 1e-6 to each difference, so that equal vectors have a gradient.

    Args:
        anchor, positive, negative: [B, D].
        margin: in units of the distance.
    """
    assert anchor.shape == positive.shape == negative.shape, (anchor.shape, positive.shape, negative.shape)
    return functional.triplet_margin_loss(
        _wide(anchor), _wide(positive), _wide(negative), margin=margin, reduction="sum"
    )


def info_nce(
    queries: Tensor, keys: Tensor, scale: Tensor | float, first_target: int = 0, *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of finding each query's own key among the keys of the global batch; each query is one target.

    Query b belongs to key first_target + b:  -log softmax_g(scale·q_b·k_g) at g = first_target + b.
    van den Oord et al. 2018 (Contrastive Predictive Coding), equation 4. Radford et al. 2021 (CLIP) average it over
    both directions: images as queries, and texts as queries.

    The losses of parts of the queries add up to the whole loss, provided that each part is compared with all keys.

    Args:
        queries: [B, D], of this rank; normalised if the product should be the cosine.
        keys: [G, D], of all ranks.
        scale: a number or scalar tensor, the inverse of the temperature.
        first_target: index of the first query's key.
        label_smoothing: as in `cross_entropy`.
    """
    rows = queries.shape[0]
    assert 0 <= first_target <= keys.shape[0] - rows, (first_target, rows, keys.shape[0])
    logits = scale * (_wide(queries) @ _wide(keys).T)  # [B, G]
    own = first_target + torch.arange(rows, device=queries.device)
    return cross_entropy(logits, own, label_smoothing=label_smoothing)


def sigmoid_pairs(
    queries: Tensor, keys: Tensor, scale: Tensor | float, bias: Tensor | float, first_target: int = 0
) -> Tensor:
    """Binary cross-entropy of all pairs of queries and keys of the global batch; each query is one target.

    Query b belongs to key first_target + b alone, where z = 1, and z = -1 elsewhere:
    -Σ_g log σ(z_bg·(scale·q_b·k_g + bias)).
    Zhai et al. 2023 (Sigmoid Loss for Language Image Pre-Training), section 3.2 and algorithm 1.

    The losses of parts of the queries add up to the whole loss, provided that each part is compared with all keys.

    Args:
        queries: [B, D], of this rank; normalised if the product should be the cosine.
        keys: [G, D], of all ranks.
        scale, bias: numbers or scalar tensors; the paper begins at 10 and -10, both learned.
        first_target: index of the first query's key.
    """
    rows = queries.shape[0]
    assert 0 <= first_target <= keys.shape[0] - rows, (first_target, rows, keys.shape[0])
    logits = scale * (_wide(queries) @ _wide(keys).T) + bias  # [B, G]
    row = torch.arange(rows, device=queries.device)
    signs = torch.full_like(logits, -1.0)
    signs[row, first_target + row] = 1.0
    return -functional.logsigmoid(signs * logits).sum()


def in_batch_margin(queries: Tensor, keys: Tensor, *, margin: float, first_target: int = 0) -> Tensor:
    """Hinge loss of each query's own key against all other keys of the global batch; each query is one target.

    With s the products and s_b that of the own key:  mean over the other keys g of max(0, margin - s_b + s_g).
    Weston et al. 2011 (WSABIE), section 2, with the mean of all violations in place of a sampled one. Query b belongs
    to key first_target + b. With a single key there is nothing to compare, and the loss is zero.

    Args:
        queries: [B, D], of this rank; of length 1 if the margin is one of the cosine.
        keys: [G, D], of all ranks.
        margin: in units of the product.
        first_target: index of the first query's key.
    """
    rows = queries.shape[0]
    assert 0 <= first_target <= keys.shape[0] - rows, (first_target, rows, keys.shape[0])
    products = _wide(queries) @ _wide(keys).T  # [B, G]
    own = first_target + torch.arange(rows, device=queries.device)
    violations = (margin - products.gather(1, own[:, None]) + products).clamp(min=0)
    others = torch.ones_like(violations, dtype=torch.bool).scatter(1, own[:, None], value=False)
    return (violations * others).sum() / max(1, keys.shape[0] - 1)


def distillation(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """KL divergence of the student's softened distribution from the teacher's, in nats; one target per distribution.

    With p the teacher's and q the student's softmax(logits / τ):  τ²·Σ_c p_c·(log p_c - log q_c).
    Hinton et al. 2015 (Distilling the Knowledge in a Neural Network), section 2; τ² keeps the magnitude of the gradient
    at all temperatures. No gradient reaches the teacher.

    Args:
        student_logits, teacher_logits: […, C].
        temperature: τ > 0.
        mask: […], bool, such as `labels != -100`; False is not a target.
    """
    assert student_logits.shape == teacher_logits.shape, (student_logits.shape, teacher_logits.shape)
    log_q = (_wide(student_logits) / temperature).log_softmax(-1)
    log_p = (_wide(teacher_logits.detach()) / temperature).log_softmax(-1)
    p = log_p.exp()
    # A class with probability 0 adds 0·log 0 = 0, even if its logit is minus infinity.
    divergence = torch.where(p > 0, p * (log_p - log_q), 0).sum(-1)  # […]
    if mask is not None:
        assert mask.shape == divergence.shape, (mask.shape, divergence.shape)
        divergence = torch.where(mask, divergence, 0)
    return temperature**2 * divergence.sum()


def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Direct preference optimisation; each pair of answers is one target.

    With z = β·((policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)), where all of them are
    log-probabilities of whole answers, and smoothing ε:  -(1 - ε)·log σ(z) - ε·log σ(-z).
    Rafailov et al. 2023 (Direct Preference Optimization), equation 7; ε is the share of preferences that are assumed to
    be flipped (Mitchell 2023, A note on DPO with noisy preferences).

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: [B], from `sequence_log_probability`.
        beta: β > 0, the strength of the penalty for deviating from the reference.
        label_smoothing: ε, below 0.5.
    """
    shapes = {policy_chosen.shape, policy_rejected.shape, reference_chosen.shape, reference_rejected.shape}
    assert len(shapes) == 1, shapes
    gain = _wide(policy_chosen) - _wide(policy_rejected)
    z = beta * (gain - (_wide(reference_chosen) - _wide(reference_rejected)))  # [B]
    kept, flipped = functional.logsigmoid(z), functional.logsigmoid(-z)
    return -((1 - label_smoothing) * kept + label_smoothing * flipped).sum()


def sequence_log_probability(logits: Tensor | ChunkedLogits, labels: Tensor) -> Tensor:
    """Joint log-probability of each row's targets, Σ_t log p(labels[t]), in nats: [B].

    Args:
        logits: [B, T, V].
        labels: [B, T], already shifted; -100 is not a target. A row without targets gets 0.
    """
    if isinstance(logits, ChunkedLogits):
        losses = logits.map(_each_cross_entropy, labels)
    else:
        losses = _each_cross_entropy(logits, labels)
    return -losses.view(labels.shape).sum(-1)


def _each_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[N] for N labels; 0 where there is no target."""
    flat, targets = _flat(logits, labels)
    return functional.cross_entropy(flat, targets, ignore_index=IGNORED, reduction="none")


def ctc(logits: Tensor, labels: Tensor, *, blank: int, positions: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of texts under all their alignments with a recording; each row is one target.

    An alignment has a token for each position; merging repetitions and removing blanks gives its text.
    Graves et al. 2006 (Connectionist Temporal Classification), equations 3 and 8.

    Args:
        logits: [B, S, V] for S positions of the recording.
        labels: [B, T]; `blank` and -100 are not part of the texts. A text that needs more than S positions adds 0.
        blank: the token of positions that add nothing to the text.
        positions: [B], how many of the S positions are of the recording; None means all.
    """
    assert labels.shape[0] == logits.shape[0], (labels.shape, logits.shape)
    spelled = (labels != IGNORED) & (labels != blank)
    lengths = spelled.sum(dim=1)
    if positions is None:
        positions = torch.full_like(lengths, logits.shape[1])
    log_probabilities = functional.log_softmax(_wide(logits), dim=-1).transpose(0, 1)
    return functional.ctc_loss(
        log_probabilities, labels[spelled], positions, lengths, blank=blank, reduction="sum", zero_infinity=True
    )


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in fp32; fp64 is kept."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _flat(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten logits […, C] to [N, C], widened, and labels […] to [N]."""
    assert labels.shape == logits.shape[:-1], (labels.shape, logits.shape)
    return _wide(logits).reshape(-1, logits.shape[-1]), labels.reshape(-1)


def _errors(predictions: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
    """Prediction minus target, zero where masked."""
    assert predictions.shape == targets.shape, (predictions.shape, targets.shape)
    errors = _wide(predictions) - _wide(targets)
    return errors if mask is None else torch.where(mask, errors, 0)
