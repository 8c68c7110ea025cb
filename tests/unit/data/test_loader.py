"""The loader's thread: reading ahead, failures, retries and an end that comes when it is asked for."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shardyard.data.formats import FormatInputs
from shardyard.data.sources import retry as retry_module
from shardyard.data.sources.retry import Retry, Stopped
from shardyard.data.stream import reader, streams
from shardyard.data.stream.left_out import LeftOut
from shardyard.data.stream.loader import Batch, TrainLoader
from shardyard.errors import DataError, UnavailableError
from shardyard.recipe.schema import Data, Source
from support.data_cases import batches, bytes_tokenizer, data, documents, loader, rows, write_jsonl
from support.waiting import PATIENCE_SECONDS, until


@pytest.fixture
def recipe(tmp_path: Path) -> Data:
    return data([Source(path=write_jsonl(tmp_path, [documents(60), documents(60, "e")]))])


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_module, "wait_seconds", lambda failures: 0.001)


@dataclass
class Flaky:
    """A streaming data set of which some tables, counted over all streams, fail to come."""

    dataset: Any
    error: BaseException
    which: set[int]
    pulls: list[int]

    def with_format(self, name: str) -> Flaky:
        return replace(self, dataset=self.dataset.with_format(name))

    def iter(self, batch_size: int) -> Iterator[Any]:
        inner = self.dataset.iter(batch_size=batch_size)
        while True:
            self.pulls[0] += 1
            if self.pulls[0] in self.which:
                raise self.error
            table = next(inner, None)
            if table is None:
                return
            yield table

    def state_dict(self) -> Any:
        return self.dataset.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.dataset.load_state_dict(state)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, which: set[int]) -> list[int]:
    """Let the tables with these numbers fail; returns the running number as a list of one."""
    pulls = [0]

    def share_of(*given: Any) -> reader.Share:
        share = reader.share_of(*given)
        return replace(share, dataset=Flaky(share.dataset, error, which, pulls))

    monkeypatch.setattr(streams, "share_of", share_of)
    return pulls


def test_shapes_and_types(recipe: Data) -> None:
    with loader(recipe, global_batch=8, streams=4, dp_rank=1, dp_size=2) as opened:
        batch = next(opened)
    for tensor in (batch["input_ids"], batch["labels"], batch["position_ids"]):
        assert tensor.shape == (4, 16)
        assert tensor.dtype is torch.int64
    assert batch.row_sources == (0, 0, 0, 0)
    assert set(batch.state) == {"1", "3"}


def test_reading_ahead_does_not_move_the_state(recipe: Data) -> None:
    with loader(recipe.model_copy(update={"prefetch": 50})) as opened:
        first = next(opened)
        until(opened._feed.ready.full, "the queue is full")
        assert rows(next(opened)) == rows(batches(recipe, 1, first.state)[0])
        assert opened.stats()["sources"][0]["rows"] == 8
    assert {stream["rows"] for stream in first.state.values()} == {1}


def test_prefetch_is_bounded(recipe: Data) -> None:
    with loader(recipe) as opened:
        for taken in range(1, 20):
            next(opened)
            # Two wait in the queue, and one is in the hand of the thread that waits for room.
            until(lambda read=(taken + 2 + 1) * 4: _rows_read(opened) >= read, "the thread has read on")
            assert _rows_read(opened) == (taken + 2 + 1) * 4


def test_stats_count_tokens_documents_skips_and_epochs(tmp_path: Path) -> None:
    texts = [*documents(20), "", None]
    recipe = data([Source(path=write_jsonl(tmp_path, [texts]), weight=1.0)], sequence_length=50)
    with loader(recipe, streams=1, global_batch=1) as opened:
        nothing = {"rows": 0, "tokens": 0, "documents": 0, "skipped": 0, "epochs": 0, "left_out": LeftOut().counts()}
        assert opened.stats() == {"retries": 0, "cut": 0, "sources": [{"name": recipe.train[0].path, **nothing}]}
        tokens = sum(len(text.encode()) + 1 for text in documents(20))
        for _ in range(2 * tokens // 50 + 1):
            next(opened)
        (stats,) = opened.stats()["sources"]
    assert stats["tokens"] == 50 * stats["rows"] == 50 * (2 * tokens // 50 + 1)
    assert stats["epochs"] == 2
    assert stats["documents"] in (40, 41, 42)
    assert stats["skipped"] in (4, 6)  # Two an epoch; reading ahead may have met the third pair.


def test_the_fingerprint_is_the_same_on_every_rank(recipe: Data) -> None:
    with loader(recipe, dp_rank=0, dp_size=2) as one, loader(recipe, dp_rank=1, dp_size=2) as two:
        assert one.fingerprint() == two.fingerprint()
        assert one.fingerprint()["sources"][0]["num_files"] == 2
    with loader(recipe, seed=8) as other:
        assert other.fingerprint() != one.fingerprint()


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("error", [OSError("reset"), ConnectionError("gone"), TimeoutError("slow")])
def test_transient_failures_are_retried_without_losing_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = data([Source(path=write_jsonl(tmp_path, [documents(700), documents(700, "e")]))], sequence_length=100)
    undisturbed = [rows(batch) for batch in batches(recipe, 60, streams=2)]
    failing(monkeypatch, error, {1, 2, 4, 5, 6, 9})
    with loader(recipe, streams=2) as opened:
        assert [rows(next(opened)) for _ in range(60)] == undisturbed
        assert opened.stats()["retries"] == 6
    assert "try 2 in 0.0 s" in caplog.text


@pytest.mark.usefixtures("quick_retries")
def test_retries_end_with_an_error_that_names_the_source(recipe: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    count = failing(monkeypatch, OSError("reset by peer"), set(range(1, 10_000)))
    recipe = recipe.model_copy(update={"retry_seconds": 0.05})
    with loader(recipe) as opened:
        for _ in range(2):  # And again: a failed loader does not come back.
            with pytest.raises(
                UnavailableError,
                match=r"part-\*\.jsonl.*OSError: reset by peer; it still failed after 0\.05 s \(data\.retry_seconds\)",
            ):
                next(opened)
    assert 5 < count[0] <= 51


@pytest.mark.parametrize("error", [ValueError("bad line"), PermissionError("not yours"), FileNotFoundError("moved")])
def test_lasting_failures_are_not_retried(recipe: Data, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    count = failing(monkeypatch, error, set(range(1, 100)))
    with loader(recipe) as opened, pytest.raises(DataError, match=f"{type(error).__name__}: {error}"):
        next(opened)
    assert count == [1]


def test_a_broken_file_among_others(tmp_path: Path) -> None:
    pattern = write_jsonl(tmp_path, [documents(20), documents(20, "e")])
    (tmp_path / "part-002.jsonl").write_text('{"text": \n')
    recipe = data([Source(path=pattern)], sequence_length=5000, on_error="stop")
    told = r"part-002\.jsonl, row 1: line 1: no JSON: Expecting value at character 10\. Correct or remove the row"
    with loader(recipe, streams=1) as opened, pytest.raises(DataError, match=told):
        next(opened)
    with loader(recipe.model_copy(update={"on_error": "skip"}), streams=1) as opened:
        next(opened)
        (counts,) = opened.stats()["sources"]
    assert counts["left_out"]["unusable"] >= 1


def test_defects_of_the_program_keep_their_type(recipe: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object) -> Batch:
        raise ZeroDivisionError("a defect")

    with loader(recipe) as opened:
        monkeypatch.setattr(type(opened._feed.rows), "next_batch", defect)
        with pytest.raises(ZeroDivisionError):
            next(opened)


def _rows_read(opened: TrainLoader) -> int:
    return sum(stream.num_rows for stream in opened._feed.rows.streams.values())


def alive(opened: TrainLoader) -> bool:
    return opened._feed.thread is not None and opened._feed.thread.is_alive()


def test_close_ends_a_thread_that_waits_at_a_full_queue(recipe: Data) -> None:
    with loader(recipe) as opened:
        next(opened)
        until(opened._feed.ready.full, "the queue is full")
        assert alive(opened)
        opened.close()
        assert not alive(opened)
        opened.close()
        with pytest.raises(StopIteration):
            next(opened)


def test_close_ends_a_thread_that_waits_for_another_try(recipe: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_module, "wait_seconds", lambda failures: 60.0)
    failing(monkeypatch, OSError("reset"), set(range(1, 100)))
    with loader(recipe) as opened:
        opened._start()
        until(lambda: opened._feed.retry.count, "a failure")
        opened.close()
        assert not alive(opened)


def test_a_forgotten_loader_ends_its_thread(recipe: Data) -> None:
    opened = TrainLoader(
        FormatInputs(recipe, bytes_tokenizer()), global_batch=4, streams=4, seed=7, dp_rank=0, dp_size=1
    )
    next(opened)
    thread = opened._feed.thread
    assert thread is not None
    del opened
    gc.collect()
    thread.join(timeout=PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_close_before_the_first_batch(recipe: Data) -> None:
    with loader(recipe) as opened:
        opened.close()
    assert "shardyard-data" not in {thread.name for thread in threading.enumerate()}


def test_waits_grow_and_are_spread() -> None:
    waits = [[retry_module.wait_seconds(failures) for _ in range(200)] for failures in range(1, 9)]
    longest = [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    for sample, bound in zip(waits, longest, strict=True):
        assert 0 <= min(sample) < bound / 4 < bound * 3 / 4 < max(sample) <= bound
        assert len(set(sample)) > 100


def test_a_stopped_retry_does_not_wait() -> None:
    retry = Retry()
    retry.stop.set()

    def attempt() -> None:
        raise OSError("reset")

    with pytest.raises(Stopped):
        retry.call(attempt, "test")
