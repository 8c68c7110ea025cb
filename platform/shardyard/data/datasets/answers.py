"""docstring-answers, -preferences and -choices: questions about functions of the standard library, with answers."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from shardyard.data.datasets.rows import Converted, Row, mixed
from shardyard.data.datasets.splits import is_held_out, near_duplicates
from shardyard.data.sources.corpus import corpus_files

HELD_OUT_PERCENT = 5.0
LENGTHS = range(20, 401)
# A wrong answer is chosen from this many of the nearest length, so that length alone does not reveal the right one.
NUM_RIVALS = 8
NUM_CHOICES = 4
_QUESTIONS = (
    "What does {name} do?",
    "Explain {name} in a sentence or two.",
    "What is {name} for?",
    "Describe the {kind} {name} of Python's standard library.",
    "I came across {name} in some code. What does it do?",
)
# Doctests, directives, annotations and calls are not prose.
_NOT_PROSE = re.compile(r">>>|->|::|\[-|^[:@*\-]|^\w+\(|[^\x20-\x7e]")


@dataclass(frozen=True)
class Answer:
    name: str
    prompt: str
    response: str


def convert_answers(folders: Mapping[str, Path]) -> Converted:
    """Questions with their answers, both as columns and as messages."""
    return Converted({split: mixed([_row(one) for one in found], split) for split, found in _answers().items()})


def convert_preferences(folders: Mapping[str, Path]) -> Converted:
    """The same questions with the right answer and the answer for another name."""
    return Converted({split: mixed(_preferences(found), split) for split, found in _answers().items()})


def convert_choices(folders: Mapping[str, Path]) -> Converted:
    """The same questions with the right answer among those for other names."""
    return Converted({split: mixed(_choices(found), split) for split, found in _answers().items()})


def _row(answer: Answer) -> Row:
    messages = [{"role": "user", "content": answer.prompt}, {"role": "assistant", "content": answer.response}]
    return {"messages": messages, "prompt": answer.prompt, "response": answer.response, "name": answer.name}


def _preferences(answers: Sequence[Answer]) -> list[Row]:
    rows: list[Row] = []
    for answer, rivals in _rivals(answers):
        rejected = rivals[_number(answer.name, "rival") % len(rivals)].response
        rows.append({"prompt": answer.prompt, "chosen": answer.response, "rejected": rejected, "name": answer.name})
    return rows


def _choices(answers: Sequence[Answer]) -> list[Row]:
    rows: list[Row] = []
    for answer, rivals in _rivals(answers):
        first, label = _number(answer.name, "rivals"), _number(answer.name, "place") % NUM_CHOICES
        wrong = [rivals[(first + place) % len(rivals)].response for place in range(NUM_CHOICES - 1)]
        choices = [*wrong[:label], answer.response, *wrong[label:]]
        relevance = [float(place == label) for place in range(NUM_CHOICES)]
        rows.append(
            {"question": answer.prompt, "choices": choices, "label": label, "relevance": relevance, "name": answer.name}
        )
    return rows


def _rivals(answers: Sequence[Answer]) -> Iterator[tuple[Answer, list[Answer]]]:
    """Each answer with the answers of the nearest length."""
    by_length = sorted(answers, key=lambda answer: (len(answer.response), answer.name))
    for index, answer in enumerate(by_length):
        first = max(0, min(index - NUM_RIVALS // 2, len(by_length) - NUM_RIVALS - 1))
        yield answer, [rival for rival in by_length[first : first + NUM_RIVALS + 1] if rival is not answer]


def _answers() -> dict[str, list[Answer]]:
    """Answers by split. Held out are the modules that the embedded corpora hold out, and further answers by hash.

    Answers that share five words in a row are on the same side. Sentences that occur in several docstrings are
    excluded: they are not specific to one name.
    """
    files = corpus_files("python-docstrings")
    kept_back = {answer.name for file in files["validation"] for answer in _read(file)}
    found = [answer for split in ("train", "validation") for file in files[split] for answer in _read(file)]
    found.sort(key=lambda answer: answer.name)
    counts = Counter(answer.response.casefold() for answer in found)
    unique = [answer for answer in found if counts[answer.response.casefold()] == 1]
    groups = near_duplicates([answer.response for answer in unique])
    back = {group for answer, group in zip(unique, groups, strict=True) if answer.name in kept_back}
    splits: dict[str, list[Answer]] = {"train": [], "validation": []}
    for answer, group in zip(unique, groups, strict=True):
        held_out = group in back or is_held_out(group, HELD_OUT_PERCENT)
        splits["validation" if held_out else "train"].append(answer)
    return splits


def _read(file: str) -> list[Answer]:
    """The answers of a shard: its documents are a signature, an empty line and a docstring."""
    answers = []
    for document in pq.read_table(file).to_pylist():
        name, _, occurrence = document["id"].partition("#")
        signature, _, docstring = document["text"].partition("\n\n")
        if occurrence == "1" and not any(part.startswith("_") for part in name.split(".")):
            response = first_sentences(docstring)
            if response:
                kind = "class" if signature.startswith("class ") else "function"
                question = _QUESTIONS[_number(name, "question") % len(_QUESTIONS)]
                answers.append(Answer(name, question.format(name=name, kind=kind), response))
    return answers


def first_sentences(docstring: str) -> str | None:
    """The first paragraph of a docstring, or None if it is not prose."""
    text = " ".join(docstring.strip().split("\n\n")[0].split())
    if len(text) not in LENGTHS or _NOT_PROSE.search(text) or not text[0].isupper() or text[-1] in ":,;":
        return None
    return text if text[-1] in ".!?)" else f"{text}."


def _number(name: str, purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{purpose}\0{name}".encode()).digest()[:8], "big")
