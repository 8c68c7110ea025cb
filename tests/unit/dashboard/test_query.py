"""The query language of the dashboard: what it finds, and where its errors point."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shardyard.dashboard.index.index import Index
from shardyard.dashboard.index.listing import ListingQuery, list_runs
from shardyard.dashboard.index.query import MOST_CHARACTERS, Compare, QueryError, Search, parse, value_of
from support.dash_cases import add_lines, index_of, write_run


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    runs = tmp_path_factory.mktemp("runs")
    write_run(runs, "alpha-1", losses=[5.0, 2.5], stage=2, tags="big, slow one", state="running", created=None)
    write_run(runs, "beta-1", losses=[4.0, 1.0, 3.5], stage=3, lr="0.01", state="failed")
    write_run(runs, "100%-1", losses=[9.0], stage=0, tags="big%", created="2020-01-01T00:00:00+00:00")
    folder = write_run(runs, "gamma-1", losses=[])
    (folder / "metrics.jsonl").write_text(
        '{"step": 5, "time": 1, "eval/validation/loss": 2.0, "eval/other/accuracy": 0.5}\n'
    )
    made = index_of(runs, tmp_path_factory.mktemp("cache"))
    yield made
    made.stop()


def found(index: Index, query: str, **wanted: object) -> list[str]:
    answer = list_runs(index.store.reader, ListingQuery(query=query, **wanted))  # type: ignore[arg-type]
    return [row["id"].partition("-")[0] for row in answer["runs"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"alpha", "beta", "100%", "gamma"}),
        ("state = running", {"alpha"}),
        ("STATE = x or state = RUNNING", None),
        ("state = RUNNING", {"alpha"}),
        ("state in (running, failed)", {"alpha", "beta"}),
        ("recipe.zero.stage >= 2", {"alpha", "beta"}),
        ("recipe.zero.stage >= 2 and loss < 3", {"alpha"}),
        ("state = failed or state = running and loss > 100", {"beta"}),
        ("(state = failed or state = running) and loss > 3", {"beta"}),
        ("not state = failed and recipe.zero.stage > 1", {"alpha"}),
        ("not eval.loss < 3", {"alpha", "beta", "100%"}),
        ("eval.loss <= 2", {"gamma"}),
        ("eval.validation.loss = 2", {"gamma"}),
        ("eval.accuracy = 0.5", {"gamma"}),
        ("train.loss:best = 1", {"beta"}),
        ("train.loss:max > 4.5 and train.loss < 9", {"alpha"}),
        ("tag = big", {"alpha"}),
        ('tag = "slow one"', {"alpha"}),
        ("tag ~ big", {"alpha", "100%"}),
        ("tag != big", {"beta", "100%", "gamma"}),
        ("tag in (big, big%)", {"alpha", "100%"}),
        ("recipe.optimizer.lr < 1e-4", {"alpha", "100%", "gamma"}),
        ("recipe.optimizer.lr = 0.01", {"beta"}),
        ("recipe.data.drop_inputs = false and loss = 9", {"100%"}),
        ("recipe.data.train[0].source = python-docs and loss = 9", {"100%"}),
        ("recipe.data.train.0.weight = 0.7 and loss = 9", {"100%"}),
        ("recipe.train.nothing = null and loss = 9", {"100%"}),
        ("name ~ 'PH'", {"alpha"}),
        ("name ~ '%'", {"100%"}),
        ("alpha", {"alpha"}),
        ("'slow'", {"alpha"}),
        ("age > 1000d", {"100%"}),
        ("age < 52w or age > 52w", {"beta", "100%", "gamma"}),
        ("group = beta", {"beta"}),
        ("step >= 3", {"beta", "gamma"}),
        ('id = "x\' OR 1=1 --"', set()),
        ('name = "a\' UNION SELECT * FROM runs --"', set()),
    ],
)
def test_a_query_finds(index: Index, query: str, expected: set[str] | None) -> None:
    if expected is None:
        with pytest.raises(QueryError, match=r"did you mean 'state'\?"):
            found(index, query)
    else:
        assert set(found(index, query)) == expected


@pytest.mark.parametrize(
    ("query", "position", "message"),
    [
        ("state = ", 8, "expected a value, not the end"),
        ("state running", 6, "expected `and`, `or` or the end, not 'running'"),
        ("(state = x", 10, r"expected '\)', not the end"),
        ("state in (a b)", 12, r"expected '\)'"),
        ("state = 'x", 8, "a quote that is not closed"),
        ("and state = x", 0, "expected a field, not 'and'"),
        ("state = x and stat = y", 14, "did you mean 'state'"),
        ("recipe.zero.stge > 2", 0, "did you mean 'recipe.zero.stage'"),
        ("train.los > 2", 0, "did you mean 'train.loss'"),
        ("tag > 2", 0, "tags have no order"),
        ("train.loss:worst > 2", 0, "'worst' is none of last, best"),
        ('"state" = x', 0, "a field stands before an operator"),
        ("state !! x", 6, "means nothing here"),
        ("x" * (MOST_CHARACTERS + 1), MOST_CHARACTERS, "more than 2000 characters"),
        ("(" * 100 + "a" + ")" * 100, 41, "too many brackets"),
        ("not " * 100 + "a", 164, "too many `not`"),
        ("state in (" + ",".join("abcdefgh"[i % 8] for i in range(900)) + ")", 0, "too many values"),
    ],
)
def test_errors_point_at_their_place(index: Index, query: str, position: int, message: str) -> None:
    with pytest.raises(QueryError, match=message) as caught:
        found(index, query)
    assert caught.value.position == position


def test_an_unknown_field_is_named_with_the_nearest(index: Index) -> None:
    with pytest.raises(QueryError) as caught:
        found(index, "eval.los < 3")
    assert (caught.value.field, caught.value.nearest) == ("eval.los", "eval.loss")


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("train.loss:best:asc", ["beta", "alpha", "100%", "gamma"]),
        ("train.loss:last:desc", ["100%", "beta", "alpha", "gamma"]),
        ("train.loss:smoothed:asc", ["beta", "alpha", "100%", "gamma"]),
        ("name:desc", ["gamma", "beta", "alpha", "100%"]),
        ("recipe.zero.stage:desc", ["beta", "alpha", "gamma", "100%"]),
    ],
)
def test_runs_are_sorted_and_what_has_no_value_comes_last(index: Index, sort: str, expected: list[str]) -> None:
    assert found(index, "", sort=sort) == expected


def test_pages_columns_and_groups(index: Index) -> None:
    wanted = ListingQuery(sort="name:asc", offset=1, limit=2, columns=("recipe.zero.stage", "train.loss:best"))
    answer = list_runs(index.store.reader, wanted)
    assert (answer["total"], [row["name"] for row in answer["runs"]]) == (4, ["alpha", "beta"])
    assert answer["runs"][1]["values"] == {"recipe.zero.stage": 3, "train.loss:best": 1.0}
    assert {"train.loss", "recipe.optimizer.lr", "eval.other.accuracy", "state"} <= set(answer["columns"])
    grouped = list_runs(index.store.reader, ListingQuery(group="state"))
    assert {group["name"]: group["runs"] for group in grouped["groups"]} == {
        "running": 1,
        "failed": 1,
        "finished": 2,
    } | ({} if answer["runs"][0]["state"] == "running" else {"lost": 1})
    with pytest.raises(QueryError, match="not by 'colour'"):
        list_runs(index.store.reader, ListingQuery(group="colour"))
    with pytest.raises(QueryError, match="'upwards' is not a sort order"):
        list_runs(index.store.reader, ListingQuery(sort="name:upwards"))


def test_trees_and_values() -> None:
    assert parse("  ") is None
    assert parse("loss<3") == Compare("loss", "<", (3.0,), 0)
    assert parse('"a \\" b"') == Search('a " b')
    assert [value_of(text) for text in ("2h", "1.5", "-1e3", "true", "null", "gpt2")] == [
        7200.0,
        1.5,
        -1000.0,
        True,
        None,
        "gpt2",
    ]


def test_a_diverged_loss_is_no_number(index: Index, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "nan-1", losses=[1.0, float("nan")])
    add_lines(tmp_path / "runs" / "nan-1", ["Infinity"], first=3)
    other = index_of(tmp_path / "runs", tmp_path / "cache")
    assert found(other, "train.loss:best = 1") == ["nan"]
    other.stop()
