"""Copies of checkpoints in object stores: whole or not there, by the same policy as here, and read back from there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import typer

from shardyard.cli.main import app
from shardyard.engine.checkpoint import blocks, files
from shardyard.engine.checkpoint.remote.contents import rows_of, stored_in
from shardyard.engine.checkpoint.remote.copying import mirrored
from shardyard.engine.checkpoint.remote.fetching import fetched
from shardyard.engine.checkpoint.remote.mirror import Mirror, TakenOverMirrorError
from shardyard.engine.checkpoint.remote.store import Store
from shardyard.errors import CheckpointError, UsageError
from shardyard.recipe.schema import Checkpoint
from shardyard.tracking.run.events import CheckpointMirrored, MirrorFailed, read_events
from shardyard.tracking.run.folder import RunFolder
from support.reliability.mirrors import copied, run_with_checkpoints, whole, write
from support.servers.s3 import BUCKET, s3_server


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
    return run_with_checkpoints(tmp_path / "here")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"file://{tmp_path}/there/copy", sleep=lambda _: None)


def test_the_newest_ones_are_copied_and_older_ones_removed(run: RunFolder, store: Store) -> None:
    told: list[CheckpointMirrored] = []
    mirror = copied(run, store, report=told.append)
    assert whole(store) == [20, 30]
    assert [one.step for one in told] == [30, 20], "the newest one comes first"
    assert not mirror.is_behind
    write(run.checkpoints, 40)
    assert mirror.is_behind
    mirror.sync()
    assert whole(store) == [30, 40]
    assert store.read("metrics.jsonl") == run.metrics.read_bytes()
    assert "lease.json" not in store.sizes()


def test_a_mark_of_a_checkpoint_is_copied_without_its_files(run: RunFolder, store: Store) -> None:
    mirror = copied(run, store)
    put: list[str] = []
    plain = store.put
    store.put = lambda name, content: (put.append(name), plain(name, content))[1]  # type: ignore[method-assign, func-returns-value]
    files.mark(files.committed_folder(run.checkpoints, 30), good=False, why="it exploded")
    mirror.sync()
    assert [name for name in put if name.startswith("checkpoints/")] == ["checkpoints/step-00000030/manifest.json"]
    assert [row.state for row in rows_of(stored_in(store))] == ["good", "spoiled"]


def test_the_last_good_one_is_never_removed(run: RunFolder, store: Store) -> None:
    mirror = copied(run, store, keep=1)
    for step in (40, 50):
        files.mark(write(run.checkpoints, step), good=False, why="it exploded")
        mirror.sync()
    assert [(row.step, row.state) for row in rows_of(stored_in(store))] == [(30, "good"), (50, "spoiled")]


def test_a_kill_at_any_request_leaves_checkpoints_whole_or_absent(run: RunFolder, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    for last in range(200):
        store = Store(f"file://{tmp_path}/killed-{last}", sleep=lambda _: None)
        other = Store(store.url)
        count = 0
        system = store._system

        class Counting:
            def __init__(self, limit: int, inner: Any) -> None:
                self._limit, self._inner = limit, inner

            def __getattr__(self, name: str) -> Any:
                nonlocal count
                count += 1
                if count > self._limit:
                    raise Killed
                return getattr(self._inner, name)

        store._system = Counting(last, system)
        try:
            copied(run, store)
        except Killed:
            assert set(whole(other)) <= {20, 30}
            copied(run, other)
            assert whole(other) == [20, 30]
            names = set(other.sizes())
            assert last <= 6 or not [name for name in names if "write-test" in name]
            continue
        break
    else:
        pytest.fail("it never ends")
    assert last > 30, "requests were counted"


def test_a_checkpoint_that_is_removed_while_it_is_copied_is_passed_over(run: RunFolder, store: Store) -> None:
    mirror = Mirror(run, store, 2)
    mirror.claim()
    plain = store.put

    def put(name: str, content: Path | bytes) -> None:
        if name.startswith("checkpoints/step-00000030/rank-00001"):
            files.drop(files.committed_folder(run.checkpoints, 30))
        plain(name, content)

    store.put = put  # type: ignore[method-assign]
    mirror.sync()
    assert whole(store) == [10, 20]
    assert not [name for name in store.sizes() if "00000030" in name]


def test_two_machines_do_not_write_one_copy(run: RunFolder, store: Store) -> None:
    mirror = copied(run, store)
    copied(run, Store(store.url))
    write(run.checkpoints, 40)
    with pytest.raises(TakenOverMirrorError, match=r"another process keeps .*: stop one of them"):
        mirror.sync()
    assert 40 not in whole(store)


def test_another_run_of_the_id_is_not_overwritten(run: RunFolder, store: Store) -> None:
    store.put("run.json", json.dumps({"id": run.id, "created": "then"}).encode())
    with pytest.raises(CheckpointError, match=r"holds another run of this id, of then; set checkpoint.mirror"):
        Mirror(run, store, 2).claim()


def test_what_step_sets_aside_is_not_resumed_from_the_copy(run: RunFolder, store: Store, tmp_path: Path) -> None:
    copied(run, store, keep=3)
    files.rewind(run.checkpoints, 20)
    copied(run, store, keep=3)
    assert [(row.step, row.state) for row in rows_of(stored_in(store))] == [
        (10, "good"),
        (20, "good"),
        (30, "spoiled"),
    ]
    there = fetched(store.url, tmp_path / "elsewhere", report=lambda _: None)
    assert [path.name for path in files.committed_checkpoints(there.checkpoints)] == ["step-00000020"]


def test_a_run_is_fetched_with_its_newest_whole_checkpoint(run: RunFolder, store: Store, tmp_path: Path) -> None:
    copied(run, store)
    store.put("checkpoints/step-00000030/rank-00000.safetensors", bytes(250))
    told: list[str] = []
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    there = fetched(store.url, elsewhere, report=told.append)
    assert there.path == elsewhere / run.id
    assert there.info().created == run.info().created
    assert there.metrics.read_bytes() == run.metrics.read_bytes()
    assert [path.name for path in files.committed_checkpoints(there.checkpoints)] == ["step-00000020"]
    assert "step-00000030 is passed over: rank-00000.safetensors differ from the manifest" in told[2]
    # What is here already stays, and nothing is fetched again.
    there.metrics.write_text("mine")
    told.clear()
    copied(run, store)
    assert fetched(store.url, elsewhere, report=told.append).metrics.read_text() == "mine"


def test_names_that_leave_the_folder_are_not_fetched(run: RunFolder, store: Store, tmp_path: Path) -> None:
    copied(run, store)
    info = json.loads(store.read("run.json"))
    store.put("run.json", json.dumps(info | {"id": "../outside"}).encode())
    with pytest.raises(UsageError, match="no name of a folder"):
        fetched(store.url, tmp_path / "elsewhere", report=lambda _: None)
    with pytest.raises(UsageError, match=r"holds no run: it has no run.json"):
        fetched(f"{store.url}/nothing", tmp_path / "elsewhere", report=lambda _: None)


def call(*words: str) -> None:
    typer.main.get_command(app).main(args=["checkpoint", *words], standalone_mode=False)


def test_commands_read_the_copy(run: RunFolder, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    copied(run, store)
    call("ls", store.url, "-q")
    assert capsys.readouterr().out.split() == ["step-00000020", "step-00000030"]
    call("verify", store.url)
    assert capsys.readouterr().out.splitlines() == ["step-00000020\twhole", "step-00000030\twhole"]
    store.put("checkpoints/step-00000030/rank-00001.safetensors", bytes(150) + b"1" + bytes(99))
    with pytest.raises(CheckpointError, match=rf"step-00000030: damaged.*checkpoint rm {store.url} STEP"):
        call("verify", store.url)
    assert "rank-00001.safetensors differs in bytes 100 to 199" in capsys.readouterr().out
    call("rm", store.url, "30", "--yes")
    assert whole(store) == [20]
    with pytest.raises(UsageError, match="the last good checkpoint"):
        call("rm", store.url, "20", "--yes")


def test_a_store_that_refuses_costs_events_and_not_the_run(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked again, and the end of the run says how to go on."""
    monkeypatch.setattr(Store, "_call", refuse_checkpoints(Store._call))
    with mirrored(Checkpoint(mirror=f"file://{tmp_path}/there"), run):
        pass
    (failed,) = [one for one in read_events(run.events) if isinstance(one, MirrorFailed) and one.then == "end"]
    assert "it is full ([Errno 28] No space left" in failed.error
    assert f"`shardyard checkpoint mirror {run.path}` goes on with it" in failed.error


def refuse_checkpoints(plain: Any) -> Any:
    def call(store: Store, what: str, request: Any) -> Any:
        if what == "written" and any(one.name.startswith("owner") for one in Path(store._root).glob("*")):
            raise store._worded(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), what)
        return plain(store, what, request)

    return call


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError("Access Denied"), "access is denied (Access Denied); whoever drives the run must be allowed"),
        (FileNotFoundError("The specified bucket does not exist"), "there is no such bucket"),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"), "set AWS_ACCESS_KEY_ID and"),
        (OSError(errno.EIO, "QuotaExceeded"), "it is full ([Errno 5] QuotaExceeded); free space, or raise its quota"),
    ],
)
def test_what_a_store_lacks_is_told_at_once(error: Exception, told: str) -> None:
    pytest.importorskip("s3fs")
    store = Store("s3://bucket/copies", sleep=lambda _: pytest.fail("another attempt would end the same"))

    class Refusing:
        def __getattr__(self, name: str) -> Any:
            raise error

    store._system = Refusing()
    with pytest.raises(CheckpointError) as caught:
        store.check_writable()
    assert told in str(caught.value)
    assert str(caught.value).startswith("s3://bucket/copies cannot be written")


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Install adlfs to access Azure")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(
        CheckpointError, match=r"az://box/runs needs adlfs, which is not installed .*`pip install adlfs`"
    ):
        Store("az://box/runs")


# S3


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    with s3_server() as server:
        yield server


@pytest.mark.slow
def test_a_store_that_refuses_every_fifth_request(s3: Any, run: RunFolder, tmp_path: Path) -> None:
    s3.share, s3.refused = 0.2, 0
    try:
        store = Store(f"s3://{BUCKET}/faults/{run.id}")
        copied(run, store)
        assert whole(store) == [20, 30]
        there = fetched(store.url, tmp_path / "elsewhere", report=lambda _: None)
    finally:
        s3.share = 0.0
    assert s3.refused > 5
    path = there.checkpoints / "step-00000030"
    assert files.damaged_files(path, files.read_manifest(path)) == []


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_told(s3: Any) -> None:
    with pytest.raises(CheckpointError, match=r"s3://nowhere/runs cannot be written: there is no such bucket"):
        Store("s3://nowhere/runs").check_writable()


@pytest.mark.slow
def test_a_kill_during_an_upload(s3: Any, run: RunFolder) -> None:
    """The copy is whole after the next start, and nothing of the first attempt is left."""
    url = f"s3://{BUCKET}/killed/{run.id}"
    program = (
        "import os, signal, sys\n"
        "from shardyard.engine.checkpoint.remote.mirror import Mirror\n"
        "from shardyard.engine.checkpoint.remote.store import Store\n"
        "from shardyard.tracking.run.folder import RunFolder\n"
        "put = Store.put\n"
        "def killed(store, name, content):\n"
        "    put(store, name, content)\n"
        "    if name.endswith('rank-00001.safetensors'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "Store.put = killed\n"
        "mirror = Mirror(RunFolder(sys.argv[1]), Store(sys.argv[2]), 2)\n"
        "mirror.claim(); mirror.sync()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(run.path), url], check=False)
    assert ended.returncode == -9
    store = Store(url)
    assert "checkpoints/step-00000030/rank-00001.safetensors" in store.sizes()
    assert whole(store) == []
    shutil.rmtree(files.committed_folder(run.checkpoints, 30))
    copied(run, store)
    assert whole(store) == [10, 20]
    assert not [name for name in store.sizes() if "00000030" in name]
