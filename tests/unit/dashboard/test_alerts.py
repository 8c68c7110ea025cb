"""Alerts: when something is told, to whom, and that secrets stay where they are."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from shardyard.dashboard.alerts.alerts import Alert, Seen, Watcher, evaluate, send
from shardyard.recipe.sections.watching import Alerts
from support.dash_cases import add_lines, index_of, write_run

ALL = Alerts(when=["failed", "finished", "loss_spike", "no_progress"], loss_spike=2.0, no_progress_seconds=60)
RUNNING = Seen("running", 10, 100, moved=0.0)


def kinds(before: Seen | None, now: Seen, clock: float = 1.0, rules: Alerts = ALL) -> list[str]:
    return [alert.kind for alert in evaluate("r", rules, before, now, clock)[0]]


@pytest.mark.parametrize(
    ("now", "clock", "expected"),
    [
        (Seen("failed", 11, 101), 1.0, ["failed"]),
        (Seen("lost", 11, 101), 1.0, ["failed"]),
        (Seen("finished", 11, 101), 1.0, ["finished"]),
        (Seen("interrupted", 11, 101), 1.0, []),
        (Seen("running", 11, 101, 3.9, 2.0), 1.0, []),
        (Seen("running", 11, 101, 4.1, 2.0), 1.0, ["loss_spike"]),
        (Seen("running", 11, 101, float("nan"), 2.0), 1.0, ["loss_spike"]),
        (Seen("running", 11, 19, 4.1, 2.0), 1.0, []),
        (Seen("running", 11, 101, 4.1, None), 1.0, []),
        (Seen("running", 10, 100), 59.0, []),
        (Seen("running", 10, 100), 61.0, ["no_progress"]),
        (Seen("running", 11, 101), 61.0, []),
        (Seen("pending", 10, 100), 61.0, []),
    ],
)
def test_rules(now: Seen, clock: float, expected: list[str]) -> None:
    assert kinds(RUNNING, now, clock) == expected
    assert kinds(RUNNING, now, clock, Alerts()) == []
    assert kinds(None, now, clock) == []  # the first sight


def test_nothing_is_told_twice() -> None:
    stuck, seen = evaluate("r", ALL, RUNNING, Seen("running", 10, 100), 61.0)
    assert [alert.text for alert in stuck] == ["r: no step for 1m01s, since step 10"]
    again, seen = evaluate("r", ALL, seen, Seen("running", 10, 100), 90.0)
    moved, seen = evaluate("r", ALL, seen, Seen("running", 11, 101), 91.0)
    anew, seen = evaluate("r", ALL, seen, Seen("running", 11, 101), 200.0)
    assert (again, moved, [alert.kind for alert in anew]) == ([], [], ["no_progress"])
    spike = Seen("running", 12, 102, 9.0, 1.0)
    first, seen = evaluate("r", ALL, seen, spike, 201.0)
    soon, seen = evaluate("r", ALL, seen, spike, 300.0)
    later, seen = evaluate("r", ALL, seen, spike, 900.0)
    assert [[alert.kind for alert in one if alert.kind == "loss_spike"] for one in (first, soon, later)] == [
        ["loss_spike"], [], ["loss_spike"],
    ]  # fmt: skip
    ended, seen = evaluate("r", ALL, seen, Seen("failed", 12, 102), 901.0)
    after, seen = evaluate("r", ALL, seen, Seen("failed", 12, 102), 902.0)
    assert ([alert.kind for alert in ended], after) == (["failed"], [])


@contextmanager
def receiver(status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status)
            if status == 302:
                self.send_header("location", "/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/secret-path", received
    server.shutdown()
    server.server_close()


def test_webhook_and_slack_receive_it() -> None:
    rules = Alerts(webhook="HOOK", slack="SLACK")
    with receiver() as (url, received):
        said = send(Alert("r", "failed", "r <b> & failed"), rules, {"HOOK": url, "SLACK": url})
    assert said == ["webhook: sent", "slack: sent"]
    assert (received[0]["run"], received[0]["kind"], received[0]["text"]) == ("r", "failed", "r <b> & failed")
    assert received[1] == {"text": "r &lt;b&gt; &amp; failed"}


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "the environment variable HOOK of the dashboard is not set"),
        ("file:///etc/passwd", "failed (ValueError)"),
        ("http://127.0.0.1:1/secret-path", "failed (URLError)"),
        ("not an address", "failed (ValueError)"),
    ],
)
def test_what_goes_wrong_is_said_without_the_address(address: str, said: str) -> None:
    assert send(Alert("r", "failed", "x"), Alerts(webhook="HOOK"), {"HOOK": address}) == [f"webhook: {said}"]


@pytest.mark.parametrize("status", [302, 403, 500])
def test_refusals_are_said_and_redirects_are_not_followed(status: int) -> None:
    with receiver(status) as (url, received):
        assert send(Alert("r", "x", "x"), Alerts(webhook="HOOK"), {"HOOK": url}) == [
            f"webhook: failed (HTTPError {status})"
        ]
    assert len(received) == 1


def test_mail_without_a_server_is_said() -> None:
    rules = Alerts(email=["a@example.org"])
    assert "SHARDYARD_SMTP_URL of the dashboard is not set" in send(Alert("r", "x", "x"), rules, {})[0]
    said = send(Alert("r", "x", "x"), rules, {"SHARDYARD_SMTP_URL": "smtp://me:hidden@127.0.0.1:1"})
    assert said == ["email: failed (ConnectionRefusedError)"]


def test_a_watched_run_that_fails_is_told_of(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    folder = write_run(runs, "one-1", losses=[2.0] * 30, state="running")
    resolved = folder / "resolved.yaml"
    resolved.write_text(
        resolved.read_text().replace(
            "tracking:\n", "tracking:\n  alerts: {when: [failed, loss_spike], webhook: HOOK}\n"
        )
    )
    write_run(runs, "two-1", state="running")
    index = index_of(runs, tmp_path / "cache")
    with receiver() as (url, received):
        watcher = Watcher(index, {"HOOK": url})
        assert watcher.look(0.0) == []
        add_lines(folder, [2.1, 50.0, 2.0], first=31)
        index.catch_up()
        watcher.look(1.0)
        info = json.loads((folder / "run.json").read_text()) | {"state": "failed"}
        (folder / "run.json").write_text(json.dumps(info))
        write_run(runs, "three-1", state="failed")
        index.catch_up()
        watcher.look(2.0)
        row = index.store.reader.execute("SELECT * FROM runs WHERE id = 'one-1'").fetchone()
        assert watcher.test(row) == ["webhook: sent"]
    assert [message["kind"] for message in received] == ["loss_spike", "failed", "test"]
    assert "rose to 50" in received[0]["text"]
    index.stop()
