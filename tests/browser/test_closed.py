"""A browser comes in by a file instead of a command line, and a run from elsewhere has nothing read for it."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from browser.conftest import Dashboard, start_dashboard, stop_dashboard
from browser.test_pages import shoot
from shardyard.cli.commands.dashboard import entry_file
from shardyard.recipe.loading.load import dump_recipe
from shardyard.tracking.run.folder import RunFolder
from support.tiny import tiny_recipe, write_corpus
from support.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.slow


class _Metadata(http.server.BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_error(404)

    def do_HEAD(self) -> None:
        self.do_GET()


@pytest.fixture(scope="module")
def inside() -> Iterator[str]:
    """A service that only this machine reaches."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def closed(inside: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A dashboard over a run that names the service, and one that names a file of the person."""
    top = tmp_path_factory.mktemp("closed")
    corpus = write_corpus(top)
    for name, path in {"address": f"{inside}/latest/x.jsonl", "file": str(corpus)}.items():
        recipe = tiny_recipe(corpus)
        source = recipe.data.train[0].model_copy(update={"path": path})
        text = dump_recipe(recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": [source]})}))
        RunFolder.create(top / "runs", name, text, text, total_steps=30, world_size=1).update(state="finished", step=30)
    started = start_dashboard(top / "runs", tmp_path_factory.mktemp("home"))
    yield started
    stop_dashboard(started)


def test_a_browser_comes_in_by_a_file_and_reads_nothing_foreign(
    browser: Browser, closed: Dashboard, tmp_path: Path
) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    with entry_file(closed.entry) as path:
        page.goto(path.as_uri())
        page.wait_for_selector(".view h1", timeout=1000 * PATIENCE_SECONDS)
    assert page.url.startswith(closed.address)
    assert "token" not in page.url
    cookies = [cookie for cookie in context.cookies() if cookie["name"].startswith("shardyard_")]
    assert [cookie["sameSite"] for cookie in cookies] == ["Strict"]
    for name, said in {"address": "is the address", "file": "lies elsewhere"}.items():
        (run,) = closed.runs_dir.glob(f"{name}-*")
        page.goto(f"{closed.address}#/run/{run.name}?tab=documents&step=5")
        read = page.get_by_role("button", name="Read the documents")
        expect(read).to_be_visible(timeout=1000 * PATIENCE_SECONDS)
        shoot(page, f"documents-{name}-offered", tmp_path)
        read.click()
        expect(page.locator(".notice-box.wrong")).to_contain_text(said, timeout=1000 * PATIENCE_SECONDS)
        expect(page.locator(".notice-box.wrong")).to_contain_text("--data-dir")
        shoot(page, f"documents-{name}-refused", tmp_path)
    assert _Metadata.asked == 0
    context.close()
