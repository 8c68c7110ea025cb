"""A dashboard over synthetic runs, and Debian's Chromium in front of it. Every request of a page is recorded."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect, sync_playwright

from browser.synthetic import write_gallery
from browser.troubled import write_troubled
from shardyard.tracking.run.folder import RunFolder
from support import waiting
from support.waiting import PATIENCE_SECONDS

# Playwright gives each step of a page 5 or 30 seconds, which a browser does not always get on a busy machine.
PATIENCE_MILLISECONDS = 60_000
expect.set_options(timeout=PATIENCE_MILLISECONDS)
SIZES: dict[str, ViewportSize] = {"desktop": {"width": 1440, "height": 900}, "phone": {"width": 390, "height": 844}}


@dataclass(frozen=True)
class Dashboard:
    """A running server: `address` ends in /, `entry` has the token."""

    address: str
    entry: str
    runs_dir: Path
    process: subprocess.Popen[str]


def start_dashboard(runs_dir: Path, home: Path, *arguments: str, **variables: str) -> Dashboard:
    """The command as a person uses it, on a free port, with a home of its own; `variables` are added to its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SHARDYARD_"))}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "XDG_RUNTIME_DIR": str(home)}
    environment |= variables
    command = [sys.executable, "-m", "shardyard.cli.main", "dashboard", "--runs-dir", str(runs_dir), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--no-browser", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        found = re.search(r"http://\S+\?token=\S+", line)
        if found:
            return Dashboard(found[0].partition("?")[0], found[0], runs_dir, process)
    raise AssertionError(f"the dashboard did not start: {said}")


def stop_dashboard(dashboard: Dashboard) -> None:
    dashboard.process.terminate()
    dashboard.process.wait(PATIENCE_SECONDS)


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, RunFolder]]:
    """The runs folder, and the runs in it by what they show."""
    runs_dir = tmp_path_factory.mktemp("gallery") / "runs"
    return runs_dir, {**write_gallery(runs_dir), "troubled": write_troubled(runs_dir)}


@pytest.fixture(scope="session")
def dashboard(
    gallery: tuple[Path, dict[str, RunFolder]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Dashboard]:
    corpora = str(tmp_path_factory.getbasetemp())
    started = start_dashboard(gallery[0], tmp_path_factory.mktemp("home"), "--data-dir", corpora)
    yield started
    stop_dashboard(started)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium")
    assert found, "chromium is missing: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@dataclass
class Visit:
    """A page and what it did: addresses asked for, and what the console complained of."""

    page: Page
    dashboard: Dashboard
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, place: str, ready: str, patience_seconds: float = PATIENCE_SECONDS) -> Page:
        """Show a place of the page and wait for what must be there."""
        # A new fragment is no new document: what is shown now is marked, so that it is not taken for what comes.
        self.page.evaluate("document.querySelector('.view')?.setAttribute('data-old', '')")
        self.page.goto(f"{self.dashboard.address}#/{place}")
        self.page.wait_for_selector(".view:not([data-old])")
        self.page.wait_for_selector(ready, timeout=1000 * patience_seconds)
        return self.page

    def check(self) -> None:
        """Nothing was asked of another machine, and the console is clean."""
        home = urlsplit(self.dashboard.address).netloc
        foreign = [
            url for url in self.requests if urlsplit(url).netloc != home and not url.startswith(("data:", "blob:"))
        ]
        assert foreign == []
        assert self.complaints == []


def until(page: Page, condition: str | Callable[[], object]) -> None:
    """Until an expression is true in the page, or a condition here, while the page goes on.

    Playwright's own waiting evaluates texts, which the policy forbids.
    """
    holds = (lambda: page.evaluate(condition)) if isinstance(condition, str) else condition
    what = condition if isinstance(condition, str) else "what the page was to do"
    waiting.until(holds, what, pause=lambda seconds: page.wait_for_timeout(1000 * seconds))


def unchanged(page: Page, expression: str) -> Any:
    """The value of an expression in the page, once it stays the same."""
    pause = lambda seconds: page.wait_for_timeout(1000 * seconds)  # noqa: E731
    return waiting.settled(lambda: page.evaluate(expression), expression, pause=pause)


Visiting = Callable[..., Visit]


@pytest.fixture
def visiting(browser: Browser, dashboard: Dashboard) -> Iterator[Visiting]:
    """A fresh browser profile that has entered with the token; `size` is desktop or phone, `theme` light or dark."""
    contexts: list[BrowserContext] = []

    def enter(size: str = "desktop", theme: Literal["light", "dark"] = "light", at: Dashboard = dashboard) -> Visit:
        context = browser.new_context(
            viewport=SIZES[size],
            color_scheme=theme,
            device_scale_factor=1,
            has_touch=size == "phone",
            accept_downloads=True,
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MILLISECONDS)
        page = context.new_page()
        visit = Visit(page, at)
        page.on("request", lambda request: visit.requests.append(request.url))
        page.on("console", lambda message: visit.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        page.goto(at.entry)
        return visit

    yield enter
    for context in contexts:
        context.close()
