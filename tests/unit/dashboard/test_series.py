"""Curves: what a chart is given is true to what was recorded, and smoothing is W&B's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shardyard.dashboard.charts import columns
from shardyard.dashboard.charts.series import Curve, Reader, chart, thinned
from shardyard.dashboard.charts.smoothing import smoothed
from shardyard.dashboard.index import ingest
from shardyard.dashboard.index.index import Index
from support.dash_cases import add_lines, index_of, write_run


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    write_run(tmp_path / "runs", "one-1", losses=[5.0, 4.0, 3.0, 2.0, 1.0])
    made = index_of(tmp_path / "runs", tmp_path / "cache")
    yield made
    made.stop()


def curve(
    index: Index, metric: str = "train/loss", axis: str = "step", since: int = 0, reader: Reader | None = None
) -> Curve:
    key = index.key_of("one-1")
    assert key is not None
    return (reader or Reader()).curve(index.store.reader, key, metric, axis, since)


def wandb_rule(x: list[float], y: list[float], smooth: float) -> list[float]:
    """The documented rule, step by step."""
    weight = min(math.sqrt(smooth), 0.999)
    last, mass, result = 0.0, 0.0, []
    for i, value in enumerate(y):
        change = (x[i] - x[max(0, i - 1)]) / (x[-1] - x[0]) * 1000
        adjusted = weight**change
        last = last * adjusted + value
        mass = mass * adjusted + 1
        result.append(last / mass)
    return result


@pytest.mark.parametrize("smooth", [0.001, 0.1, 0.6, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("spacing", ["even", "uneven", "gaps", "few"])
def test_smoothing_is_that_of_wandb(smooth: float, spacing: str) -> None:
    random = np.random.default_rng(3)
    count = 7 if spacing == "few" else 3000
    x = np.arange(count, dtype=np.float64)
    if spacing == "uneven":
        x = np.sort(random.uniform(0, 1e9, count))
    if spacing == "gaps":
        x[count // 2 :] += 1e6
    y = random.normal(3, 1, count)
    expected = wandb_rule(x.tolist(), y.tolist(), smooth)
    np.testing.assert_allclose(smoothed(x, y, smooth), expected, rtol=1e-9, atol=1e-9)


def test_smoothing_leaves_gaps_and_short_curves_alone() -> None:
    x = np.arange(5.0)
    y = np.array([1.0, math.nan, 3.0, math.inf, 5.0])
    even = smoothed(x, y, 0.6)
    assert math.isnan(even[1])
    assert math.isinf(even[3])
    finite = np.isfinite(y)
    np.testing.assert_allclose(even[finite], wandb_rule(x[finite].tolist(), [1.0, 3.0, 5.0], 0.6))
    assert smoothed(x[:1], y[:1], 0.9).tolist() == [1.0]
    assert smoothed(np.zeros(3), np.arange(3.0), 0.9).tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("place", [0, 1, 49_999, 77_777, 99_999])
def test_a_spike_of_one_point_stays_visible(place: int) -> None:
    y = np.ones(100_000)
    y[place] = 50.0
    y[(place + 500) % 100_000] = -50.0
    thin = chart(Curve(np.arange(100_000.0), y, 100_000), 1500, 0.6)
    assert (thin.maximum.max(), thin.minimum.min()) == (50.0, -50.0)
    assert thin.x.size <= 1500
    assert not thin.raw
    bucket = int(np.argmax(thin.maximum))
    assert thin.x[bucket] - 67 <= place <= thin.x[bucket]


def test_few_points_are_given_as_they_are() -> None:
    x, y = np.arange(5.0), np.array([1.0, 2.0, math.nan, 4.0, 5.0])
    thin = thinned(x, y, y, 5)
    assert thin.raw
    np.testing.assert_array_equal(thin.y, y)


def test_a_bucket_of_nan_alone_is_a_gap_and_one_with_a_number_is_not() -> None:
    y = np.array([math.nan, math.nan, math.nan, 7.0, 1.0, 2.0])
    thin = thinned(np.arange(6.0), y, y, 3)
    assert math.isnan(thin.minimum[0])
    assert thin.maximum.tolist()[1:] == [7.0, 2.0]


def test_a_part_of_a_curve_has_its_own_resolution() -> None:
    whole = Curve(np.arange(100_000.0), np.arange(100_000.0), 100_000)
    thin = chart(whole, 1000, 0.0, 500.0, 900.0)
    assert thin.raw
    assert (thin.x[0], thin.x[-1]) == (499.0, 901.0)


def test_axes(index: Index) -> None:
    assert curve(index, axis="step").x.tolist() == [1, 2, 3, 4, 5]
    assert curve(index, axis="tokens").x.tolist() == [10, 20, 30, 40, 50]
    assert curve(index, axis="flops").x.tolist() == [60, 120, 180, 240, 300]
    assert curve(index, axis="time").x.tolist() == [1001, 1002, 1003, 1004, 1005]


def test_an_evaluation_without_tokens_stands_at_its_step(index: Index) -> None:
    with (index.runs_dir / "one-1" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "time": 1006, "eval/validation/loss": 1.5}\n')
    index.catch_up()
    found = curve(index, "eval/validation/loss", "tokens")
    assert (found.x.tolist(), found.y.tolist()) == ([50.0], [1.5])


def test_steps_done_again_after_a_restart_count_once(index: Index) -> None:
    add_lines(index.runs_dir / "one-1", [30.0, 20.0], first=3)
    index.catch_up()
    found = curve(index)
    assert (found.x.tolist(), found.y.tolist()) == ([1, 2, 3, 4, 5], [5.0, 4.0, 30.0, 20.0, 1.0])
    assert found.rows == 7


def test_values_that_are_no_numbers_are_kept(index: Index) -> None:
    add_lines(index.runs_dir / "one-1", [math.nan, "Infinity", None, "text", True, 0.5], first=6)
    index.catch_up()
    found = curve(index)
    assert found.x.tolist() == [1, 2, 3, 4, 5, 6, 7, 11]
    assert math.isnan(found.y[5])
    assert math.isinf(found.y[6])


def test_only_new_points_after_a_cursor(index: Index) -> None:
    cursor = curve(index).rows
    assert curve(index, since=cursor).x.size == 0
    add_lines(index.runs_dir / "one-1", [0.5, 0.25], first=6)
    index.catch_up()
    found = curve(index, since=cursor)
    assert (found.x.tolist(), found.y.tolist(), found.rows) == ([6, 7], [0.5, 0.25], 7)
    assert curve(index, axis="tokens", since=cursor).x.tolist() == [60, 70]


def test_kept_columns_follow_the_file_and_stay_bounded(index: Index) -> None:
    reader = Reader(kept_bytes=200)
    assert curve(index, reader=reader).y[-1] == 1.0
    metrics = index.runs_dir / "one-1" / "metrics.jsonl"
    metrics.write_text(
        metrics.read_text().replace('"train/loss": 1.0', '"train/loss": 8.0').replace("1001.0", "1001.5")
    )
    metrics.with_name("aside").write_text(metrics.read_text())
    metrics.with_name("aside").replace(metrics)
    index.catch_up()
    assert curve(index, reader=reader).y[-1] == 8.0
    assert reader._bytes <= 200


def test_many_small_additions_make_few_chunks(index: Index) -> None:
    for step in range(6, 206):
        add_lines(index.runs_dir / "one-1", [1.0], first=step)
        with index.store.writing() as connection:
            ingest.ingest(connection, index.runs_dir / "one-1", index.key_of("one-1") or 0)
    chunks = index.store.reader.execute("SELECT size FROM chunks WHERE name = 'train/loss' ORDER BY first").fetchall()
    assert sum(chunk[0] for chunk in chunks) == 205
    assert len(chunks) <= 12
    assert curve(index).x.tolist() == list(range(1, 206))


def test_the_running_average_is_that_of_all_records() -> None:
    values = np.random.default_rng(0).normal(size=500)
    state = mass = 0.0
    for begin in range(0, 500, 7):
        state, mass = columns.average(values[begin : begin + 7], 0.9, state, mass)
    powers = 0.9 ** np.arange(499, -1, -1.0)
    assert state / mass == pytest.approx(float(powers @ values / powers.sum()), rel=1e-9)
    assert columns.average(np.array([math.nan]), 0.9, 3.0, 2.0) == (3.0, 2.0)


def test_tables_of_experts_are_no_curves() -> None:
    line = b'{"step": 1, "eval/validation/moe/tokens/layer_00/expert_00": 5.0, "moe/entropy": 1.0}\n'
    assert set(columns.parse(line).columns) == {"step", "moe/entropy"}


def test_a_line_with_endless_names_stays_bounded() -> None:
    line = b'{"step": 1, ' + b", ".join(b'"m%d": 1' % number for number in range(5000)) + b"}\n"
    assert len(columns.parse(line).columns) == columns.MOST_METRICS
