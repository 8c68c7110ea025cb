"""The documents behind a step are those that the loader gave to the training, whatever the world and the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardyard.cli.main import run as command
from shardyard.dashboard.web import documents, isolated
from shardyard.data.stream.loader import TrainLoader
from shardyard.engine.components import make_components
from shardyard.engine.inference.step_documents import DocumentPart, documents_of_step
from shardyard.errors import UsageError
from shardyard.recipe.loading.load import dump_recipe
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder
from support.dash_cases import served, write_run
from support.tiny import tiny_recipe, write_corpus

STEPS = 40


class Trained:
    """A run folder, and the rows that its steps were really given: text of the row by step, rank and number."""

    def __init__(self, folder: Path, world_size: int, *, checkpoint: int | None = None, **sections: Any) -> None:
        corpus = write_corpus(folder, documents=60)
        self.corpus = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
        train = [{"path": str(corpus), "holdout": 0.1}, {"source": "python-docs", "weight": 0.3}]
        sections["data"] = {"train": train} | sections.get("data", {})
        recipe = tiny_recipe(corpus, train={"steps": STEPS}, **sections)
        text = dump_recipe(recipe)
        self.run = RunFolder.create(folder / "runs", "tiny", text, text, world_size=world_size, total_steps=STEPS)
        self.rows: dict[int, dict[int, str]] = {step: {} for step in range(1, STEPS + 1)}
        states: dict[str, Any] = {}
        for rank in range(world_size):
            states |= self._train(recipe, rank, world_size, checkpoint or STEPS)
        if checkpoint is not None:
            path = self.run.checkpoints / f"step-{checkpoint:08d}"
            path.mkdir(parents=True)
            (path / "data.json").write_text(json.dumps(states))

    def _train(self, recipe: Recipe, rank: int, world_size: int, checkpoint: int) -> dict[str, Any]:
        components = make_components(recipe)
        batch, streams = recipe.train.global_batch, recipe.data.streams
        assert streams is not None
        loader = TrainLoader(
            components.format_inputs,
            global_batch=batch,
            streams=streams,
            seed=recipe.train.seed,
            dp_rank=rank,
            dp_size=world_size,
        )
        self.run.update(data=loader.fingerprint())
        state: dict[str, Any] = {}
        for step in range(1, STEPS + 1):
            made = next(loader)
            state = made.state if step == checkpoint else state
            for index, ids in enumerate(made["input_ids"].tolist()):
                last = [label for label in made["labels"][index][-1:].tolist() if label >= 0]
                self.rows[step][rank + index * world_size] = components.tokenizer.decode(
                    ids + last, skip_special_tokens=True
                )
        loader.close()
        return state


@pytest.fixture(scope="module", params=[1, 2], ids=["order 1", "order 2"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    data = {"order": request.param}
    return Trained(tmp_path_factory.mktemp("trained"), world_size=2, checkpoint=20, data=data)


def rows_of(found: dict[str, Any]) -> dict[int, str]:
    """Text by row, its parts put together again."""
    rows: dict[int, str] = {}
    for part in found["documents"]:
        rows[part["row"]] = rows.get(part["row"], "") + part["text"]
    return rows


@pytest.mark.parametrize("step", [1, 7, 20, 21, STEPS])
def test_they_are_the_rows_that_were_trained_on(trained: Trained, step: int) -> None:
    found = documents_of_step(trained.run, step)
    assert (found["step"], found["rows"], found["problem"]) == (step, 8, None)
    shown = rows_of(found)
    assert sorted(shown) == list(range(8))
    for row, text in trained.rows[step].items():
        # The last token of a row is a target alone and begins the next row.
        assert text.startswith(shown[row])
        assert len(text) - len(shown[row]) <= 1
    assert all(part["rank"] == part["row"] % 2 for part in found["documents"])
    for row in range(8):
        assert sum(part["tokens"] for part in found["documents"] if part["row"] == row) == 32


@pytest.mark.slow
def test_a_document_is_named_alike_wherever_it_is_met(trained: Trained) -> None:
    """A document that goes on in the next row of its stream keeps its place, and its parts make the whole text."""
    whole: dict[tuple[str, str, int], str] = {}
    for step in range(1, 13):
        for part in documents_of_step(trained.run, step)["documents"]:
            place = (part["source"], part["document"], part["row"] % 4)
            whole[place] = whole.get(place, "") + part["text"]
    ours = [text for (source, _, _), text in whole.items() if source.endswith(".jsonl")]
    complete = [text for text in ours if text in trained.corpus]
    # All but the last one of each stream are whole: one wrong place would join two documents or split one.
    assert len(ours) - len(complete) <= 4
    assert len(complete) > 20


def test_they_begin_at_the_newest_checkpoint_before_the_step(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    from shardyard.data.stream.streams import Stream

    made: list[int] = []
    next_row = Stream.next_row
    monkeypatch.setattr(Stream, "next_row", lambda self: made.append(1) or next_row(self))
    documents_of_step(trained.run, 22)
    assert len(made) == 16
    made.clear()
    documents_of_step(trained.run, 22, most_rows=2)
    # Two rows of two streams: the other streams are not read at all.
    assert len(made) == 6


def test_a_step_that_is_none(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (0, STEPS + 1):
        with pytest.raises(UsageError, match=f"its steps are 1 to {STEPS}"):
            documents_of_step(trained.run, step)
    runs = str(trained.run.path.parent)
    assert command(["data", "rows", "latest", "--step", "3", "-n", "1", "--runs-dir", runs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert {line.split("\t")[0] for line in lines} == {"0"}


def test_data_that_has_changed_is_told(tmp_path: Path) -> None:
    trained = Trained(tmp_path, world_size=1)
    path = Path(tmp_path / "corpus-60-0.jsonl")
    path.write_text(path.read_text() + json.dumps({"text": "one more"}) + "\n")
    found = documents_of_step(trained.run, 2)
    assert "is not what it was" in found["problem"]
    assert found["documents"]


@pytest.fixture
def no_cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.slow
def test_the_dashboard_answers(trained: Trained, no_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained.run
    with served(run.path.parent, no_cache, data_dirs=[run.path.parent.parent]) as client:
        answer = client.get(f"/api/runs/{run.id}/documents", params={"step": 7})
        assert answer.status_code == 200
        found = answer.json()
        assert found["problem"] is None
        assert {*found["documents"][0]} == {*DocumentPart.__annotations__}
        assert rows_of(found) == rows_of(documents_of_step(run, 7))
        # The second time nothing is started.
        monkeypatch.setattr(isolated, "call", None)
        assert client.get(f"/api/runs/{run.id}/documents", params={"step": 7}).json() == found
        assert client.get(f"/api/runs/{run.id}/documents").status_code == 400
        assert client.get(f"/api/runs/{run.id}/documents", params={"step": "x"}).status_code == 400
        assert client.get("/api/runs/nothing/documents", params={"step": 1}).status_code == 404


@pytest.mark.slow
def test_a_run_whose_data_is_gone(tmp_path: Path, no_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Trained(tmp_path, world_size=1)
    (tmp_path / "corpus-60-0.jsonl").unlink()
    write_run(trained.run.path.parent, "none-1")
    with served(trained.run.path.parent, no_cache, data_dirs=[tmp_path]) as client:
        found = client.get(f"/api/runs/{trained.run.id}/documents", params={"step": 2}).json()
        assert found["documents"] == []
        assert "corpus-60-0.jsonl" in found["problem"]
        assert "Traceback" not in found["problem"]
        # The recipe of this one is none.
        assert client.get("/api/runs/none-1/documents", params={"step": 2}).json()["problem"]
        monkeypatch.setattr(documents, "LIMIT_SECONDS", 0.2)
        found = client.get(f"/api/runs/{trained.run.id}/documents", params={"step": 3}).json()
        assert "takes longer than" in found["problem"]
        monkeypatch.setattr(documents, "WAIT_SECONDS", 0.1)
        made = documents.Documents([tmp_path])
        with made._lock:
            assert "another step" in made.of_step(trained.run.path, 4)["problem"]


def test_rows_of_one_document_have_one_part(tmp_path: Path) -> None:
    trained = Trained(tmp_path, world_size=1, data={"isolation": "rows"})
    found = documents_of_step(trained.run, 3)
    assert [part["row"] for part in found["documents"]] == list(range(8))
    for part in found["documents"]:
        assert part["text"]
        assert trained.rows[3][part["row"]].startswith(part["text"])
        assert 1 <= part["tokens"] <= 32


def test_the_documents_of_rows_packed_best_fit(tmp_path: Path) -> None:
    """Their parts are whole documents, or pieces of one longer than a row, each named by its place in the window."""
    trained = Trained(tmp_path, world_size=2, checkpoint=20, data={"packing": "best_fit"})
    places: dict[tuple[str, str, int], set[str]] = {}
    for step in (1, 7, 21):
        found = documents_of_step(trained.run, step)
        for row, text in trained.rows[step].items():
            assert text.startswith(rows_of(found)[row])
        for part in found["documents"]:
            places.setdefault((part["source"], part["document"], part["row"] % 4), set()).add(part["text"])
    ours = [texts for (source, _, _), texts in places.items() if source.endswith(".jsonl")]
    whole = [text for text in trained.corpus if any(text in texts for texts in ours)]
    assert len(whole) >= 1
    assert all(any(text in one for one in trained.corpus) for texts in ours for text in texts)
