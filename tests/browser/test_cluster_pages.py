"""Jobs from the page on a real Ray cluster: submitted, waiting, stopped, resumed; and alerts that arrive."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from browser.conftest import Dashboard, Visiting, start_dashboard, stop_dashboard, until
from browser.test_pages import faults, settle, shoot
from support.cluster import ray_head
from support.waiting import PATIENCE_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1800)]

# Ray starts a job and its workers load torch, and this machine may have other work.
PATIENCE = 1000 * PATIENCE_SECONDS
TINY = [
    *("model.config.n_layer=1", "model.config.n_head=2", "model.config.n_embd=32", "data.sequence_length=64"),
    *("train.global_batch=8", "train.threads=1", "evaluate.every=100000", "sample.prompts=[]", "schedule.warmup=1"),
    *("checkpoint.every=100000", "train.minutes=", "tracking.wandb.mode=disabled"),
]
ENDLESS = [*TINY, "train.steps=100000", "cluster.workers=2", "tracking.alerts.webhook=HOOK"]
SHORT = [*TINY, "train.steps=4", "cluster.workers=1"]


class Hook(BaseHTTPRequestHandler):
    """Receives alerts."""

    received: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hook() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def beside_ray(hook: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A dashboard beside a Ray of two CPU cores."""
    folder = tmp_path_factory.mktemp("beside-ray")
    (folder / "runs").mkdir()
    with ray_head(folder, dashboard=True) as environment:
        started = start_dashboard(folder / "runs", folder, **environment, SHARDYARD_HOME=str(folder), HOOK=hook)
        yield started
        stop_dashboard(started)


def submit(page: Page, overrides: list[str]) -> str:
    """Fill in the form and press its buttons; returns the id that the page tells."""
    page.get_by_label("One field a line, as path=value").fill("\n".join(overrides))
    button = page.get_by_role("button", name="Submit", exact=True)
    expect(button).to_be_enabled()
    button.click()
    asked = page.get_by_role("dialog")
    expect(asked).to_contain_text(overrides[-1])
    asked.get_by_role("button", name="Submit").click()
    told = page.locator("p.good", has_text="Submitted as")
    expect(told).to_be_visible(timeout=PATIENCE)
    return told.locator("code").inner_text()


def row(page: Page, job: str) -> Locator:
    """The job's line, whichever table it is in."""
    return page.get_by_role("row").filter(has=page.locator(f'a[href*="{job}"]'))


def press(page: Page, place: Locator, button: str) -> None:
    """A button that asks back, and yes."""
    place.get_by_role("button", name=button).click()
    page.get_by_role("dialog").get_by_role("button", name=button.rstrip("…")).click()


def test_a_job_goes_through_all_its_states_by_buttons(
    visiting: Visiting, beside_ray: Dashboard, tmp_path: Path
) -> None:
    visit = visiting(at=beside_ray)

    # What is typed is checked, and what is wrong cannot be submitted.
    page = visit.open("submit", ".plan .facts")
    overrides = page.get_by_label("One field a line, as path=value")
    overrides.fill("train.stepz=3")
    expect(page.locator("#problems")).to_contain_text("did you mean 'steps'")
    expect(page.get_by_role("button", name="Submit", exact=True)).to_be_disabled()
    shoot(page, "cluster-submit-wrong", tmp_path)
    first = submit(page, ENDLESS)
    assert first.startswith("gpt-quickstart-")
    shoot(page, "cluster-submitted", tmp_path)

    visit.open("jobs", "table")
    expect(row(page, first)).to_contain_text("step", timeout=PATIENCE)
    expect(row(page, first).locator(".badge")).to_have_text("running")
    expect(page.locator(".node")).to_contain_text("2 of 2 reserved", timeout=PATIENCE)

    visit.open("submit", ".plan .facts")
    second = submit(page, SHORT)
    visit.open("jobs", "table")
    expect(row(page, second).locator(".badge")).to_have_text("waiting", timeout=PATIENCE)
    expect(row(page, second)).to_contain_text("needs 1 CPU core on 1 node; 0 free")
    settle(page)
    shoot(page, "cluster-jobs-waiting", tmp_path)
    assert faults(visit, "jobs", axe=True) == []

    press(page, row(page, first), "Stop")
    expect(page.get_by_role("table", name="Ended jobs")).to_contain_text(first, timeout=PATIENCE)
    expect(row(page, second).locator(".badge")).to_have_text("finished", timeout=PATIENCE)
    settle(page)
    shoot(page, "cluster-jobs-ended", tmp_path)

    # The run of the job that was stopped: its alerts are tried, it is resumed, and stopped again where it is shown.
    visit.open(f"run/{first}", ".tiles")
    badge = page.locator(".run-head .badge")
    expect(badge).to_have_text("interrupted", timeout=PATIENCE)
    page.get_by_role("button", name="Test its alerts").click()
    expect(page.get_by_text("webhook: sent")).to_be_visible()
    assert [(alert["run"], alert["kind"]) for alert in Hook.received] == [(first, "test")]
    stopped_at = steps(page)
    press(page, page.locator(".run-head"), "Resume…")
    expect(badge).to_have_text("running", timeout=PATIENCE)
    until(page, lambda: steps(page) > stopped_at)
    shoot(page, "cluster-run-resumed", tmp_path)
    press(page, page.locator(".run-head"), "Stop…")
    expect(badge).to_have_text("interrupted", timeout=PATIENCE)
    assert steps(page) > stopped_at
    visit.check()


def steps(page: Page) -> int:
    """The step that the overview shows."""
    shown = re.search(r"([\d,.\u202f\u00a0 ]+) / 100", page.locator(".tiles").inner_text())
    assert shown, page.locator(".tiles").inner_text()
    return int(re.sub(r"\D", "", shown[1]))
