"""Readers change who makes a row, never which rows a global batch has, or its state."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertConfig, ViTConfig

from shardyard.data.formats import FormatInputs
from shardyard.data.readers.part import OwnStreams
from shardyard.data.stream.loader import Batch, TrainLoader
from shardyard.data.stream.packing import IGNORED
from shardyard.errors import DataError
from shardyard.recipe import schema
from shardyard.recipe.schema import Data, Source
from support.data_cases import bytes_tokenizer, data, documents, write_jsonl
from support.images import CLASSES, SIZE, write_images
from support.waiting import until
from support.wordpieces import tiny_wordpiece

STREAMS, BATCH, STEPS = 8, 8, 4


@dataclass(frozen=True)
class Kind:
    """A kind of data: its objective, and the inputs of its rows."""

    objective: str
    inputs: FormatInputs


def talks(path: Path) -> str:
    """Conversations of different lengths, some of which nothing can be learned from."""
    with path.open("w") as file:
        for number in range(60):
            turns = [
                {"role": "user", "content": "q" * (1 + number * 5 % 17)},
                {"role": "assistant", "content": f"a{number}" if number % 9 else ""},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    folder = tmp_path_factory.mktemp("kinds")
    texts = Source(path=write_jsonl(folder / "text", [documents(150), documents(40, "e"), ["", *documents(9, "f")]]))
    other = Source(path=write_jsonl(folder / "other", [documents(90, "o")]), weight=0.4)
    words = Source(path=write_jsonl(folder / "words", [["the cat sat on the mat " * (1 + n % 9) for n in range(80)]]))
    pictures = Source(path=str(write_images(folder)))
    chat = Source(path=talks(folder / "talk.jsonl"))
    vit = ViTConfig(image_size=SIZE, patch_size=3, num_channels=1, num_labels=CLASSES)
    augmented = schema.Image(flip=True, crop_padding=2, rotate=9.0, erase=0.5)
    bert = BertConfig(max_position_embeddings=64)
    made = {
        "text": ("causal_lm", FormatInputs(data([texts, other]), bytes_tokenizer())),
        "drawn": ("causal_lm", FormatInputs(data([texts, other], order=2), bytes_tokenizer())),
        "masked": ("masked_lm", FormatInputs(data([words]), tiny_wordpiece(), bert)),
        "pictures": ("image_classification", FormatInputs(Data(train=[pictures]), None, vit, image=augmented)),
        "conversations": ("instruction", FormatInputs(data([chat], sequence_length=96), bytes_tokenizer())),
        "packed": ("instruction", FormatInputs(data([chat], sequence_length=96, packing=True), bytes_tokenizer())),
    }
    return {name: Kind(objective, inputs) for name, (objective, inputs) in made.items()}


@contextmanager
def loader(kind: Kind, *, rank: int = 0, ranks: int = 1, readers: int = 0, window: int = 5) -> Iterator[TrainLoader]:
    recipe = kind.inputs.data.model_copy(update={"shuffle_window": window, "prefetch": 1})
    opened = TrainLoader(
        FormatInputs(**{**vars(kind.inputs), "data": recipe}),
        objective=kind.objective,
        global_batch=BATCH,
        streams=STREAMS,
        seed=3,
        dp_rank=rank,
        dp_size=ranks,
        readers=readers,
        readers_are="threads",
    )
    try:
        yield opened
    finally:
        opened.close()


def taken(kind: Kind, count: int, state: Any = None, **options: Any) -> list[Batch]:
    with loader(kind, **options) as opened:
        if state is not None:
            opened.load_state(json.loads(json.dumps(state)))
        return [next(opened) for _ in range(count)]


def unpadded(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A row up to its last target: rows are padded to the longest of their batch, which depends on the ranks."""
    labels = values["labels"]
    if not labels.ndim:
        return values
    end = int((labels != IGNORED).nonzero()[-1]) + 1
    return {name: value[:end] for name, value in values.items()}


def in_words(batch: Batch) -> list[tuple[Any, ...]]:
    """The rows of a batch: its tensors, without what pads them, and the source."""
    found = []
    for row, source in enumerate(batch.row_sources):
        values = {name: tensor[row] for part in batch.micro_batches for name, tensor in part.items()}
        found.append((source, {name: value.tolist() for name, value in sorted(unpadded(values).items())}))
    return found


def global_batches(kind: Kind, count: int, ranks: int, state: Any = None, **options: Any) -> tuple[list[Any], Any]:
    """The rows of global batches in their order, assembled from all ranks, and the merged state after them."""
    each = [taken(kind, count, state, rank=rank, ranks=ranks, **options) for rank in range(ranks)]
    rows = [
        [row for some in zip(*map(in_words, step), strict=True) for row in some] for step in zip(*each, strict=True)
    ]
    merged: dict[str, Any] = {}
    for batches in each:
        merged |= batches[-1].state
    return rows, merged


UNBROKEN: dict[tuple[str, int], Any] = {}


def unbroken(kind: Kind, name: str, window: int) -> Any:
    """What one rank without readers makes."""
    if (name, window) not in UNBROKEN:
        UNBROKEN[name, window] = global_batches(kind, STEPS, 1, window=window)
    return UNBROKEN[name, window]


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["text", "drawn", "masked", "pictures", "conversations", "packed"]),
    window=st.sampled_from([1, 5, 64]),
    ranks=st.sampled_from([1, 2, 4, 8]),
    later=st.sampled_from([1, 2, 4, 8]),
    readers=st.integers(0, 4),
    after=st.integers(0, 4),
    interrupted=st.integers(1, STEPS - 1),
)
def test_the_order_does_not_depend_on_the_readers(
    kinds: dict[str, Kind], name: str, window: int, ranks: int, later: int, readers: int, after: int, interrupted: int
) -> None:
    kind = kinds[name]
    whole, end = unbroken(kind, name, window)
    first, state = global_batches(kind, interrupted, ranks, readers=readers, window=window)
    rest, state = global_batches(kind, STEPS - interrupted, later, state, readers=after, window=window)
    assert first + rest == whole
    assert state == end


@pytest.mark.parametrize("name", ["text", "conversations"])
def test_the_statistics_do_not_depend_on_the_readers(kinds: dict[str, Kind], name: str) -> None:
    found = []
    for readers in (0, 3):
        with loader(kinds[name], readers=readers) as opened:
            found.append([opened.stats(), *((next(opened), opened.stats())[1] for _ in range(9))])
    assert found[0] == found[1]
    assert found[0][-1]["sources"][0]["rows"] > 0


def test_there_is_at_most_one_reader_a_stream(kinds: dict[str, Kind]) -> None:
    with loader(kinds["text"], readers=64, rank=1, ranks=4) as opened:
        next(opened)
        assert len([thread for thread in threading.enumerate() if thread.name.startswith("shardyard-reader")]) == 2
    assert not any(thread.name.startswith("shardyard-reader") for thread in threading.enumerate())


def test_a_bad_row_ends_the_same_batch_with_the_same_message(tmp_path: Path) -> None:
    texts = [*documents(57), None]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text, "n": 0}) + "\n" for text in texts[:-1]) + "{\n")
    recipe = data([Source(path=str(tmp_path / "a.jsonl"))], on_error="stop")
    kind = Kind("causal_lm", FormatInputs(recipe, bytes_tokenizer()))
    found = []
    for readers in (0, 1, 2, 4):
        with loader(kind, readers=readers) as opened:
            with pytest.raises(DataError, match=r"a\.jsonl, row 58") as error:
                list(opened)
            found.append((opened.stats(), str(error.value)))
    found = [(stats["sources"][0]["rows"], told) for stats, told in found]
    assert len(set(found)) == 1


def test_of_several_failures_the_first_row_counts(kinds: dict[str, Kind], monkeypatch: pytest.MonkeyPatch) -> None:
    real = OwnStreams.part

    def part(self: OwnStreams, first: int, count: int) -> Any:
        if first >= 2 * BATCH:
            # The later reader has the earlier row.
            self.at = first + (1 if 1 in self._streams else 5)
            raise DataError(f"row {self.at}")
        return real(self, first, count)

    monkeypatch.setattr(OwnStreams, "part", part)
    with loader(kinds["text"], readers=2) as opened:
        next(opened), next(opened)
        with pytest.raises(DataError, match=f"row {2 * BATCH + 1}"):
            next(opened)


def test_a_closed_loader_leaves_no_thread(kinds: dict[str, Kind]) -> None:
    with loader(kinds["text"], readers=3) as opened:
        next(opened)
        until(lambda: opened._feed.ready.full(), "the queue is full")
    assert not any(thread.name.startswith(("shardyard-data", "shardyard-reader")) for thread in threading.enumerate())


def test_readers_have_tokenizers_of_their_own(kinds: dict[str, Kind]) -> None:
    # Calls that truncate change a fast tokenizer, so that calls of several threads at once fail.
    for batch in taken(kinds["masked"], 20, readers=4):
        assert isinstance(batch["attention_mask"], torch.Tensor)
