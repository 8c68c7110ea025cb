"""The dashboard from another host: what it prints opens it there, over IPv4, over IPv6 and by the name of a proxy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from support.cli import COMMAND
from support.dash_cases import write_run
from support.hosts import Host, hosts

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

# Asks for addresses, each with a Host header or without; prints status and whether the run is told of.
VISITOR = """
import json, sys, urllib.error, urllib.request
told = []
for address, token, host in json.loads(sys.argv[1]):
    headers = {"Authorization": f"Bearer {token}", **({"Host": host} if host else {})}
    request = urllib.request.Request(f"{address}api/runs", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            told.append([answer.status, "one-1" in answer.read().decode()])
    except urllib.error.HTTPError as error:
        told.append([error.code, "one-1" in error.read().decode()])
    except OSError as error:
        told.append([0, False])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    """Two hosts with addresses of both kinds."""
    folder = tmp_path_factory.mktemp("hosts")
    write_run(folder / "runs", "one-1")
    with hosts(folder, "alpha", "beta") as (alpha, beta):
        for number, host in enumerate((alpha, beta), 1):
            host.home.mkdir(exist_ok=True)
            added = host.run("ip", "-6", "address", "add", f"fd77::{number}/64", "dev", "eth0", "nodad")
            assert added.returncode == 0, added.stderr
        yield alpha, beta


def start(host: Host, *arguments: str) -> tuple[subprocess.Popen[str], list[str], str]:
    """A dashboard on a host: its process, the addresses that it printed, and its token."""
    runs = host.home.parent / "runs"
    command = [*COMMAND, "dashboard", "--runs-dir", runs, "--port", "0", "--no-browser", *arguments]
    process = host.start(*command, SHARDYARD_CACHE=str(host.home / "cache"))
    assert process.stdout is not None
    found: list[str] = []
    for line in process.stdout:
        found += re.findall(r"http://\S+", line)
        if line.startswith("runs "):
            break
    tokens = {address.partition("?token=")[2] for address in found}
    assert len(tokens) == 1, found
    return process, [address.partition("?")[0] for address in found], tokens.pop()


def visit(host: Host, asked: list[tuple[str, str, str]]) -> list[list[object]]:
    """What a visitor on a host is told."""
    done = host.run(sys.executable, "-c", VISITOR, json.dumps(asked))
    assert done.returncode == 0, done.stderr
    told: list[list[object]] = json.loads(done.stdout)
    return told


def end(process: subprocess.Popen[str]) -> str:
    process.terminate()
    return process.communicate(timeout=60)[1]


@pytest.mark.parametrize(
    ("listens", "printed"),
    [("0.0.0.0", ("10.77.0.1",)), ("::", ("10.77.0.1", "[fd77::1]")), ("fd77::1", ("[fd77::1]",))],
)
def test_what_it_prints_opens_it_from_elsewhere(
    pair: tuple[Host, Host], listens: str, printed: tuple[str, ...]
) -> None:
    alpha, beta = pair
    process, addresses, token = start(alpha, "--host", listens, "--allow-host", "runs.example.org")
    try:
        far = [address for address in addresses if any(f"//{name}:" in address for name in printed)]
        assert len(far) == len(printed), addresses
        assert addresses[0] == far[0]
        allowed = [(address, token, "") for address in far] + [(far[0], token, "runs.example.org")]
        assert visit(beta, allowed) == [[200, True]] * len(allowed)
        # A foreign name that is made to point here gets nothing, nor does one without the token.
        foreign = [(far[0], token, name) for name in ("evil.example", "10.77.0.2", "runs.example.org.evil.example")]
        assert visit(beta, foreign) == [[421, False]] * 3
        assert visit(beta, [(far[0], "wrong", "")]) == [[401, False]]
        if listens != "fd77::1":
            assert visit(alpha, [(address, token, "") for address in addresses if "127.0.0.1" in address]) == [
                [200, True]
            ]
    finally:
        said = end(process)
    assert "clear text" in said
    assert "ssh -L" in said
    assert token not in said


def test_by_default_it_is_reached_from_nowhere_else(pair: tuple[Host, Host]) -> None:
    alpha, beta = pair
    process, (address,), token = start(alpha)
    try:
        port = address.rpartition(":")[2]
        assert address.startswith("http://127.0.0.1:")
        assert visit(alpha, [(address, token, "")]) == [[200, True]]
        assert visit(beta, [(f"http://10.77.0.1:{port}", token, "")]) == [[0, False]]
    finally:
        assert "clear text" not in end(process)
