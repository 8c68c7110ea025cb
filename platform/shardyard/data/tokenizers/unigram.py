"""Estimating a Unigram language model of pieces by expectation maximisation (Kudo 2018, arXiv:1804.10959).

The trainer of `tokenizers` sums in the order of a randomly seeded hash table, so two runs differ in the last digits and
occasionally in a piece. Here sums and ties have a fixed order: equal words give equal pieces.

Legend: W = texts (words), N = nodes (places between characters, over all texts), E = edges (pieces that fit somewhere).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

# Longer texts are split into parts: the number of their segmentations would grow without benefit.
MAX_TEXT_CHARACTERS = 64
SEEDS_FOR_A_PIECE = 12  # Initial candidates per piece of the final vocabulary.
SHRINK = 0.75  # Share of pieces kept in each round.
EM_STEPS = 2  # Expectation and maximisation steps in a round.
LEAST_EXPECTED = 0.5  # Expected occurrences below which a piece is dropped.
DIGITS = 6  # For rounding log probabilities and losses: coarser than errors of sums, finer than real differences.


def train_unigram(
    words: Mapping[str, int],
    size: int,
    *,
    alphabet: Sequence[str],
    min_frequency: int = 2,
    max_length: int = 16,
    progress: Progress = lambda done, total: None,
) -> list[tuple[str, float]]:
    """Pieces with their log probabilities (natural logarithm), most likely first.

    Args:
        words: text → number of occurrences; pieces never cross its ends.
        size: number of pieces; fewer are returned if the data has too few.
        alphabet: characters that always stay pieces. Words are split at all other characters.
        min_frequency: minimum occurrences of a piece longer than one character.
        max_length: maximum length of a piece, in characters.
        progress: called with the number of rounds done and their estimated total.
    """
    texts, weights = _texts(words, set(alphabet))
    counted = _substrings(texts, weights, max_length)
    pieces, counts = _seeds(counted, sorted(alphabet), size * SEEDS_FOR_A_PIECE, min_frequency)
    lattice = Lattice(texts, pieces)
    keep = np.array([len(piece) == 1 for piece in pieces])
    scores = _log_probabilities(counts)
    # Slightly more pieces than `size` remain; the most likely are taken.
    target = max(int(size * 1.1), int(keep.sum()))
    rounds, total = 0, max(1, math.ceil(math.log(target / len(pieces), SHRINK))) if len(pieces) > target else 1
    while True:
        progress(rounds, max(total, rounds + 1))
        for _ in range(EM_STEPS):
            counts = lattice.expected_counts(scores, weights)
            alive = keep | (counts >= LEAST_EXPECTED)
            pieces, keep, lattice, counts = _select(pieces, keep, lattice, counts, alive)
            scores = _log_probabilities(np.maximum(counts, LEAST_EXPECTED * keep))
        rounds += 1
        if len(pieces) <= target:
            break
        alive = _most_useful(pieces, keep, scores, counts, max(target, int(SHRINK * len(pieces))))
        pieces, keep, lattice, scores = _select(pieces, keep, lattice, scores, alive)
    return _likeliest(pieces, keep, scores, size)


class Lattice:
    """All segmentations of W texts into pieces, as E edges between N nodes; every single character is a piece.

    Edges are processed in levels: all that end at the same distance from the beginning of their texts at once.
    """

    def __init__(self, texts: Sequence[str], pieces: Sequence[str]) -> None:
        ids = {piece: index for index, piece in enumerate(pieces)}
        longest = max(map(len, pieces))
        starts, ends, found, levels = [], [], [], []
        offset = 0
        for text in texts:
            for end in range(1, len(text) + 1):
                for start in range(max(0, end - longest), end):
                    index = ids.get(text[start:end])
                    if index is not None:
                        starts.append(offset + start)
                        ends.append(offset + end)
                        found.append(index)
                        levels.append(end)
            offset += len(text) + 1
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self.num_nodes = offset
        self.first = np.concatenate(([0], np.cumsum(lengths + 1)[:-1])).astype(np.int64)  # (W,)
        self.last = self.first + lengths  # (W,)
        self._set(*(np.array(values, dtype=np.int64) for values in (starts, ends, found, levels)))

    def _set(self, starts: Ints, ends: Ints, pieces: Ints, levels: Ints) -> None:
        order = np.lexsort((starts, ends, levels))
        self.starts, self.ends, self.pieces, self.levels = (a[order] for a in (starts, ends, pieces, levels))  # (E,)
        start_levels = self.levels - (self.ends - self.starts)
        self.backward_order = np.lexsort((self.ends, self.starts, -start_levels))
        self.forward_groups = _groups(self.levels, self.ends)
        self.backward_groups = _groups(start_levels[self.backward_order], self.starts[self.backward_order])

    def select(self, new_ids: Ints) -> Lattice:
        """The lattice of the remaining pieces: `new_ids` maps old to new ids, -1 for dropped ones."""
        stays = new_ids[self.pieces] >= 0
        chosen = Lattice.__new__(Lattice)
        chosen.num_nodes, chosen.first, chosen.last = self.num_nodes, self.first, self.last
        chosen._set(self.starts[stays], self.ends[stays], new_ids[self.pieces[stays]], self.levels[stays])
        return chosen

    def expected_counts(self, scores: Floats, weights: Floats) -> Floats:
        """Expected occurrences of each piece under the log probabilities, by the forward–backward algorithm."""
        edge_scores = scores[self.pieces]
        forward, backward = self._forward(edge_scores), self._backward(edge_scores)
        text = np.searchsorted(self.first, self.starts, side="right") - 1  # (E,)
        log_share = forward[self.starts] + edge_scores + backward[self.ends] - forward[self.last[text]]
        shares = np.exp(log_share) * weights[text]
        return np.bincount(self.pieces, weights=shares, minlength=len(scores)).astype(np.float64)

    def best(self, edge_scores: Floats) -> Floats:
        """Log probability of the most likely segmentation of each text, (W,), by the Viterbi algorithm."""
        nodes = np.zeros(self.num_nodes)
        for group, targets, bounds in self.forward_groups:
            nodes[targets] = np.maximum.reduceat(nodes[self.starts[group]] + edge_scores[group], bounds)
        likeliest: Floats = nodes[self.last]
        return likeliest

    def _forward(self, edge_scores: Floats) -> Floats:
        nodes = np.zeros(self.num_nodes)
        for group, targets, bounds in self.forward_groups:
            nodes[targets] = _log_sum_exp(nodes[self.starts[group]] + edge_scores[group], bounds)
        return nodes

    def _backward(self, edge_scores: Floats) -> Floats:
        nodes = np.zeros(self.num_nodes)
        ends, edge_scores = self.ends[self.backward_order], edge_scores[self.backward_order]
        for group, targets, bounds in self.backward_groups:
            nodes[targets] = _log_sum_exp(nodes[ends[group]] + edge_scores[group], bounds)
        return nodes


def _groups(levels: Ints, nodes: Ints) -> list[tuple[slice, Ints, Ints]]:
    """For each run of equal levels: its slice, the target nodes of its edges, the start of each node's edges."""
    cuts = np.flatnonzero(np.diff(levels)) + 1
    bounds = [0, *cuts.tolist(), len(levels)]
    groups = []
    for begin, end in pairwise(bounds):
        firsts = np.concatenate(([0], np.flatnonzero(np.diff(nodes[begin:end])) + 1))
        groups.append((slice(begin, end), nodes[begin:end][firsts], firsts))
    return groups


def _log_sum_exp(values: Floats, bounds: Ints) -> Floats:
    greatest = np.maximum.reduceat(values, bounds)
    lengths = np.diff(np.append(bounds, len(values)))
    sums: Floats = greatest + np.log(np.add.reduceat(np.exp(values - np.repeat(greatest, lengths)), bounds))
    return sums


def _texts(words: Mapping[str, int], alphabet: set[str]) -> tuple[list[str], Floats]:
    """Words split at characters that are not pieces, in parts of limited length, sorted."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        kept = "".join(character if character in alphabet else "\0" for character in word)
        for text in kept.split("\0"):
            for start in range(0, len(text), MAX_TEXT_CHARACTERS):
                counts[text[start : start + MAX_TEXT_CHARACTERS]] += count
    texts = sorted(counts)
    return texts, np.array([counts[text] for text in texts], dtype=np.float64)


def _substrings(texts: list[str], weights: Floats, max_length: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text, weight in zip(texts, weights.tolist(), strict=True):
        for start in range(len(text)):
            for end in range(start + 1, min(len(text), start + max_length) + 1):
                counts[text[start:end]] += weight
    return counts


def _seeds(counts: Counter[str], alphabet: list[str], limit: int, min_frequency: int) -> tuple[list[str], Floats]:
    """The alphabet, then the substrings that cover the most characters; and the frequency of each."""
    longer = [piece for piece, count in counts.items() if len(piece) > 1 and count >= min_frequency]
    longer.sort(key=lambda piece: (-counts[piece] * len(piece), piece))
    pieces = [*alphabet, *longer[:limit]]
    return pieces, np.array([counts[piece] for piece in pieces], dtype=np.float64)


def _log_probabilities(counts: Floats) -> Floats:
    counts = np.maximum(counts, 1e-12)
    rounded: Floats = np.round(np.log(counts / counts.sum()), DIGITS)
    return rounded


def _select(
    pieces: list[str], keep: npt.NDArray[np.bool_], lattice: Lattice, values: Floats, alive: npt.NDArray[np.bool_]
) -> tuple[list[str], npt.NDArray[np.bool_], Lattice, Floats]:
    new_ids = np.where(alive, np.cumsum(alive) - 1, -1)
    left = [piece for piece, stays in zip(pieces, alive.tolist(), strict=True) if stays]
    return left, keep[alive], lattice.select(new_ids), values[alive]


def _most_useful(
    pieces: list[str], keep: npt.NDArray[np.bool_], scores: Floats, counts: Floats, size: int
) -> npt.NDArray[np.bool_]:
    """The `size` pieces whose removal would reduce the likelihood most; those in `keep` always."""
    among = Lattice(pieces, pieces)
    own = (among.starts == among.first[among.pieces]) & (among.ends == among.last[among.pieces]) & ~keep[among.pieces]
    # The most likely segmentation of a piece into other pieces, without its own edge.
    others = among.best(np.where(own, -np.inf, scores[among.pieces]))
    losses = np.round(counts * (scores - others), DIGITS)
    order = sorted(range(len(pieces)), key=lambda i: (not keep[i], -losses[i], pieces[i]))
    alive = np.zeros(len(pieces), dtype=bool)
    alive[order[:size]] = True
    return alive


def _likeliest(pieces: list[str], keep: npt.NDArray[np.bool_], scores: Floats, size: int) -> list[tuple[str, float]]:
    order = sorted(range(len(pieces)), key=lambda i: (not keep[i], -scores[i], pieces[i]))[:size]
    return sorted(((pieces[i], float(scores[i])) for i in order), key=lambda item: (-item[1], item[0]))
