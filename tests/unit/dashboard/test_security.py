"""Who gets in, and what nobody gets out: tokens, Host names, forged requests, paths, links, hostile text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from shardyard.dashboard.web.addresses import bound, hosts_of
from shardyard.dashboard.web.security import MOST_BODY_BYTES, Gate, token_in
from shardyard.errors import UsageError
from support.dash_cases import ADDRESS, CSRF, TOKEN, served, write_run
from support.secrets import SECRETS

SECRET = "a secret that lies outside of the runs folder"
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("top") / "runs"
    (folder.parent / "secret.txt").write_text(SECRET)
    run = write_run(folder, "one-1", provenance={"command": ["x"], "env": {"API_TOKEN": SECRET, "password": SECRET}})
    (run / "logs" / "driver.log").write_text("hello\n")
    for name in ("rank-0.log", "rank-1.log"):
        target = folder.parent / "secret.txt" if name == "rank-0.log" else Path("/etc/passwd")
        (run / "logs" / name).symlink_to(target)
    (run / "events.jsonl").symlink_to(folder.parent / "secret.txt")
    linked = write_run(folder, "linked-1")
    os.rename(linked / "logs", linked / "elsewhere")
    (linked / "logs").symlink_to(folder.parent)
    (folder.parent / "rank-7.log").write_text(SECRET)
    hostile = write_run(folder, "<b>-1", name=HOSTILE, losses=[1.0])
    (hostile / "recipe.yaml").write_text(HOSTILE)
    (hostile / "logs" / "driver.log").write_text(
        f"{HOSTILE}\n\x1b]0;title\x07\x1b[31mred\x1b[0m\nprogress 1\rprogress 2\n"
    )
    (hostile / "samples.jsonl").write_text(json.dumps({"step": 1, "prompt": HOSTILE, "text": HOSTILE}) + "\n")
    return folder


@pytest.fixture(scope="module")
def client(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with served(runs, tmp_path_factory.mktemp("cache")) as made:
        yield made


@pytest.fixture(scope="module")
def stranger(client: TestClient) -> TestClient:
    """The same server without a token."""
    return TestClient(client.app, base_url=ADDRESS)


@pytest.mark.parametrize("path", ["/", "/api/session", "/api/runs", "/api/runs/one-1", "/api/stream", "/api/nothing"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": "Bearer "},
        {"cookie": "shardyard_8270=wrong"},
        {"cookie": f"shardyard_8270={TOKEN}"},
        {"cookie": f"shardyard_8271={Gate(TOKEN, frozenset(), 8270).session}"},
        {"cookie": "\xff=;;;=="},
    ],
)
def test_without_the_token_nothing_is_told(stranger: TestClient, path: str, headers: dict[str, str]) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = stranger.get(path, headers=raw, follow_redirects=False)
    assert answer.status_code == 401
    assert "one-1" not in answer.text


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", "%00", "%ff%fe"])
def test_a_wrong_token_in_the_address_opens_nothing(stranger: TestClient, token: str) -> None:
    answer = stranger.get(f"/?token={token}", follow_redirects=False)
    assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)


def test_the_token_becomes_a_cookie_that_no_script_reads_and_leaves_the_address(client: TestClient) -> None:
    visitor = TestClient(client.app, base_url=ADDRESS)
    answer = visitor.get(f"/?token={TOKEN}&view=runs", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/?view=runs")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert TOKEN not in cookie
    assert visitor.get("/api/runs").status_code == 200
    assert visitor.get(f"/api/runs?token={TOKEN}", headers={"cookie": ""}).status_code == 401


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8270",
        "",
        "[::1",
        "169.254.1.1",
        "0.0.0.0:8270",
    ],
)
def test_a_foreign_host_name_gets_nothing(client: TestClient, host: str) -> None:
    for path in ("/api/runs", "/", f"/?token={TOKEN}", "/static/main.js"):
        answer = client.get(path, headers={"host": host}, follow_redirects=False)
        assert answer.status_code == 421
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("host", ["127.0.0.1:8270", "localhost:1234", "LOCALHOST", "[::1]:8270"])
def test_loopback_names_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/api/session", headers={"host": host}).status_code == 200


def test_hosts_of_a_server_that_others_reach() -> None:
    assert "gpu-7" in hosts_of("gpu-7")
    assert "0.0.0.0" not in hosts_of("0.0.0.0")


def test_secrets_in_runs_of_before_are_not_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", "old-1", problem=f"cannot read https://{SECRETS['login']}@host/x")
    (run / "logs").mkdir(exist_ok=True)
    (run / "logs" / "driver.log").write_text(f"GET https://host/x.jsonl?sig={SECRETS['signature']}\n")
    sample = {"step": 1, "prompt": SECRETS["github"], "text": SECRETS["slack"]}
    (run / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    (run / "recipe.yaml").write_text(f"name: x  # {SECRETS['hugging face']}\n")
    with served(tmp_path / "runs", tmp_path / "cache") as client:
        for place in ("", "/logs", "/samples", "/recipe"):
            answer = client.get(f"/api/runs/old-1{place}")
            assert answer.status_code == 200, answer.text
            assert "[hidden]" in answer.text, place
            assert not [kind for kind, secret in SECRETS.items() if secret in answer.text]
        assert SECRETS["login"] not in client.get("/api/runs").text


POSTS = [
    "/api/jobs",
    "/api/jobs/x/stop",
    "/api/runs/one-1/resume",
    "/api/recipes/check",
    "/api/recipes/data",
    "/api/alerts/test",
]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "headers",
    [
        {CSRF: ""},
        {CSRF: "wrong"},
        {CSRF: TOKEN},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_forged_changes_are_refused(client: TestClient, path: str, headers: dict[str, str]) -> None:
    assert client.post(path, headers=headers, json={}).status_code == 403


def test_changes_are_no_gets_and_unknown_methods_are_refused(client: TestClient) -> None:
    assert client.get("/api/jobs/x/stop").status_code == 404
    assert client.get("/api/recipes/check").status_code == 404
    assert client.put("/api/jobs", json={}).status_code in (404, 405)
    assert client.delete("/api/runs/one-1").status_code in (404, 405)


def test_too_much_is_refused(client: TestClient) -> None:
    assert client.post("/api/recipes/check", content=b"x" * (MOST_BODY_BYTES + 1)).status_code == 413
    assert client.get("/api/runs?query=" + "x" * 40_000).status_code == 414
    assert client.post("/api/recipes/check", content=b"[" * 100_000).status_code == 400
    assert client.post("/api/recipes/check", content=b'"text"').status_code == 400
    assert client.get("/api/series?runs=" + ",".join(f"r{n}" for n in range(300)) + "&metrics=a").status_code == 400


TRAVERSALS = [
    "..",
    "../secret.txt",
    "%2e%2e",
    "%2e%2e%2fsecret.txt",
    "..%2fsecret.txt",
    "%252e%252e%252fsecret.txt",
    "..%5csecret.txt",
    "one-1%00",
    "one-1%2f..%2f..%2fsecret.txt",
    "one-1/",
    "%2fetc%2fpasswd",
    "link",
    "one-1%0a",
    "One-1",
    ".",
    "%20",
    "x" * 5000,
]


@pytest.mark.parametrize("name", TRAVERSALS)
def test_no_name_leads_out_of_the_runs_folder(client: TestClient, name: str) -> None:
    for rest in ("", "/recipe", "/logs", "/events", "/samples", "/experts", "/system"):
        answer = client.get(f"/api/runs/{name}{rest}")
        assert answer.status_code in (404, 405) or (answer.status_code == 200 and answer.json().get("total") == 3)
        assert SECRET not in answer.text
        assert "root:" not in answer.text


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/passwd", "one-1\0", "one-1/../../secret.txt"])
def test_names_in_queries_lead_nowhere_either(client: TestClient, name: str) -> None:
    for path in (
        "/api/export.csv?run=",
        "/api/report?runs=",
        "/api/compare?runs=",
        "/api/series?metrics=train/loss&runs=",
    ):
        answer = client.get(path + name.replace("\0", "%00"))
        assert SECRET not in answer.text
        assert "root:" not in answer.text
    assert client.post("/api/alerts/test", json={"run": name}).status_code == 404
    assert client.post(f"/api/runs/{name.replace('/', '%2f').replace(chr(0), '%00')}/resume", json={}).status_code in (
        404,
        405,
    )
    for body in ({"name": name}, {"name": "gpt/quickstart", "overrides": ["a\0b"]}, {"name": 7}, {}):
        assert client.post("/api/recipes/check", json=body).status_code in (400, 404)


@pytest.mark.parametrize(
    "rank",
    ["0", "1", "7", "../../../secret.txt", "..%2f..%2f..%2fsecret", "driver%00", "-1", "0x1", "٣", "9" * 30, "1/../0"],
)
@pytest.mark.parametrize("run", ["one-1", "linked-1"])
def test_logs_behind_links_or_odd_ranks_are_not_read(client: TestClient, run: str, rank: str) -> None:
    answer = client.get(f"/api/runs/{run}/logs?rank={rank}")
    assert answer.status_code in (400, 404)
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "../server.py",
        "%2e%2e/server.py",
        "..%2fserver.py",
        "vendor/../../server.py",
        "/etc/passwd",
        "main.js%00",
        "vendor/",
        "",
    ],
)
def test_static_files_are_those_of_the_folder_alone(stranger: TestClient, path: str) -> None:
    answer = stranger.get(f"/static/{path}")
    assert answer.status_code in (401, 404)
    assert "import" not in answer.text


def test_what_looks_like_a_secret_in_run_json_is_hidden(client: TestClient) -> None:
    answer = client.get("/api/runs/one-1")
    assert answer.status_code == 200
    assert SECRET not in answer.text
    assert SECRET not in client.get("/api/runs/one-1/events").text
    assert SECRET not in client.get("/api/runs/one-1/recipe").text


def test_hostile_text_stays_text(client: TestClient) -> None:
    run = "%3Cb%3E-1"
    for rest in ("", "/recipe", "/samples", "/logs"):
        answer = client.get(f"/api/runs/{run}{rest}")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
    lines = client.get(f"/api/runs/{run}/logs").json()["lines"]
    assert [line[1] for line in lines] == [HOSTILE, "red", "progress 2"]
    report = client.get(f"/api/report?runs={run}").text
    assert "<img src=x" not in report
    assert "alert(2)</script>" not in report
    assert "&lt;img src=x" in report
    table = client.get(f"/api/export.csv?run={run}")
    assert table.headers["content-disposition"] == 'attachment; filename="_b_-1.csv"'


def test_every_answer_carries_the_policy(client: TestClient, stranger: TestClient) -> None:
    answers = [client.get(path) for path in ("/", "/api/runs", "/api/nothing", "/static/index.html", "/api/runs/none")]
    for answer in [*answers, stranger.get("/"), client.get("/", headers={"host": "evil"})]:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert re.search(r"script-src 'self';", policy)
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers


def test_a_bug_is_named_without_its_insides(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from shardyard.dashboard.web import details

    monkeypatch.setattr(details, "recipe", lambda *a: {}[SECRET])
    answer = client.get("/api/runs/one-1/recipe")
    assert answer.status_code == 500
    assert SECRET not in answer.text
    assert "KeyError" in answer.json()["error"]


def test_token_files(tmp_path: Path) -> None:
    path = tmp_path / "token"
    first = token_in(path)
    assert len(first) > 40
    assert path.stat().st_mode & 0o777 == 0o600
    assert token_in(path) == first
    path.chmod(0o644)
    with pytest.raises(UsageError, match="can be read by others"):
        token_in(path)
    path.chmod(0o600)
    path.write_text("short\n")
    with pytest.raises(UsageError, match="too short"):
        token_in(path)
    with pytest.raises(UsageError, match="cannot be used"):
        token_in(tmp_path / "nowhere" / "token")
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(UsageError, match="cannot be used"):
        token_in(tmp_path / "link")


def test_a_busy_port_is_said_in_words() -> None:
    with bound("127.0.0.1", 0) as taken, pytest.raises(UsageError, match="--port 0"):
        bound("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UsageError, match="cannot be used"):
        bound("203.0.113.7", 0)
