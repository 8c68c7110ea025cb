"""The probe of causality: a token must not see those after it."""

from __future__ import annotations

from typing import Any

from shardyard.models.probes.narrow import FIRST_TOKEN, LAST_TOKEN
from shardyard.models.probes.tokens import DOCUMENT, logits_of, moved, random_tokens


def look_ahead(model: Any) -> float:
    """How far the logits before a token move when it changes, as a fraction of their spread; 0 for a causal model.

    Args:
        model: causal, in evaluation mode.
    """
    ids = random_tokens(1, 2 * DOCUMENT, seed=1)
    before = logits_of(model, ids)
    worst = 0.0
    for changed in (DOCUMENT, 2 * DOCUMENT - 1):
        other = ids.clone()
        other[:, changed] = FIRST_TOKEN + (other[:, changed] - FIRST_TOKEN + 7) % (LAST_TOKEN - FIRST_TOKEN)
        worst = max(worst, moved(logits_of(model, other)[:, :changed], before[:, :changed]))
    return worst
