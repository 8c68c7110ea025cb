"""Alerts of recipes (`tracking.alerts`), evaluated from the index while the dashboard runs.

The evaluation is a pure function of the previous and the current state. Addresses and passwords are in environment
variables of the dashboard, whose names are in recipes; the values are never logged or shown.
"""

from __future__ import annotations

import json
import logging
import math
import os
import smtplib
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlsplit

from shardyard.dashboard.charts.series import Reader
from shardyard.dashboard.index.index import Index
from shardyard.dashboard.web.answers import BadRequestError
from shardyard.errors import ShardyardError
from shardyard.recipe.sections.watching import Alerts
from shardyard.redaction import scrub
from shardyard.tracking.metrics.record import TRAIN_LOSS
from shardyard.units import format_seconds

logger = logging.getLogger(__name__)

SEND_SECONDS = 10.0
PERIOD_SECONDS = 5.0
# Until the average has settled, every loss deviates from it.
SETTLED_RECORDS = 20
SPIKE_PAUSE_SECONDS = 600.0
_FAILED = frozenset({"failed", "lost"})
_LIVE = frozenset({"pending", "running", "unknown"})


@dataclass(frozen=True)
class Alert:
    """An alert: run, rule, and text."""

    run: str
    kind: str
    text: str


@dataclass(frozen=True)
class Seen:
    """A snapshot of a run.

    highest: the greatest training loss since the previous snapshot; average: the moving average before that.
    moved: when its step last changed, in seconds of the clock passed to `evaluate`.
    reported: reported rules, which are not repeated until something changes.
    """

    state: str
    step: int
    records: int = 0
    highest: float | None = None
    average: float | None = None
    moved: float = 0.0
    reported: Mapping[str, float] = field(default_factory=dict)


def evaluate(run: str, rules: Alerts, before: Seen | None, now: Seen, clock: float) -> tuple[list[Alert], Seen]:
    """The new alerts, and the state to keep. The first snapshot of a run raises none, because it may be old."""
    if before is None:
        return [], replace(now, moved=clock)
    progressed = now.step != before.step
    reported = {kind: at for kind, at in before.reported.items() if not (kind == "no_progress" and progressed)}
    moved = clock if progressed or now.state != before.state else before.moved
    found = []
    for kind, text in _findings(rules, before, now, clock - moved):
        if kind == "loss_spike" and clock - reported.get(kind, -math.inf) < SPIKE_PAUSE_SECONDS:
            continue
        if kind == "no_progress" and kind in reported:
            continue
        reported[kind] = clock
        found.append(Alert(run, kind, f"{run}: {text}"))
    return found, replace(now, moved=moved, reported=reported)


def _findings(rules: Alerts, before: Seen, now: Seen, quiet_seconds: float) -> list[tuple[str, str]]:
    found = []
    ended = before.state in _LIVE and now.state != before.state
    if "failed" in rules.when and ended and now.state in _FAILED:
        found.append(("failed", f"{now.state} at step {now.step}"))
    if "finished" in rules.when and ended and now.state == "finished":
        found.append(("finished", f"finished at step {now.step}"))
    if "loss_spike" in rules.when and _is_spike(rules, now):
        found.append(
            ("loss_spike", f"the loss rose to {now.highest:.4g} near step {now.step} (average {now.average:.4g})")
        )
    if "no_progress" in rules.when and now.state == "running" and quiet_seconds >= rules.no_progress_seconds:
        found.append(("no_progress", f"no step for {format_seconds(quiet_seconds)}, since step {now.step}"))
    return found


def _is_spike(rules: Alerts, now: Seen) -> bool:
    if now.highest is None or now.average is None or now.records < SETTLED_RECORDS:
        return False
    return math.isnan(now.highest) or (now.average > 0 and now.highest > rules.loss_spike * now.average)


def send(alert: Alert, rules: Alerts, environment: Mapping[str, str] | None = None) -> list[str]:
    """Send to all receivers of the rules; returns each result as text, without secrets."""
    environment = os.environ if environment is None else environment
    alert = replace(alert, text=scrub(alert.text))
    outcomes = []
    for name, variable, sender in (
        ("webhook", rules.webhook, _to_webhook),
        ("slack", rules.slack, _to_slack),
    ):
        if variable is not None:
            outcomes.append(f"{name}: {_attempt(variable, environment, sender, alert)}")
    if rules.email:

        def mail(url: str, alert: Alert) -> None:
            _to_email(url, rules.email, alert)

        outcomes.append(f"email: {_attempt(rules.smtp, environment, mail, alert)}")
    return outcomes


def _attempt(variable: str, environment: Mapping[str, str], sender: Callable[[str, Alert], None], alert: Alert) -> str:
    address = environment.get(variable, "")
    if not address:
        return f"the environment variable {variable} of the dashboard is not set"
    try:
        sender(address, alert)
    except (OSError, ValueError, smtplib.SMTPException) as error:
        # The error text may contain the address, which is secret.
        code = getattr(error, "code", None) or getattr(error, "smtp_code", None)
        return f"failed ({type(error).__name__}{f' {code}' if code else ''})"
    return "sent"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are not followed."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _post(url: str, content: dict[str, object]) -> None:
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("no http address")
    body = json.dumps(content).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"}, method="POST")
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=SEND_SECONDS) as answer:
        answer.read(1024)


def _to_webhook(url: str, alert: Alert) -> None:
    _post(url, {"run": alert.run, "kind": alert.kind, "text": alert.text, "time": time.time()})


def _to_slack(url: str, alert: Alert) -> None:
    # Slack interprets these three characters as markup.
    text = alert.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    _post(url, {"text": text})


def _to_email(url: str, to: list[str], alert: Alert) -> None:
    place = urlsplit(url)
    if place.scheme not in ("smtp", "smtps") or not place.hostname:
        raise ValueError("no smtp address")
    message = EmailMessage()
    message["Subject"] = f"Shardyard: {alert.kind.replace('_', ' ')}: {alert.run}"
    message["From"] = (
        unquote(place.username or "") if "@" in unquote(place.username or "") else f"shardyard@{place.hostname}"
    )
    message["To"] = ", ".join(to)
    message.set_content(alert.text)
    kind = smtplib.SMTP_SSL if place.scheme == "smtps" else smtplib.SMTP
    with kind(place.hostname, place.port or 0, timeout=SEND_SECONDS) as server:
        if place.scheme == "smtp" and server.has_extn("starttls"):
            server.starttls()
        if place.username and place.password:
            server.login(unquote(place.username), unquote(place.password))
        server.send_message(message)


class Watcher:
    """Evaluates runs with alerts on a separate thread, so that a slow receiver does not block anything else."""

    def __init__(self, index: Index, environment: Mapping[str, str] | None = None) -> None:
        self._index = index
        self._environment = environment
        self._reader = Reader(kept_bytes=0)
        self._seen: dict[str, Seen] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def changed(self, runs: list[str]) -> None:
        """Notify that the index has read changes of these runs."""
        self._wake.set()

    def start(self) -> None:
        """Watch until `stop`."""
        self._thread = threading.Thread(target=self._watch, name="shardyard-alerts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after waiting for alerts that are being sent."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * SEND_SECONDS)

    def test(self, row: sqlite3.Row) -> list[str]:
        """Send a test alert for a run; returns the results.

        Raises:
            BadRequestError: its recipe names no receiver.
        """
        rules = self._rules(row["key"])
        if rules is None or not (rules.webhook or rules.slack or rules.email):
            raise BadRequestError(
                f"the recipe of {row['id']} names no place for alerts; set tracking.alerts.webhook, slack or email."
            )
        return send(Alert(row["id"], "test", f"{row['id']}: this is a test of its alerts"), rules, self._environment)

    def look(self, clock: float) -> list[tuple[Alert, list[str]]]:
        """Evaluate once; returns the alerts and their results."""
        connection = self._index.store.reader
        rows = connection.execute(
            "SELECT r.* FROM runs r JOIN fields f ON f.run = r.key WHERE f.path = 'tracking.alerts.when.0'"
        ).fetchall()
        sent = []
        for row in rows:
            rules = self._rules(row["key"])
            if rules is None:
                continue
            before = self._seen.get(row["id"])
            alerts, self._seen[row["id"]] = evaluate(row["id"], rules, before, self._now(row, before), clock)
            sent += [(alert, send(alert, rules, self._environment)) for alert in alerts]
        return sent

    def _now(self, row: sqlite3.Row, before: Seen | None) -> Seen:
        since = before.records if before is not None else row["rows"]
        highest = average = None
        if before is not None and row["rows"] > since:
            connection = self._index.store.reader
            new = self._reader.curve(connection, row["key"], TRAIN_LOSS, "step", since).y.tolist()
            old = self._reader.curve(connection, row["key"], TRAIN_LOSS, "step", max(0, since - 50)).y.tolist()
            settled = sorted(value for value in old[: max(0, len(old) - len(new))] if math.isfinite(value))
            average = settled[len(settled) // 2] if settled else None
            highest = math.nan if any(math.isnan(value) for value in new) else max(new, default=None)
        return Seen(row["state"], row["step"], row["rows"], highest, average)

    def _rules(self, key: int) -> Alerts | None:
        prefix = "tracking.alerts."
        found: dict[str, object] = {}
        lists: dict[str, list[object]] = {}
        for path, value in self._index.store.reader.execute(
            "SELECT path, value FROM fields WHERE run = ? AND path LIKE 'tracking.alerts.%'", (key,)
        ):
            name, _, item = path.removeprefix(prefix).partition(".")
            if item:
                lists.setdefault(name, []).append(value)
            elif value is not None:
                found[name] = value
        try:
            return Alerts.model_validate({**found, **lists})
        except ValueError:
            return None  # written by another version of Shardyard

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(PERIOD_SECONDS)
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                for alert, outcomes in self.look(time.monotonic()):
                    logger.info("alert %s of %s: %s", alert.kind, alert.run, "; ".join(outcomes))
            except (sqlite3.Error, ShardyardError, OSError):
                logger.warning("alerts could not be judged this time", exc_info=True)
            self._stop.wait(1.0)
