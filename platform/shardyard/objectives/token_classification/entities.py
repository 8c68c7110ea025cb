"""Entities in sequences of tags, and scores of predicted entities."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

# BILOU writes the end of an entity as L and an entity of one word as U.
_PREFIXES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}
_TAG = re.compile(r"[BIESLU]-.+")
OUTSIDE = "O"


class Entity(NamedTuple):
    """Words `start` … `end` - 1 of a sequence."""

    kind: str
    start: int
    end: int


class EntityCounts(NamedTuple):
    """Numbers of entities: found with their exact words and kind, predicted, and labelled."""

    correct: int
    predicted: int
    labelled: int

    def __add__(self, other: EntityCounts) -> EntityCounts:  # type: ignore[override]
        return EntityCounts(*(a + b for a, b in zip(self, other, strict=True)))


def mark_entities(names: Sequence[str]) -> bool:
    """Whether tags mark entities: each is `O`, or a prefix of IOB, IOBES or BILOU with a kind, such as `B-PER`."""
    return any(name != OUTSIDE for name in names) and all(name == OUTSIDE or _TAG.fullmatch(name) for name in names)


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of a sequence, by the rules of conlleval, which seqeval's default mode follows.

    A word starts an entity if its tag is B or S, or if the word before it ended one: it is outside, of another kind, or
    has the tag E or S. So an I after O starts an entity, too, and sequences that break the scheme are not lost.
    """
    found: set[Entity] = set()
    start, kind, closed = 0, "", True
    for at, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, own = tag.partition("-")
        prefix = _PREFIXES.get(prefix, OUTSIDE)
        outside = prefix == OUTSIDE
        begins = not outside and (closed or prefix in "BS" or own != kind)
        if not closed and (outside or begins):
            found.add(Entity(kind, start, at))
            closed = True
        if begins:
            start, kind, closed = at, own, False
        if not closed and prefix in "ES":
            found.add(Entity(kind, start, at + 1))
            closed = True
    return found


def count_entities(predicted: Sequence[str], labelled: Sequence[str]) -> EntityCounts:
    """The counts of one sequence, of which precision, recall and F1 are made."""
    assert len(predicted) == len(labelled), (len(predicted), len(labelled))
    found, wanted = entities(predicted), entities(labelled)
    return EntityCounts(len(found & wanted), len(found), len(wanted))


def precision_recall_f1(counts: EntityCounts) -> tuple[float, float, float]:
    """Micro averages: every entity has the same weight. 0 where nothing is predicted or labelled."""
    correct, predicted, labelled = counts
    precision = correct / predicted if predicted else 0.0
    recall = correct / labelled if labelled else 0.0
    return precision, recall, 2 * correct / (predicted + labelled) if predicted + labelled else 0.0
