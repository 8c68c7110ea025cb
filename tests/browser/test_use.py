"""What people do with the page: search, choose, compare, zoom, read logs, follow a live run, and take results away."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from browser.conftest import Dashboard, Visiting, start_dashboard, stop_dashboard, until
from browser.synthetic import HOSTILE, append_steps, write_live
from browser.test_pages import IDLE
from shardyard.tracking.run.folder import RunFolder

pytestmark = pytest.mark.slow

Gallery = tuple[Path, dict[str, RunFolder]]
CHART = ".plot[data-drawn]"
MANY = 1200


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A dashboard of its own with very many runs, and one that lives."""
    runs_dir = tmp_path_factory.mktemp("crowd") / "runs"
    for number in range(MANY):
        folder = runs_dir / f"crowd-{number:05d}"
        folder.mkdir(parents=True)
        info = {"id": folder.name, "name": f"crowd-{number:05d}", "state": "finished", "step": number}
        info |= {"created": f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}+00:00", "total_steps": MANY}
        (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
        (folder / "metrics.jsonl").write_text(
            json.dumps({"step": 1, "train/loss": number / 100}) + "\n", encoding="utf-8"
        )
    started = start_dashboard(runs_dir, tmp_path_factory.mktemp("crowd-home"))
    yield started
    stop_dashboard(started)


def test_a_search_that_cannot_be_read_says_where_and_repairs_itself(visiting: Visiting) -> None:
    page = visiting().open("runs", ".run-name")
    page.get_by_label("Search", exact=True).fill("state = finished and eval.lss < 9")
    error = page.locator("#query-error")
    expect(error).to_contain_text("eval.lss")
    line, mark = (error.locator("pre").text_content() or "").split("\n")
    assert line[mark.index("^") :].startswith("eval.lss")
    error.get_by_role("button", name="Use eval.loss").click()
    expect(error).to_be_hidden()
    expect(page.locator(".view-runs .head .count")).to_contain_text("runs")
    assert "eval.loss" in page.url


def test_runs_are_chosen_by_keyboard_and_compared(visiting: Visiting) -> None:
    visit = visiting()
    page = visit.open('runs?query=name ~ "gpt-lr"', ".run-name")
    page.keyboard.press("x")
    for _ in range(5):
        page.keyboard.press("j")
        page.keyboard.press("x")
    expect(page.locator(".selection")).to_contain_text("6 chosen")
    page.keyboard.press("c")
    page.wait_for_selector(CHART)
    expect(page.locator(".legend li")).to_have_count(6)
    page.get_by_label("bands over seeds").check()
    expect(page).to_have_url(re.compile("bands=1"))
    until(page, "document.querySelector('[data-metric=\"train/loss\"] .plot').data?.length === 6")
    page.keyboard.press("2")
    expect(page.locator("table")).to_contain_text("optimizer.lr")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Keyboard shortcuts")
    visit.check()


def test_a_spike_of_one_point_is_drawn_and_zooming_is_kept_in_the_address(visiting: Visiting, gallery: Gallery) -> None:
    page = visiting().open(f"run/{gallery[1]['spike'].id}?tab=curves&only=train/loss&smooth=0.9", CHART)
    assert _highest(page) > 7
    place = page.url
    page.goto("about:blank")
    page.goto(place.replace("only=", "from=2000&to=3000&only="))
    page.wait_for_selector(CHART)
    low, high = page.evaluate("document.querySelector('.plot')._fullLayout.xaxis.range")
    assert (round(low), round(high)) == (2000, 3000)
    assert page.get_by_role("button", name="Whole range").is_visible()
    assert page.locator("input[type=range]").input_value() == "0.9"


def _highest(page: Page, chart: str = ".plot") -> float:
    drawn: float = page.evaluate(
        "(chart) => Math.max(...document.querySelector(chart).data.flatMap((trace) => Array.from(trace.y)))", chart
    )
    return drawn


def test_charts_leave_as_images_and_tables(visiting: Visiting, gallery: Gallery, tmp_path: Path) -> None:
    visit = visiting()
    page = visit.open(f"run/{gallery[1]['failed'].id}?tab=curves&only=train/loss", CHART)
    for kind, starts in (("table", b"run,step,smoothed"), ("image", b"\x89PNG")):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=f"train/loss: {kind}").click()
        saved = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(saved)
        assert saved.read_bytes().startswith(starts)
    page = visit.open(f"run/{gallery[1]['experts'].id}?tab=experts", ".heat")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Tokens of each expert: image").click()
    assert waiting.value.suggested_filename.endswith(".png")
    visit.check()


def test_a_report_opens_anywhere_and_asks_nobody(visiting: Visiting, gallery: Gallery, tmp_path: Path) -> None:
    visit = visiting()
    runs = gallery[1]
    page = visit.open(f"compare?runs={runs['hostile'].id},{runs['spike'].id}", CHART)
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Report").click()
    saved = tmp_path / "report.html"
    waiting.value.save_as(saved)
    visit.requests.clear()
    page.goto(saved.as_uri())
    expect(page.locator(".chart .main-svg").first).to_be_visible()
    expect(page.locator("body")).to_contain_text(HOSTILE)
    assert _highest(page, ".chart") > 7, "the spike is in it"
    assert page.title() != "taken"
    assert [url for url in visit.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert visit.complaints == []


def test_text_of_runs_is_shown_and_never_run(visiting: Visiting, gallery: Gallery) -> None:
    visit = visiting()
    run = gallery[1]["hostile"].id
    for place, ready in ((f"run/{run}?tab=samples", ".samples"), (f"run/{run}?tab=logs&rank=0", ".log .line"),
                         (f"run/{run}?tab=recipe", ".code"), (f"run/{run}", CHART)):  # fmt: skip
        page = visit.open(place, ready)
        until(page, IDLE)
        assert page.title() != "taken"
        assert page.locator("img[src=x], main script").count() == 0
        if "samples" in place or "logs" in place:
            expect(page.locator("main")).to_contain_text(HOSTILE)
    visit.check()


def test_logs_are_searched_filtered_and_show_errors_of_all_ranks_first(visiting: Visiting, gallery: Gallery) -> None:
    page = visiting().open(f"run/{gallery[1]['failed'].id}?tab=logs", ".first-errors")
    expect(page.locator(".first-errors")).to_contain_text("the loss is not finite")
    page.locator(".first-errors button").click()
    expect(page.locator(".log .line")).to_have_count(2)
    page.get_by_label("errors only").uncheck()
    page.get_by_label("Find", exact=True).fill("padding")
    expect(page.locator(".log mark")).to_have_text("padding")


def test_many_runs_are_a_table_of_which_only_a_part_exists(visiting: Visiting, crowded: Dashboard) -> None:
    page = visiting(at=crowded).open("runs?sort=name:last:asc", ".run-name")
    expect(page.locator(".view-runs .head .count")).to_contain_text("1,200 runs")
    assert page.locator("tbody tr").count() < 100
    page.locator(".scroll").evaluate("(box) => box.scrollTo(0, box.scrollHeight)")
    expect(page.get_by_role("link", name="crowd-01199")).to_be_visible()
    page.get_by_role("button", name="Loss", exact=True).click()
    expect(page.locator("tbody .run-name").first).to_contain_text("crowd-00000")
    expect(page.locator("th[aria-sort=ascending]")).to_contain_text("Loss")


def test_a_live_run_is_followed_and_a_lost_server_is_said_and_found_again(
    visiting: Visiting, crowded: Dashboard
) -> None:
    visit = visiting(at=crowded)
    # Whoever opens a run that is just starting sees it as soon as it is there.
    (crowded.runs_dir / "away").mkdir()
    live = write_live(crowded.runs_dir / "away")
    visit.open(f"run/{live.id}?tab=curves&only=train/loss&smooth=0", ".notice-box")
    expect(visit.page.locator(".notice-box")).to_contain_text("as soon as its folder is there")
    assert len(visit.complaints) == 1, "Chromium tells of the answer 404"
    visit.complaints.clear()
    live.path.rename(crowded.runs_dir / live.id)
    live = RunFolder(crowded.runs_dir / live.id)
    page = visit.page
    page.wait_for_selector(CHART)
    until(page, lambda: any("/api/stream" in url and live.id in url for url in visit.requests))
    append_steps(live, 421, 5)
    until(page, "document.querySelector('.plot').data.at(-1).x.at(-1) === 425")
    asked = [url for url in visit.requests if "/api/series" in url]
    append_steps(live, 426, 5)
    until(page, "document.querySelector('.plot').data.at(-1).x.at(-1) === 430")
    assert [url for url in visit.requests if "/api/series" in url] == asked, "only what is new travels"
    visit.check()
    stop_dashboard(crowded)
    expect(page.locator("#banner")).to_be_visible()
    expect(page.locator("#banner")).to_contain_text("does not answer")


def test_the_theme_follows_the_system_until_a_person_chooses(visiting: Visiting) -> None:
    page = visiting(theme="dark").open("runs", ".run-name")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.keyboard.press("t")
    page.keyboard.press("t")
    page.reload()
    page.wait_for_selector(".run-name")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    expect(page.get_by_role("button", name="Theme: Dark")).to_be_visible()


def test_without_runs_the_page_says_how_to_launch_one(visiting: Visiting, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    started = start_dashboard(tmp_path / "none", tmp_path)
    try:
        page = visiting(at=started).open("runs", ".notice-box")
        expect(page.locator(".notice-box")).to_contain_text("shardyard launch gpt/quickstart")
        (tmp_path / "none" / "first").mkdir()
        info = {"id": "first", "name": "first", "state": "finished", "created": "2026-01-01T00:00:00+00:00"}
        (tmp_path / "none" / "first" / "run.json").write_text(json.dumps(info), encoding="utf-8")
        expect(page.get_by_role("link", name="first")).to_be_visible()
    finally:
        stop_dashboard(started)


def test_changes_to_a_recipe_are_checked_as_one_types(visiting: Visiting) -> None:
    page = visiting().open("submit?recipe=gpt/quickstart", "#overrides")
    page.locator("#overrides").fill("optimizer.lrr=1e-3")
    expect(page.locator("#problems")).to_contain_text("optimizer.lrr")
    assert page.get_by_role("button", name="Submit", exact=True).is_disabled()
    page.locator("#overrides").fill("train.steps=77")
    expect(page.locator("#problems")).to_contain_text("valid")
    expect(page.locator(".plan")).to_contain_text("77")
    expect(page.locator(".command")).to_contain_text("shardyard launch gpt/quickstart -s train.steps=77")


def test_a_run_shows_what_its_plan_predicted_beside_what_it_measures(visiting: Visiting, gallery: Gallery) -> None:
    visit = visiting()
    shown = visit.open(f"run/{gallery[1]['experts'].id}", ".predicted").locator(".predicted")
    rows = [[cell.inner_text() for cell in row.locator("th, td").all()] for row in shown.locator("tbody tr").all()]
    assert [row[0] for row in rows] == ["Tokens / s", "Step time", "MFU", "Memory a rank"]
    assert rows[1][1:] == ["0.4 s", "0.32 s", "+25 %"]
    assert (rows[0][2:], rows[2][2:]) == (["12.8 k", "−20 %"], ["47.5 %", "−20 %"])
    assert rows[3][1:] == ["56.8 GiB", "55.9 GiB", "+1.7 %"]
    expect(shown).to_contain_text("for h100-80gb")
    shown = visit.open(f"run/{gallery[1]['live'].id}", ".predicted").locator(".predicted")
    expect(shown.locator("tbody tr")).to_have_count(1)
    expect(shown).to_contain_text("not comparable")
    expect(shown).to_contain_text("No speed is predicted without a GPU")
    # A version that recorded no prediction leaves no empty panel.
    visit.open(f"run/{gallery[1]['failed'].id}", CHART)
    expect(visit.page.locator(".predicted")).to_have_count(0)
    visit.check()
