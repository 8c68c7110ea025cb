"""Where the dashboard listens and what it answers to, and how a browser gets in without a token in a command line."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from starlette.testclient import TestClient

from shardyard.cli.commands.dashboard import entry_file
from shardyard.cli.main import run
from shardyard.dashboard.web import addresses
from shardyard.dashboard.web.addresses import bound, checked_names, hosts_of, is_loopback, urls
from shardyard.dashboard.web.security import LOOPBACK, Gate, Guard
from shardyard.dashboard.web.server import make_app
from shardyard.errors import UsageError
from support.dash_cases import TOKEN, index_of, write_run


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two interfaces, of which one has IPv6."""

    def found(address: str) -> SimpleNamespace:
        return SimpleNamespace(family=socket.AF_INET6 if ":" in address else socket.AF_INET, address=address)

    interfaces = {
        "lo": [found("127.0.0.1"), found("::1")],
        "eth0": [found("10.0.0.5"), found("fd00::5"), found("fe80::1%eth0")],
        "ib0": [found("192.168.7.5")],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)
    monkeypatch.setattr(socket, "gethostname", lambda: "GPU-7")


def test_the_addresses_that_are_printed_are_those_that_work() -> None:
    assert urls("127.0.0.1", 8270) == ["http://127.0.0.1:8270/"]
    assert urls("10.0.0.5", 1) == ["http://10.0.0.5:1/"]
    assert urls("0.0.0.0", 8270) == [
        f"http://{name}:8270/" for name in ("10.0.0.5", "192.168.7.5", "gpu-7", "127.0.0.1")
    ]
    assert "http://[fd00::5]:8270/" in urls("[::]", 8270)
    assert not [one for one in urls("::", 8270) if "fe80" in one]
    for host in ("0.0.0.0", "::", "10.0.0.5", "FD00:0::5"):
        for url in urls(host, 8270):
            assert url[len("http://") : -len(":8270/")].strip("[]") in hosts_of(host)


def test_foreign_names_stay_out() -> None:
    assert hosts_of("127.0.0.1") == LOOPBACK
    assert hosts_of("127.0.0.1", ["runs.example.org"]) == {*LOOPBACK, "runs.example.org"}
    assert hosts_of("gpu-9") == {*LOOPBACK, "gpu-9", "gpu-7"}
    for host in ("0.0.0.0", "::", "10.0.0.5", "gpu-9"):
        assert not hosts_of(host) & {"0.0.0.0", "::", "evil.example", "10.0.0.6", ""}


def test_names_of_proxies() -> None:
    assert checked_names(["Runs.Example.org", "fd00::5"]) == ["runs.example.org", "fd00::5"]
    for wrong in ("https://runs.example.org", "runs.example.org/x", "*", "", "a b"):
        with pytest.raises(UsageError, match="is not a host name"):
            checked_names([wrong])


def test_only_loopback_is_private() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "::1", "[::1]", "localhost", "127.9.9.9"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "gpu-7"))


def test_a_server_for_all_addresses_takes_both_kinds() -> None:
    with bound("::", 0) as listening:
        port = listening.getsockname()[1]
        for place in ("127.0.0.1", "::1"):
            socket.create_connection((place, port), timeout=10).close()
    with bound("localhost", 0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"
    for host in ("no.such.host.invalid", "203.0.113.1"):
        with pytest.raises(UsageError, match="cannot be used"):
            bound(host, 0)


@pytest.fixture
def behind_a_proxy(tmp_path: Path) -> Iterator[tuple[TestClient, Gate]]:
    write_run(tmp_path / "runs", "one-1")
    names = ["runs.example.org"]
    gate = Gate(TOKEN, hosts_of("127.0.0.1", names), 8270, frozenset(names))
    with TestClient(make_app(index_of(tmp_path / "runs", tmp_path / "cache"), gate)) as client:
        client.headers["authorization"] = f"Bearer {TOKEN}"
        yield client, gate


def test_a_proxy_may_keep_its_name_or_give_ours(behind_a_proxy: tuple[TestClient, Gate]) -> None:
    client, gate = behind_a_proxy
    change = {"x-shardyard-csrf": gate.csrf, "origin": "https://runs.example.org"}
    body = {"name": "gpt/quickstart", "overrides": ["a"], "plan": False}
    for host in ("runs.example.org", "127.0.0.1:8270"):
        assert client.post("/api/recipes/check", json=body, headers={**change, "host": host}).status_code == 200
    for host, origin in (("evil.example", "https://runs.example.org"), ("127.0.0.1:8270", "https://evil.example")):
        answer = client.post("/api/recipes/check", json=body, headers={**change, "host": host, "origin": origin})
        assert answer.status_code in (421, 403)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"user-agent": "python"}, 303),
        ({"user-agent": "Mozilla/5.0", "sec-fetch-site": "none"}, 303),
        ({"user-agent": "Mozilla/5.0", "sec-fetch-site": "cross-site"}, 200),
        ({"user-agent": "Mozilla/5.0"}, 200),
    ],
)
def test_a_browser_that_comes_from_a_file_keeps_its_cookie(
    behind_a_proxy: tuple[TestClient, Gate], headers: dict[str, str], status: int
) -> None:
    client, _ = behind_a_proxy
    assert isinstance(client.app, Guard)
    visitor = TestClient(client.app, base_url="http://127.0.0.1:8270")
    answer = visitor.get(f"/?token={TOKEN}&q=%22%3Ex", headers=headers, follow_redirects=False)
    assert answer.status_code == status
    assert "SameSite=Strict" in answer.headers["set-cookie"]
    assert TOKEN not in answer.text
    if status == 200:
        assert "content='0;url=/?q=%22%3Ex'" in answer.text
    assert visitor.get("/api/runs").status_code == 200


def test_the_file_that_opens_a_browser_is_for_its_user_alone_and_goes() -> None:
    with entry_file(f"http://127.0.0.1:1/?token={TOKEN}&a=b") as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert f'url=http://127.0.0.1:1/?token={TOKEN}&amp;a=b"' in path.read_text()
        assert TOKEN not in path.as_uri()
    assert not path.parent.exists()


def test_a_browser_is_given_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class AtOnce:
        def __init__(self, _: float, call: object) -> None:
            self.start = call

    monkeypatch.setattr("threading.Timer", AtOnce)
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("shardyard.cli.view.output.is_terminal", lambda: True)
    monkeypatch.setattr("shardyard.dashboard.web.server.serve", lambda app, listening: listening.close())
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "cache"))
    assert run(["dashboard", "--runs-dir", str(tmp_path), "--port", "0"]) == 0
    (address,) = opened
    assert address.startswith("file:///")
    assert "token" not in address


def test_what_is_said_of_a_server_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shardyard.dashboard.web.server.serve", lambda app, listening: listening.close())
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "cache"))
    start = ["dashboard", "--runs-dir", str(tmp_path), "--port", "0", "--no-browser"]
    assert run([*start, "--host", "0.0.0.0", "--allow-host", "runs.example.org"]) == 0
    said = capsys.readouterr()
    first = said.out.splitlines()[0]
    assert first.startswith("dashboard    http://10.0.0.5:")
    assert "?token=" in first
    assert "http://gpu-7:" in said.out
    for part in ("plain HTTP", "clear text", "ssh -L", "--allow-host", "runs.example.org"):
        assert part in said.err
    assert run(start) == 0
    assert "clear text" not in capsys.readouterr().err
    assert run([*start, "--allow-host", "http://x"]) == 2
    assert run([*start, "--data-dir", str(tmp_path / "none")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_link_local_addresses_are_answered_and_not_printed() -> None:
    assert "fe80::1" in hosts_of("::")
    assert list(addresses._own_addresses()) == ["10.0.0.5", "192.168.7.5", "fd00::5"]
