"""The probe of isolation: each document of a row must get the logits that it gets alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shardyard.models.isolation import document_inputs
from shardyard.models.probes.tokens import DOCUMENT, logits_of, moved, random_tokens, tolerance_of
from shardyard.recipe.isolation import ISOLATIONS, Isolation


@dataclass(frozen=True)
class IsolationFound:
    """The first way that isolates (None if none does), and what each way that was tried did, in words."""

    isolation: Isolation | None
    why: str


def find_isolation(models: Sequence[Any], ways: Sequence[Isolation] = ISOLATIONS) -> IsolationFound:
    """The first of some ways that isolates the documents of a row in all of some models.

    Args:
        models: narrow copies, in evaluation mode: the model, and its teacher if it has one.
    """
    tried: list[str] = []
    for way in ways:
        problem = next((problem for model in models if (problem := _problem(model, way))), None)
        if problem is None:
            return IsolationFound(way, "; ".join(tried) or "documents of a row do not see each other")
        tried.append(f"{way}: {problem}")
    return IsolationFound(None, "; ".join(tried))


def leak(model: Any, isolation: Isolation) -> float:
    """How far the logits of documents in a row are from those of each document alone, as a fraction of their spread.

    The second document is also compared with itself behind another first document.
    """
    first, second, other = random_tokens(3, DOCUMENT, seed=1)[:, None]  # [1, T] each
    alone = [logits_of(model, document) for document in (first, second)]
    found = _in_a_row(model, (first, second), isolation)
    worst = max(moved(logits, expected) for logits, expected in zip(found, alone, strict=True))
    behind_another = _in_a_row(model, (other, second), isolation)[1]
    return max(worst, moved(behind_another, found[1]))


def _in_a_row(model: Any, documents: tuple[Tensor, Tensor], isolation: Isolation) -> tuple[Tensor, ...]:
    """The logits of two documents, as the packed rows of `data/formats/packed.py` hold them."""
    if isolation == "rows":
        padding = torch.full_like(documents[0], int(documents[0][0, 0]))
        ids = torch.cat([torch.cat([document, padding], dim=1) for document in documents])  # [2, 2T]
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        logits = logits_of(model, ids, **document_inputs(model, positions, isolation))
        return logits[:1, :DOCUMENT], logits[1:, :DOCUMENT]
    ids = torch.cat(documents, dim=1)  # [1, 2T]
    positions = torch.arange(DOCUMENT).repeat(2)[None]
    logits = logits_of(model, ids, **document_inputs(model, positions, isolation))
    return logits[:, :DOCUMENT], logits[:, DOCUMENT:]


def _problem(model: Any, way: Isolation) -> str | None:
    """Why a way does not isolate; None if it does."""
    try:
        leaked = leak(model, way)
    except Exception as error:  # noqa: BLE001 - a family refuses a mask with any exception
        return f"its model refuses them ({type(error).__name__})"
    return (
        None
        if leaked <= tolerance_of(model)
        else f"logits differ from those of a document alone by {leaked:.2g} of their spread"
    )
