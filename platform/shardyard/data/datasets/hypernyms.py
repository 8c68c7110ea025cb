"""wordnet-questions and wordnet-nouns: what kind of thing a noun of WordNet is.

WordNet points from each noun to its hypernym, the kind of thing that it is; many definitions name it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardyard.data.datasets.rows import Converted, Row, mixed
from shardyard.data.datasets.splits import is_held_out, words

HELD_OUT_PERCENT = 5.0
# Entries of a context, of which at most one is that of the question.
NUM_ENTRIES = 3
UNANSWERABLE_PERCENT = 15.0
# The classes of `wordnet-nouns`: hypernyms that many nouns share, by the first lemma of their synset.
KINDS = (
    "abstraction",
    "act",
    "animal",
    "artifact",
    "attribute",
    "body part",
    "causal agent",
    "change",
    "communication",
    "event",
    "group",
    "instrumentality",
    "living thing",
    "location",
    "matter",
    "object",
    "person",
    "physical entity",
    "plant",
    "relation",
    "state",
)
_LINE = re.compile(r"(\d{8}) \d\d n ([0-9a-f]{2}) (.*) \| (.+)")


@dataclass(frozen=True)
class Noun:
    """A synset: its number, lemmas, the numbers of its hypernyms, and its definition without examples."""

    number: int
    lemmas: tuple[str, ...]
    hypernyms: tuple[int, ...]
    definition: str

    @property
    def entry(self) -> str:
        """A line of a dictionary."""
        return f"{self.lemmas[0]}: {self.definition}."


def read_nouns(text: str) -> dict[int, Noun]:
    """The synsets of `data.noun` by number; lines that begin with spaces are its licence."""
    found = {}
    for match in filter(None, map(_LINE.match, text.splitlines())):
        fields, num_lemmas = match[3].split(), int(match[2], 16)
        lemmas = tuple(lemma.replace("_", " ") for lemma in fields[: 2 * num_lemmas : 2])
        pointers = fields[2 * num_lemmas + 1 :]
        kinds = zip(pointers[::4], pointers[1::4], pointers[2::4], strict=False)
        hypernyms = tuple(int(offset) for symbol, offset, part in kinds if symbol in ("@", "@i") and part == "n")
        definition = " ".join(match[4].partition('; "')[0].split()).rstrip(";. ")
        found[int(match[1])] = Noun(int(match[1]), lemmas, hypernyms, definition)
    return found


def convert_questions(folders: Mapping[str, Path]) -> Converted:
    """Questions for the kind of a noun, over a few entries of a dictionary, in the columns of SQuAD 2.0."""
    nouns = _nouns(folders)
    splits: dict[str, list[Row]] = {}
    for split, own in _split(nouns.values()).items():
        named = [noun for noun in own if _genus(noun, nouns) is not None]
        splits[split] = mixed([_question(noun, named, nouns) for noun in named], split)
    return Converted(splits)


def convert_nouns(folders: Mapping[str, Path]) -> Converted:
    """Entries with the length of the way up to the most general noun, and the kinds that lie on it."""
    nouns = _nouns(folders)
    splits = {
        split: mixed([_described(noun, nouns) for noun in own], split) for split, own in _split(nouns.values()).items()
    }
    return Converted(splits, {"kinds": KINDS})


def _described(noun: Noun, nouns: Mapping[int, Noun]) -> Row:
    above = _above(noun, nouns)
    names = {one.lemmas[0] for one in above}
    kinds = [number for number, kind in enumerate(KINDS) if kind in names]
    return {"text": noun.entry, "depth": float(len(above)), "kinds": kinds, "word": noun.lemmas[0]}


def _above(noun: Noun, nouns: Mapping[int, Noun]) -> list[Noun]:
    """The hypernyms of a noun up to the most general one, by the first pointer of each."""
    found: list[Noun] = []
    while noun.hypernyms and noun.hypernyms[0] in nouns:
        noun = nouns[noun.hypernyms[0]]
        found.append(noun)
    return found


def _nouns(folders: Mapping[str, Path]) -> dict[int, Noun]:
    return read_nouns((folders["wordnet-base"] / "usr/share/wordnet/data.noun").read_text(encoding="utf-8"))


def _split(nouns: Iterable[Noun]) -> dict[str, list[Noun]]:
    splits: dict[str, list[Noun]] = {"train": [], "validation": []}
    for noun in sorted(nouns, key=lambda noun: noun.number):
        held_out = is_held_out(" ".join(words(noun.definition)), HELD_OUT_PERCENT)
        splits["validation" if held_out else "train"].append(noun)
    return splits


def _genus(noun: Noun, nouns: Mapping[int, Noun]) -> tuple[int, int] | None:
    """The characters of a definition that name a hypernym: the first that do, and as many as do."""
    found: list[tuple[int, int]] = []
    for hypernym in noun.hypernyms:
        for lemma in nouns[hypernym].lemmas if hypernym in nouns else ():
            match = re.search(rf"\b{re.escape(lemma)}\b", noun.definition, re.IGNORECASE)
            if match:
                found.append((match.start(), -match.end()))
    start, end = min(found, default=(0, 0))
    return (start, -end) if end else None


def _question(noun: Noun, others: Sequence[Noun], nouns: Mapping[int, Noun]) -> Row:
    numbers = iter(hashlib.sha256(f"question {noun.number}".encode()).digest())
    chosen = [others[(next(numbers) * 65536 + next(numbers) * 256 + next(numbers)) % len(others)] for _ in range(8)]
    entries = [other for other in dict.fromkeys(chosen) if not set(other.lemmas) & set(noun.lemmas)][:NUM_ENTRIES]
    genus = _genus(noun, nouns)
    assert genus is not None
    text: list[str] = []
    starts: list[int] = []
    if not is_held_out(f"unanswerable {noun.number}", UNANSWERABLE_PERCENT):
        place = next(numbers) % len(entries)
        entries[place] = noun
        before = sum(len(entry.entry) + 1 for entry in entries[:place]) + len(noun.lemmas[0]) + 2
        text, starts = [noun.definition[genus[0] : genus[1]]], [before + genus[0]]
    return {
        "question": f"What kind of thing is {noun.lemmas[0]}?",
        "context": " ".join(entry.entry for entry in entries),
        "answers": {"text": text, "answer_start": starts},
    }
