"""The documents of a run from elsewhere: no address, no hub, and no file but those below folders that were named."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardyard.cli.main import run
from shardyard.engine.inference.step_sources import check_sources
from shardyard.errors import UsageError
from shardyard.recipe.loading.load import dump_recipe
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder
from support.tiny import tiny_recipe, write_corpus


def recipe(folder: Path, **changes: Any) -> Recipe:
    corpus = write_corpus(folder)
    made = tiny_recipe(corpus)
    sections = {
        "data": made.data.model_dump() | {"train": changes.pop("train", [{"path": str(corpus), "holdout": 0.1}])},
        "model": made.model.model_dump() | changes.pop("model", {}),
    }
    return Recipe.model_validate({**made.model_dump(), **sections, **changes})


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    folder = tmp_path / "allowed"
    folder.mkdir()
    private = "".join(json.dumps({"text": f"private document {number}"}) + "\n" for number in range(40))
    (tmp_path / "private.jsonl").write_text(private)
    (folder / "link.jsonl").symlink_to(tmp_path / "private.jsonl")
    (folder / "linked").mkdir()
    (folder / "linked" / "a.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    (folder / "linked" / "b.jsonl").symlink_to(tmp_path / "private.jsonl")
    return folder


def test_what_lies_in_named_folders_is_read(allowed: Path) -> None:
    check_sources(recipe(allowed), [allowed])
    check_sources(recipe(allowed, train=[{"source": "python-docs"}]), [])
    check_sources(recipe(allowed, train=[{"path": f"{allowed}/linked/a*.jsonl"}]), [allowed])
    check_sources(recipe(allowed, tokenizer="gpt2"), [allowed])


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("http://169.254.169.254/latest/x.json", "is the address"),
        ("s3://bucket/x.parquet", "is the address"),
        ("file:///etc/x.txt", "is the address"),
        ("//host/share/x.txt", "is the address"),
        ("owner/name", "a data set of the hub"),
        ("/etc/hosts.txt", "lies elsewhere"),
        ("{top}/private.jsonl", "lies elsewhere"),
        ("{allowed}/../private.jsonl", "lies elsewhere"),
        ("{allowed}/link.jsonl", "lies elsewhere"),
        ("{allowed}/linked", "lies elsewhere"),
        ("{allowed}/linked/*.jsonl", "lies elsewhere"),
        ("{allowed}/*/../../private.jsonl", "lies elsewhere"),
        ("/**/*.jsonl", "lies elsewhere"),
        ("*.jsonl", "lies elsewhere"),
    ],
)
def test_nothing_else_is(allowed: Path, path: str, what: str) -> None:
    named = path.format(allowed=allowed, top=allowed.parent)
    with pytest.raises(UsageError, match=what) as caught:
        check_sources(recipe(allowed, train=[{"path": named}]), [allowed], "shardyard data rows RUN --step 3")
    assert "`shardyard data rows RUN --step 3` in a terminal reads what the run names" in str(caught.value)


@pytest.mark.parametrize("field", ["tokenizer", "model"])
def test_tokenizers_and_models_elsewhere_are_not_read(allowed: Path, field: str) -> None:
    other = allowed.parent / "other"
    other.mkdir()
    changes: dict[str, Any] = (
        {"tokenizer": str(other)} if field == "tokenizer" else {"model": {"pretrained": str(other)}}
    )
    with pytest.raises(UsageError, match=f"{field}.*lies elsewhere"):
        check_sources(recipe(allowed, **changes), [allowed])
    check_sources(recipe(allowed, **changes), [allowed, other])


def test_the_command_reads_a_foreign_run_only_where_it_may(
    allowed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardyard.engine.inference.step_sources.refuse_network", lambda: None)
    text = dump_recipe(recipe(allowed, train=[{"path": str(tmp_path / "private.jsonl")}]))
    foreign = RunFolder.create(tmp_path / "runs", "foreign", text, text, total_steps=30, world_size=1)
    rows = ["data", "rows", str(foreign.path), "--step", "1", "--json"]
    assert run([*rows, "--only-from", str(allowed)]) == 2
    said = capsys.readouterr()
    assert "--data-dir" in said.err
    assert said.out == ""
    assert run([*rows, "--only-from", str(tmp_path)]) == 0
    assert "private" in capsys.readouterr().out


@pytest.mark.slow
def test_a_process_that_reads_for_others_has_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"""
import socket, urllib.request
from shardyard.engine.inference.step_sources import refuse_network
refuse_network()
told = []
for reach in (
    lambda: socket.create_connection(("127.0.0.1", {port})),
    lambda: urllib.request.urlopen("http://127.0.0.1:{port}/"),
    lambda: socket.getaddrinfo("localhost", 80),
    lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", {port})),
):
    try:
        reach()
    except OSError as error:
        told.append("not used" in str(error))
import aiohttp, asyncio
async def get():
    async with aiohttp.ClientSession() as session:
        await session.get("http://127.0.0.1:{port}/", timeout=aiohttp.ClientTimeout(total=20))
try:
    asyncio.run(get())
except Exception as error:
    told.append("not used" in str(error))
print(told)
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout.strip() == "[True, True, True, True, True]", done.stdout + done.stderr
        server.settimeout(0.01)
        with pytest.raises(TimeoutError):
            server.accept()
