"""A run that is really launched, followed in the browser while it trains, and every part of its folder shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from browser.conftest import Dashboard, Visiting, until
from browser.test_pages import faults, settle, shoot
from support.cli import Command, write_recipe
from support.tiny import write_corpus
from support.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.slow

CHART = ".plot[data-drawn]"
STEPS = 60
# Ray starts, two workers load torch, and this machine may have other work.
LAUNCH_MILLISECONDS = 1000 * PATIENCE_SECONDS


@pytest.fixture(scope="module")
def launched(dashboard: Dashboard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The launch of two workers into the folder that the dashboard shows; the first test sees it train."""
    folder = tmp_path_factory.mktemp("launched")
    corpus = write_corpus(tmp_path_factory.mktemp("corpus"))
    recipe = write_recipe(folder, corpus, name="launched", train={"steps": STEPS}, checkpoint={"every": 20})
    with Command("launch", recipe, runs=dashboard.runs_dir) as command:
        yield command


def test_a_launch_is_followed_from_its_first_line_to_its_last_step(visiting: Visiting, launched: Command) -> None:
    visit = visiting()
    page = visit.open("runs?query=name = launched", "h1")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=re.compile("^launched")))
    expect(row).to_be_visible(timeout=LAUNCH_MILLISECONDS)
    row.get_by_role("link").click()
    page.wait_for_selector(CHART, timeout=LAUNCH_MILLISECONDS)
    page.get_by_role("link", name="Curves").click()
    page.wait_for_selector(CHART)
    last = "document.querySelector('[data-metric=\"train/loss\"] .plot[data-drawn]')?.data?.at(-1).x.at(-1)"
    until(page, f"{last} === {STEPS}")
    expect(page.locator(".run-head .badge")).to_have_text("finished", timeout=LAUNCH_MILLISECONDS)
    assert launched.finish()[0] == 0
    visit.check()


# What each part shows of this run, as a selector and a text in it.
PARTS = {
    "overview": (".tiles", f"{STEPS} / {STEPS}"),
    "curves": ('[data-metric="eval/validation/loss"]', "eval/validation/loss"),
    "recipe": (".plain", "steps"),
    "logs&rank=1": (".log .line", ""),
    "checkpoints": ("table", "whole"),
    "samples": (".samples", "the model"),
    "documents&step=5": (".documents", "tokens"),
    "system": ('[data-metric="perf/step_seconds"]', "perf/step_seconds"),
}


def test_every_part_of_a_run_that_was_launched_is_shown(visiting: Visiting, launched: Command, tmp_path: Path) -> None:
    launched.process.wait(PATIENCE_SECONDS)
    visit = visiting()
    (run,) = launched.runs.glob("launched-*")
    for part, (selector, text) in PARTS.items():
        page = visit.open(f"run/{run.name}?tab={part}", "h1")
        if part.startswith("documents"):
            # Whoever made this address does not make the server read files.
            expect(page.get_by_role("button", name="Read the documents")).to_be_visible()
            expect(page.locator(selector)).to_have_count(0)
            page.get_by_role("button", name="Read the documents").click()
        expect(page.locator(selector).first).to_contain_text(text)
        expect(page.locator(".skeleton, .notice-box.wrong, .warning")).to_have_count(0)
        settle(page)
        shoot(page, f"launched-{part.partition('&')[0]}-desktop-light", tmp_path)
        assert faults(visit, part, axe=True) == []
    expect(page.locator(".run-head .badge")).to_have_text("finished")
    visit.check()
