"""`data trace`: documents of a step and steps of a document, against the rows that loaders really made.

The run is made of three attempts on 2, 1 and 2 ranks; each later one goes back a few steps. What is told of each
step is tokenised again by the tokenizer alone and compared with the ids of its batch.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shardyard.cli.main import run as command
from shardyard.data.ledger import record
from shardyard.data.ledger.queries import parse_query
from shardyard.data.stream.loader import TrainLoader
from shardyard.engine.components import make_components
from shardyard.engine.inference.step_documents import DocumentPart, documents_of_step
from shardyard.engine.inference.trace import trace_documents
from shardyard.recipe.loading.load import dump_recipe
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder
from support.tiny import tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

# World size, steps before it, last step.
ATTEMPTS = ((2, 0, 14), (1, 10, 22), (2, 20, 40))
STEPS, DOCUMENTS = 40, 40


class Run:
    """A run folder with a ledger, and the ids [T] of the rows of each step: `ids[step][row]`."""

    def __init__(self, folder: Path, **data: Any) -> None:
        self.corpus = write_corpus(folder, documents=DOCUMENTS)
        train = [{"path": str(self.corpus), "holdout": 0.1}, {"source": "python-docs", "weight": 0.3}]
        self.recipe = tiny_recipe(self.corpus, train={"steps": STEPS}, data={"train": train, **data})
        text = dump_recipe(self.recipe)
        self.folder = RunFolder.create(folder / "runs", "tiny", text, text, world_size=2, total_steps=STEPS)
        self.ids: dict[int, dict[int, list[int]]] = defaultdict(dict)
        self.states: dict[int, dict[str, Any]] = defaultdict(dict)
        self.components = make_components(self.recipe)
        for number, (world, start, last) in enumerate(ATTEMPTS, 1):
            for rank in range(world):
                self._train(number, rank, world, start, last)
        self.folder.update(step=STEPS)

    def _train(self, number: int, rank: int, world: int, start: int, last: int) -> None:
        recipe = self.recipe
        assert recipe.data.streams is not None
        loader = TrainLoader(
            self.components.format_inputs,
            global_batch=recipe.train.global_batch,
            streams=recipe.data.streams,
            seed=recipe.train.seed,
            dp_rank=rank,
            dp_size=world,
        )
        self.folder.update(data=loader.fingerprint())
        if start:
            loader.load_state(self.states[start])
        header = record.Header(
            step=start, streams=recipe.data.streams, seed=recipe.train.seed, readers=world,
            global_batch=recipe.train.global_batch, data=recipe.data.model_dump(mode="json"),
        )  # fmt: skip
        writer = record.LedgerWriter(self.folder.ledger, number, rank, header)
        if start:
            writer.write(start, loader.state())
        for step in range(start + 1, last + 1):
            batch = next(loader)
            writer.after(step, batch.state)
            self.states[step] |= batch.state
            for index, ids in enumerate(batch["input_ids"].tolist()):
                self.ids[step][rank + index * world] = ids
        loader.close()
        writer.close()


@pytest.fixture(scope="module", params=[1, 2], ids=["order 1", "order 2"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "ROWS_BETWEEN", 8)
        return Run(tmp_path_factory.mktemp("trace"), order=request.param)


def text_of(file: str, row: int) -> str:
    """What lies at a row of a file, from 1."""
    if file.endswith(".parquet"):
        return str(pq.read_table(file, columns=["text"])["text"][row - 1])
    return str(json.loads(Path(file).read_text().splitlines()[row - 1])["text"])


@functools.cache
def told(run: Run) -> dict[int, list[DocumentPart]]:
    """The documents of all steps."""
    return {step: documents_of_step(run.folder, step)["documents"] for step in range(1, STEPS + 1)}


@pytest.mark.slow
def test_the_documents_of_each_step_are_its_batch(run: Run) -> None:
    tokenizer, texts = run.components.tokenizer, dict[tuple[str, int], list[int]]()
    separator = tokenizer.eos_token_id
    for step, parts in told(run).items():
        rows: dict[int, list[int]] = defaultdict(list)
        for part in parts:
            place = part["file"], part["file_row"]
            if place not in texts:
                ids = tokenizer(text_of(*place), add_special_tokens=False)["input_ids"]
                texts[place] = [separator, *ids]
            rows[part["row"]] += texts[place][part["first"] : part["first"] + part["tokens"]]
        assert rows == run.ids[step]
        assert {part["rank"] for part in parts} == ({0} if 10 < step <= 20 else {0, 1})


@pytest.mark.slow
def test_the_steps_of_each_document_are_those_that_tell_it(run: Run) -> None:
    expected: dict[tuple[str, int], list[tuple[int, int, int, int]]] = defaultdict(list)
    for step, parts in told(run).items():
        for part in parts:
            row = (step, part["row"], part["epoch"], part["tokens"])
            expected[part["file"], part["file_row"]].append(row)
    queries = [parse_query(f"{file}:{row}") for file, row in expected]
    found = trace_documents(run.folder, queries)
    assert (found["problem"], found["unmatched"], found["trained"]) == (None, [], STEPS)
    assert len(found["documents"]) == len(expected) > DOCUMENTS - 10
    for document in found["documents"]:
        seen = [(one["step"], one["row"], one["epoch"], one["tokens"]) for one in document["seen"]]
        assert seen == expected[document["file"], document["row"]]
    assert max(one["epoch"] for document in found["documents"] for one in document["seen"]) >= 1


def test_only_where_a_document_can_be_is_made_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from shardyard.data.stream.streams import Stream

    made: list[int] = []
    next_row = Stream.next_row
    monkeypatch.setattr(Stream, "next_row", lambda self: made.append(self.index) or next_row(self))
    documents_of_step(run.folder, 33)
    # An entry after every fourth step: two rows a step of each of four streams.
    assert len(made) <= 4 * 2 * 4
    made.clear()
    part = documents_of_step(run.folder, 33, 1)["documents"][0]
    made.clear()
    trace_documents(run.folder, [parse_query(f"{part['file']}:{part['file_row']}")])
    assert made
    assert len(set(made)) == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_a_document_by_what_it_says(run: Run, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    text = text_of(str(run.corpus), 8)
    digest = hashlib.sha256(text.encode()).hexdigest()
    wanted = [json.dumps({"text": text}), text, f"/^{text[:40]}/", f"sha256:{digest[:20]}", f"{run.corpus.name}, row 8"]
    wanted += [json.dumps({"sha256": digest}), json.dumps({"file": run.corpus.name, "row": 8})]
    options = [option for one in wanted for option in ("--document", one)]
    runs = str(run.folder.path.parent)
    assert command(["data", "trace", run.folder.id, *options, "--runs-dir", runs, *(["--json"] * as_json)]) == 0
    printed = capsys.readouterr().out
    if as_json:
        found = json.loads(printed)
        assert [one["row"] for one in found["documents"]] == [8]
        assert found["unmatched"] == []
        assert found["documents"][0]["seen"]
    else:
        assert "row 8" in printed
        assert f"sha256:{digest}" in printed
        assert "seen in" in printed


def test_nothing_and_held_out_documents(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{run.corpus.name}:{row}" for row in range(1, DOCUMENTS + 1)]
    found = trace_documents(
        run.folder, [parse_query(row) for row in [*rows, "nowhere.jsonl:3", f"{run.corpus.name}:{DOCUMENTS + 1}"]]
    )
    held = [document for document in found["documents"] if document["kept_out"]]
    assert 0 < len(held) < 10
    assert not any(document["seen"] for document in held)
    assert found["unmatched"] == ["nowhere.jsonl:3", f"{run.corpus.name}:{DOCUMENTS + 1}"]
    runs = ["--runs-dir", str(run.folder.path.parent)]
    assert command(["data", "trace", run.folder.id, *runs]) == 2
    assert command(["data", "trace", run.folder.id, "--step", "2", "-d", "x", *runs]) == 2
    assert "give --step N" in capsys.readouterr().err
    listed = tmp_path / "list"
    for content, problem in (("", "names no document"), ("{", "line 1"), ("/(/", "regular expression")):
        listed.write_text(content)
        assert command(["data", "trace", run.folder.id, "--documents", str(listed), *runs]) == 2
        assert problem in capsys.readouterr().err


def test_without_a_ledger_it_is_found_all_the_same(tmp_path: Path) -> None:
    """As a run that was made before there was one: from its checkpoints, or from the start."""
    run = Run(tmp_path)
    query = [parse_query(f"{run.corpus.name}:{row}") for row in range(1, DOCUMENTS + 1)]
    before = trace_documents(run.folder, query)
    for path in run.folder.ledger.iterdir():
        path.unlink()
    assert trace_documents(run.folder, query) == before
    checkpoint = run.folder.checkpoints / "step-00000020"
    checkpoint.mkdir(parents=True)
    (checkpoint / "data.json").write_text(json.dumps(run.states[20]))
    assert trace_documents(run.folder, query) == before


def test_another_order_after_a_resumption_counts_from_there(tmp_path: Path) -> None:
    """An attempt has the settings that it was trained with: `resume -s` may have changed them."""
    run = Run(tmp_path)
    before = [documents_of_step(run.folder, step) for step in (3, 17, 39)]
    run.folder.resolved.write_text(dump_recipe(changed(run.recipe, shuffle_window=4)))
    assert [documents_of_step(run.folder, step) for step in (3, 17, 39)] == before


def changed(recipe: Recipe, **data: Any) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})


class Removed:
    """A run with checkpoints and a model, an heir of its model, and one that cannot be read; row 8 is to be removed."""

    def __init__(self, folder: Path) -> None:
        self.run = Run(folder)
        self.runs = self.run.folder.path.parent
        for step in (10, 20, 30, 40):
            path = self.run.folder.checkpoints / f"step-{step:08d}"
            path.mkdir(parents=True)
            (path / "data.json").write_text(json.dumps(self.run.states[step]))
        self.run.folder.final.mkdir()
        self.run.folder.held_out.write_bytes(b"rows")
        text = dump_recipe(self.run.recipe)
        self.heir = RunFolder.create(self.runs, "heir", text, text, total_steps=3)
        self.heir.update(starting={"model.pretrained": {"name": "run:tiny", "path": str(self.run.folder.final)}})
        self.heir.final.mkdir()
        self.broken = RunFolder.create(self.runs, "broken", "name: x", "name: x")
        self.list = folder / "list"


@pytest.fixture(scope="module")
def removed(tmp_path_factory: pytest.TempPathFactory) -> Removed:
    return Removed(tmp_path_factory.mktemp("removed"))


def removal(removed: Removed, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert command(["data", "forget", str(removed.list), "--runs-dir", str(removed.runs), "--json", *more]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_what_a_removal_touches(removed: Removed, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, folder = removed.run.corpus, removed.run.folder
    steps = {one["step"] for one in trace_documents(folder, [parse_query(f"{corpus}:8")])["documents"][0]["seen"]}
    removed.list.write_text(f"# a request\n\n{corpus}:8\nnothing says this\n")
    found = removal(removed, capsys)
    runs = {one["run"]: one for one in found["runs"]}
    touched = runs[folder.id]
    assert touched["steps"] == sorted(steps)
    clean = max([step for step in (0, 10, 20, 30, 40) if step < min(steps)])
    assert touched["clean_step"] == clean
    later = [str(folder.checkpoints / f"step-{step:08d}") for step in (10, 20, 30, 40) if step > clean]
    assert touched["delete"] == [*later, str(folder.final)]
    assert f"resume {folder.path} --step {clean} -s data.exclude=FILE" in touched["command"]
    heir = runs[removed.heir.id]
    assert (heir["inherited"], heir["delete"], heir["steps"]) == (folder.id, [str(removed.heir.final)], [])
    assert [one["run"] for one in found["unread"]] == [removed.broken.id]
    assert found["files"] == [{"file": str(corpus), "rows": [8]}]
    assert found["unmatched"] == ["nothing says this"]


def test_a_held_out_document_touches_the_rows_of_evaluations(
    removed: Removed, capsys: pytest.CaptureFixture[str]
) -> None:
    removed.list.write_text(f"{removed.run.corpus}:7\n")
    (touched,) = removal(removed, capsys)["runs"]
    assert touched["run"] == removed.run.folder.id
    assert (touched["steps"], touched["clean_step"], touched["command"]) == ([], None, None)
    assert touched["delete"] == [str(removed.run.folder.held_out)]


def test_the_list_keeps_them_out_of_later_runs(
    removed: Removed, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    corpus, exclude = removed.run.corpus, tmp_path / "exclude.jsonl"
    removed.list.write_text(f"{corpus}:8\n{corpus}:9\n")
    found = removal(removed, capsys, "--exclude", str(exclude))
    assert {json.loads(line)["row"] for line in exclude.read_text().splitlines()} == {8, 9}
    assert f"-s data.exclude={exclude}" in found["runs"][0]["command"]
    before = exclude.read_text()
    removal(removed, capsys, "--exclude", str(exclude))
    assert exclude.read_text() == before
    # In words, once.
    options = ["--runs-dir", str(removed.runs), "--exclude", str(exclude), "--run", removed.run.folder.id]
    assert command(["data", "forget", str(removed.list), *options]) == 0
    printed = capsys.readouterr().out
    assert "remove from" in printed
    assert "rows 8, 9" in printed
    assert "delete" in printed
    assert "0 documents added" in printed
    assert command(["data", "forget", str(removed.list), "--runs-dir", str(tmp_path)]) == 2
