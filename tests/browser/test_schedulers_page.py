"""Jobs of several schedulers on one page, one of which never answers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from browser.conftest import Dashboard, Visiting, start_dashboard, stop_dashboard, until
from browser.test_pages import faults, settle, shoot
from support.dash_cases import write_run
from support.schedulers import installed

pytestmark = pytest.mark.slow

JOBS = {
    "campus": {
        "4711": {"run": "gpt-1", "name": "a GPT", "state": "RUNNING", "log": "first line\nsecond line\n"},
        "4712": {"run": "bert-1", "name": "a BERT", "state": "PENDING"},
    },
    "cloud": {
        "team/vision-7": {"run": "vision-7", "name": "vision", "state": "RUNNING"},
        "team/old-1": {"run": "old-1", "name": "old", "state": "FAILED", "code": 1},
    },
}


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A dashboard on a host that is set up for three schedulers."""
    folder = tmp_path_factory.mktemp("schedulers")
    installed.install(folder / "packages")
    write_run(folder / "runs", "gpt-1", losses=[3.0, 2.5], state="running", step=2)
    (folder / "jobs.json").write_text(json.dumps(JOBS))
    path = os.pathsep.join((str(folder / "packages"), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")))
    variables = {installed.FILE_VARIABLE: str(folder / "jobs.json"), "PYTHONPATH": path, "KUBECONFIG": "/nowhere"}
    started = start_dashboard(folder / "runs", folder, **variables, SHARDYARD_HOME=str(folder))
    yield started
    stop_dashboard(started)


def test_jobs_of_all_schedulers_are_shown_stopped_and_read(
    visiting: Visiting, beside: Dashboard, tmp_path: Path
) -> None:
    visit = visiting(at=beside)
    page = visit.open("jobs", ".capacity")
    expect(page.locator("h1 + .count")).to_have_text("3 at work or waiting")
    queue, ended = page.get_by_role("table", name="Jobs in the queue"), page.get_by_role("table", name="Ended jobs")
    lines = {name: queue.get_by_role("row").filter(has_text=name) for name in ("a GPT", "a BERT", "vision")}
    for name, words in {
        "a GPT": ("campus", "running", "step 2/100, loss 2.5", "1 node, 2 CPU cores"),
        "a BERT": ("campus", "pending", "no room"),
        "vision": ("cloud", "running", "starting"),
    }.items():
        for word in words:
            expect(lines[name]).to_contain_text(word)
    expect(lines["a GPT"].get_by_role("link", name="a GPT")).to_have_attribute("href", "#/run/gpt-1")
    expect(ended).to_contain_text("team/old-1")
    # Of the one that hangs there is a line, first that it has not answered yet, then for how long.
    expect(page.get_by_role("note")).to_contain_text("stuck: ")
    expect(page.locator(".capacity > p:first-child")).to_have_text(
        [
            "campus: 30 nodes, 360 of 480 CPU cores reserved, 120 of 120 GPUs reserved",
            "cloud: does not say which nodes it has",
        ]
    )
    expect(page.locator(".node").first).to_be_hidden()
    page.locator("summary", has_text="Nodes of campus").click()
    expect(page.locator(".node").first).to_be_visible()
    expect(page.locator(".node")).to_have_count(24)
    expect(page.locator(".capacity").first).to_contain_text("and 6 more nodes")
    settle(page)
    shoot(page, "schedulers-jobs", tmp_path, full_page=True)
    assert faults(visit, "jobs", axe=True) == []

    lines["a GPT"].get_by_role("button", name="Log").click()
    log = page.get_by_role("dialog")
    expect(log.get_by_role("log")).to_have_text("first line\nsecond line\n")
    shoot(page, "schedulers-log", tmp_path)
    log.get_by_role("button", name="Close").click()
    expect(log).to_be_hidden()

    lines["vision"].get_by_role("button", name="Stop").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    expect(ended).to_contain_text("team/vision-7")
    expect(ended.get_by_role("row").filter(has_text="team/vision-7").locator(".badge")).to_have_text("stopped")
    expect(page.get_by_role("note")).to_contain_text("no answer for")
    expect(page.locator(".node").first).to_be_visible()
    visit.check()


def test_a_phone_shows_them_too(visiting: Visiting, beside: Dashboard, tmp_path: Path) -> None:
    visit = visiting("phone", "dark", at=beside)
    page = visit.open("jobs", ".capacity")
    settle(page)
    shoot(page, "schedulers-phone", tmp_path, full_page=True)
    assert faults(visit, "jobs", axe=True) == []
    until(page, "document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    visit.check()
