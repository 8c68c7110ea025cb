"""One launch through Ray among planted secrets: what listens, what is written, who can read the token; and a resume."""

from __future__ import annotations

import base64
import contextlib
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.cli import Command, write_recipe
from support.secrets import SECRETS, SENTENCES
from support.tiny import write_corpus
from support.waiting import until

pytestmark = pytest.mark.slow

LOGIN, SIGNATURE = SECRETS["login"], SECRETS["signature"]
ENVIRONMENT = {
    "DATA_LOGIN": LOGIN,
    "DATA_SIGNATURE": SIGNATURE,
    "AWS_ACCESS_KEY_ID": SECRETS["aws id"],
    "AWS_SECRET_ACCESS_KEY": SECRETS["aws secret"],
    "HF_TOKEN": SECRETS["hugging face"],
    "WANDB_API_KEY": SECRETS["wandb"],
    "GITHUB_TOKEN": SECRETS["github"],
    "OPENAI_API_KEY": SECRETS["openai"],
    "SLACK_TOKEN": SECRETS["slack"],
    "GOOGLE_CREDENTIALS": SECRETS["google"],
    "SESSION_TOKEN": SECRETS["jwt"],
    "MY_PASSWORD": "correct horse battery staple",
    "HF_HUB_OFFLINE": "1",
}
PLANTED = {**SECRETS, "password": ENVIRONMENT["MY_PASSWORD"]}
LOOPBACK = ("127.", "::1", "::ffff:127.")
TOKEN = "ab" * 32


class _Storage(BaseHTTPRequestHandler):
    """Gives one file to who has the login and the signature."""

    corpus: bytes
    refused = 0

    def do_GET(self, *, body: bool = True) -> None:
        login = base64.b64encode(LOGIN.encode()).decode()
        if self.headers.get("Authorization") != f"Basic {login}" or f"sig={SIGNATURE}" not in self.path:
            type(self).refused += 1
            self.send_error(403)
            return
        begin, _, end = (self.headers.get("Range") or "").removeprefix("bytes=").partition("-")
        piece = self.corpus[int(begin) : int(end) + 1 if end else None] if begin else self.corpus
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{int(begin) + len(piece) - 1}/{len(self.corpus)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        if body:
            self.wfile.write(piece)

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Watched:
    """What was seen of a run."""

    folder: Path = Path()
    home: Path = Path()
    temporary: Path = Path()
    output: str = ""
    codes: list[int] = field(default_factory=list)
    listeners: dict[tuple[str, int], str] = field(default_factory=dict)
    lines: set[str] = field(default_factory=set)
    # What Ray has logged: the size of each file when it was read, and the kinds of secrets in them.
    logged: dict[Path, int] = field(default_factory=dict)
    told: set[tuple[str, str]] = field(default_factory=set)
    steps: list[int] = field(default_factory=list)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    _Storage.corpus = write_corpus(tmp_path_factory.mktemp("corpus")).read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Storage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def watched(storage: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A run of two workers that pauses, and goes on, in a home where Ray has left its token open to all."""
    top, seen = tmp_path_factory.mktemp("closed"), Watched()
    # Ray's sockets lie below, and their paths may not be longer than 107 characters.
    seen.home, seen.temporary = top / "home", Path(tempfile.mkdtemp(prefix="sy-", dir="/tmp"))
    token = seen.home / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text(TOKEN)
    token.chmod(0o644)
    url = f"http://${{DATA_LOGIN}}@{storage}/corpus.jsonl?sig=${{DATA_SIGNATURE}}"
    recipe = write_recipe(
        top,
        Path("unused"),
        data={"train": [{"path": url, "holdout": 0.1}]},
        train={"steps": 20},
        evaluate={"every": 10},
        tracking={"wandb": {"mode": "offline"}, "tags": ["closed"]},
    )
    planted = [f"# {SENTENCES[kind][0].format(secret)}".replace("\n", "\n# ") for kind, secret in SECRETS.items()]
    recipe.write_text("\n".join([*planted, recipe.read_text()]))
    environment = {**ENVIRONMENT, "HOME": str(seen.home), "RAY_TMPDIR": str(seen.temporary)}
    with Command("launch", recipe, "--until", 10, runs=top / "runs", **environment) as command:
        until(lambda: _watch(command, seen) or command.process.poll() is not None, "the run to pause")
        finish(command, seen)
    with Command("resume", command.folder.name, runs=top / "runs", **environment) as command:
        finish(command, seen)
    seen.folder, seen.steps = command.folder, [line["step"] for line in command.metrics()]
    yield seen
    shutil.rmtree(seen.temporary, ignore_errors=True)


def finish(command: Command, seen: Watched) -> None:
    code, output = command.finish()
    seen.codes.append(code)
    seen.output += output


def _watch(command: Command, seen: Watched) -> None:
    """Note each port that is listened to, each command line, and what Ray logs: its files go with the run."""
    with contextlib.suppress(OSError):
        for path in seen.temporary.rglob("*"):
            if path.is_file() and seen.logged.get(path) != (size := path.stat().st_size):
                seen.logged[path] = size
                seen.told |= {(str(path), kind) for kind in _kinds_in(path, PLANTED)}
    for process in [psutil.Process(command.process.pid), *command.descendants()]:
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            seen.lines.add(line)
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN:
                    seen.listeners[one.laddr.ip, one.laddr.port] = line


def test_it_reads_its_data_and_goes_on_where_it_paused(watched: Watched) -> None:
    assert watched.codes == [0, 0], watched.output
    assert watched.steps == list(range(1, 21))
    assert _Storage.refused == 0


def test_nothing_listens_but_on_loopback(watched: Watched) -> None:
    for kind in ("gcs_server", "raylet/raylet", "ray::DashboardAgent", "ray::RankWorker", "shardyard.cli.main"):
        assert [line for line in watched.listeners.values() if kind in line], kind
    reachable = {place: line for place, line in watched.listeners.items() if not place[0].startswith(LOOPBACK)}
    assert reachable == {}


def test_the_token_is_closed_and_kept(watched: Watched) -> None:
    token = watched.home / ".ray" / "auth_token"
    assert token.read_text() == TOKEN
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_nothing_that_is_written_holds_a_secret(watched: Watched) -> None:
    """The run folder with its logs, checkpoints, model card and W&B's files."""
    files = [path for path in watched.folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    found = [(str(path.relative_to(watched.folder)), kind) for path in files for kind in _kinds_in(path, PLANTED)]
    assert found == []
    names = {path.relative_to(watched.folder).parts[0] for path in files}
    assert {"recipe.yaml", "resolved.yaml", "run.json", "events.jsonl", "logs", "wandb", "final"} <= names
    assert "${DATA_LOGIN}" in (watched.folder / "resolved.yaml").read_text()
    assert (watched.folder / "recipe.yaml").read_text().count("[hidden]") >= 10
    assert "127.0.0.1" in (watched.folder / "final" / "README.md").read_text()


def test_nothing_that_ray_logs_holds_a_secret_and_its_logs_go_with_the_run(watched: Watched) -> None:
    assert len([path for path in watched.logged if path.suffix in {".log", ".out", ".err"}]) > 10
    assert watched.told == set()
    assert [path for path in watched.temporary.rglob("*") if path.is_file()] == []


def _kinds_in(path: Path, secrets: dict[str, Any]) -> list[str]:
    content = path.read_bytes()
    # A key of several lines is found by any of them.
    parts = {kind: [line for line in secret.splitlines() if len(line) > 7] for kind, secret in secrets.items()}
    return [
        kind for kind, lines in parts.items() if any(line.encode() in content for line in lines if "---" not in line)
    ]


def test_neither_output_nor_command_lines_hold_a_secret(watched: Watched) -> None:
    assert len(watched.lines) > 5
    for kind, secret in SECRETS.items():
        assert secret not in watched.output, kind
        assert not [line for line in watched.lines if secret in line], kind
