"""The address holds the whole view, keys reach everything, and jobs are shown and stopped."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from browser.conftest import Visiting, unchanged, until
from browser.synthetic import HOSTILE
from browser.test_pages import faults, shoot
from shardyard.tracking.run.folder import RunFolder

pytestmark = pytest.mark.slow

Gallery = tuple[Path, dict[str, RunFolder]]
CHART = ".plot[data-drawn]"

# What a person could have set, in words of the page.
CONTROLS = """() => ({
  values: [...document.querySelectorAll('main input, main select, main textarea')].map((one) => one.type === 'checkbox' ? one.checked : one.value),
  pressed: [...document.querySelectorAll('main [aria-pressed]')].map((one) => [one.textContent, one.ariaPressed]),
  current: [...document.querySelectorAll('[aria-current]')].map((one) => one.textContent),
  folded: [...document.querySelectorAll('main details')].map((one) => one.open),
  sorted: [...document.querySelectorAll('th[aria-sort]')].map((one) => [one.textContent, one.ariaSort]),
  large: [...document.querySelectorAll('.chart.large')].map((one) => one.dataset.metric),
  axes: [...document.querySelectorAll('.plot[data-drawn]')].slice(0, 2).map((one) => [one._fullLayout.xaxis.type, one._fullLayout.yaxis.type, one._fullLayout.xaxis.title.text]),
})"""  # noqa: E501


def assert_same_when_read_again(page: Page, ready: str) -> None:
    before = unchanged(page, CONTROLS)
    page.reload()
    page.wait_for_selector(ready)
    with contextlib.suppress(AssertionError):  # What differs is told below.
        until(page, lambda: page.evaluate(CONTROLS) == before)
    assert page.evaluate(CONTROLS) == before


def test_curves_are_the_same_when_the_page_is_read_again(visiting: Visiting, gallery: Gallery) -> None:
    visit = visiting()
    page = visit.open(f"run/{gallery[1]['failed'].id}?tab=curves", CHART)
    page.get_by_label("x", exact=True).select_option("tokens")
    page.get_by_label("log y").check()
    page.get_by_label("outliers").uncheck()
    page.get_by_label("Smoothing", exact=True).fill("0.9")
    page.get_by_role("button", name="train/loss: larger or smaller").click()
    page.locator("summary", has_text="perf").click()
    for part in ("x=tokens", "logy=1", "outliers=0", "smooth=0.9", "large=train/loss", "closed=perf"):
        expect(page).to_have_url(re.compile(re.escape(part)))
    assert_same_when_read_again(page, CHART)
    expect(page.locator(".mark-key")).to_contain_text("checkpoint")
    visit.check()


def test_tables_are_the_same_when_the_page_is_read_again(visiting: Visiting, gallery: Gallery) -> None:
    visit = visiting()
    page = visit.open("runs", ".run-name")
    page.get_by_role("button", name="Finished").click()
    page.get_by_label("Sort", exact=True).select_option("eval.loss")
    page.get_by_label("Value to sort by").select_option("best")
    page.get_by_label("Group", exact=True).select_option("recipe")
    # By its id: rows still change places while the order that was just asked for comes.
    chosen = next(run for name, run in gallery[1].items() if name.startswith("gpt-lr"))
    page.get_by_label(re.compile(f"^Choose .*{re.escape(chosen.id)}")).check()
    assert_same_when_read_again(page, ".run-name")
    expect(page.locator(".selection")).to_contain_text("1 chosen")
    many = ",".join(run.id for name, run in gallery[1].items() if name.startswith("gpt-lr"))
    page = visit.open(f"compare?runs={many}&tab=relations", CHART)
    page.get_by_label("Result", exact=True).select_option("perf/tokens_per_second")
    page.get_by_label("log result").check()
    assert_same_when_read_again(page, CHART)
    visit.check()


def test_keys_reach_every_view_and_every_part_of_a_run(visiting: Visiting, gallery: Gallery, tmp_path: Path) -> None:
    visit = visiting()
    page = visit.open("runs", ".run-name")
    for key, heading in (("c", "Compare"), ("s", "Sweeps"), ("j", "Jobs"), ("n", "Submit a recipe"), ("r", "Runs")):
        page.keyboard.press("g")
        page.keyboard.press(key)
        expect(page.get_by_role("heading", level=1)).to_have_text(heading)
    page.wait_for_selector(".run-name")
    page.keyboard.press("/")
    expect(page.get_by_label("Search", exact=True)).to_be_focused()
    page.keyboard.type("diverged")
    expect(page.locator("tbody .run-name")).to_have_count(1)
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("gpt-diverged")
    tabs = page.locator("nav.tabs a")
    for number in range(tabs.count()):
        page.keyboard.press(str(number + 1))
        expect(tabs.nth(number)).to_have_attribute("aria-current", "page")
    page.keyboard.press("?")
    sheet = page.get_by_role("dialog")
    for text in ("Keyboard shortcuts", "Everywhere", "Go to Sweeps", "Compare with other runs"):
        expect(sheet).to_contain_text(text)
    shoot(page, "keys-desktop-light", tmp_path)
    assert faults(visit, "keys", axe=True) == []
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", level=1)).to_have_text("Runs")
    visit.check()


def jobs_answer(run: str) -> dict[str, Any]:
    """What the server says of a cluster with three nodes: one job runs, one waits, one has ended."""
    common: dict[str, Any] = {"tags": [], "message": "", "ended_at": None, "submitted": 1.7e9, "scheduler": "ray"}
    common |= {"recipe": "gpt/quickstart", "needs": "2 CPUs", "waiting": None, "doing": "", "ended": False, "run": None}
    gpu = {"total": {"CPU": 16.0, "GPU": 8.0}, "free": {"CPU": 4.0, "GPU": 0.0}, "up": True}
    gpu |= {"scheduler": "ray"}
    busy: dict[str, Any] = {"cpu_percent": 31.4, "memory": [96 << 30, 512 << 30]}
    busy["gpus"] = [{"name": "H100", "percent": 97 - n, "memory": [71 << 30, 80 << 30]} for n in range(8)]
    return {
        "available": True,
        "why": "slurm: no answer",
        "schedulers": [
            {"name": "ray", "where": "http://10.0.0.1:8265", "available": True, "why": "", "nodes_known": True},
            {"name": "slurm", "where": "", "available": False, "why": "no answer for 31 s.", "nodes_known": False},
        ],
        "jobs": [
            common | {"id": "a-1", "name": "gpt-a", "state": "RUNNING", "doing": "step 42/100, loss 2.1", "run": run},
            common | {"id": "b-2", "name": HOSTILE, "state": "RUNNING", "waiting": "needs 8 GPUs; 4 are free"},
            common | {"id": "c-3", "name": "gpt-old", "state": "FAILED", "ended": True, "ended_at": 1.7e9 + 90}
            | {"message": "rank 1: the loss is not finite"},
        ],
        "nodes": [
            gpu | busy | {"name": "head", "address": "10.0.0.1", "head": True},
            gpu | {"name": "node-1", "address": "10.0.0.2"},
            {"name": "node-2", "address": "10.0.0.3", "up": False, "problem": "the health check failed"}
            | {"scheduler": "ray", "total": {"CPU": 0.0, "GPU": 0.0}, "free": None},
        ],
    }  # fmt: skip


@pytest.mark.parametrize(("size", "theme"), [("desktop", "light"), ("phone", "dark")])
def test_jobs_say_why_they_wait_and_are_stopped_after_a_question(
    size: str, theme: str, visiting: Visiting, gallery: Gallery, tmp_path: Path
) -> None:
    visit = visiting(size, theme)
    stopped: list[tuple[str, str]] = []

    def answer(route: Route) -> None:
        request = route.request
        if request.method == "POST":
            assert request.post_data_json == {"scheduler": "ray"}
            stopped.append((request.url.rpartition("/api/")[2], request.headers.get("x-shardyard-csrf", "")))
        content = {} if request.method == "POST" else jobs_answer(gallery[1]["live"].id)
        route.fulfill(status=200, content_type="application/json", body=json.dumps(content))

    visit.page.route(re.compile("/api/jobs"), answer)
    page = visit.open("jobs", ".node")
    expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")
    queue = page.get_by_role("table", name="Jobs in the queue")
    expect(queue).to_contain_text("needs 8 GPUs; 4 are free")
    expect(queue).to_contain_text(HOSTILE)
    expect(queue).to_contain_text("step 42/100")
    assert queue.evaluate("table => table.scrollWidth <= table.parentElement.clientWidth"), "off the screen"
    expect(page.get_by_role("table", name="Ended jobs")).to_contain_text("the loss is not finite")
    expect(page.get_by_role("note")).to_have_text("slurm: no answer for 31 s.")
    expect(page.locator(".capacity > p:first-child")).to_have_text(
        "ray, http://10.0.0.1:8265: 2 nodes, 24 of 32 CPU cores reserved, 16 of 16 GPUs reserved"
    )
    expect(page.locator(".node").first).to_contain_text("8 of 8 reserved")
    expect(page.locator(".node").first).to_contain_text("97 %, 71 GiB of 80 GiB")
    expect(page.locator(".node").last).to_contain_text("the health check failed")
    shoot(page, f"jobs-cluster-{size}-{theme}", tmp_path, full_page=size == "phone")
    assert faults(visit, "jobs", axe=True) == []
    queue.get_by_role("button", name="Stop").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert stopped == []
    queue.get_by_role("button", name="Stop").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    until(page, lambda: stopped)
    assert [place for place, _ in stopped] == ["jobs/a-1/stop"]
    assert len(stopped[0][1]) > 20
    visit.check()
