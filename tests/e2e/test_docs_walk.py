"""A stranger's walk: clone, then page by page the commands that tests/support/docs/table.py lets run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shardyard.cli.main import run
from support.docs.pages import REPOSITORY, Command, blocks, commands
from support.docs.table import BEGINNING, WALKED, fate

pytestmark = pytest.mark.slow
ALL = commands()
STEPS = [command for command in ALL if fate(command) == "walked"]
LIMIT_SECONDS = 240


@dataclass
class Stranger:
    """A person with a home, a clone and a folder of runs, who opens a fresh folder for each page."""

    root: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def clone(self) -> Path:
        return self.root / "shardyard"

    def begin(self, patch: pytest.MonkeyPatch) -> None:
        """What the README says first, up to the environment: this one stands for what `make demo` would build."""
        patch.setenv("SHARDYARD_CACHE", os.environ.get("SHARDYARD_CACHE", str(Path("~/.cache/shardyard").expanduser())))
        patch.setenv("HOME", str(self.root / "home"))
        patch.setenv("SHARDYARD_RUNS", str(self.root / "runs"))
        patch.setenv("COLUMNS", "100")
        (self.root / "home").mkdir()
        # The clone is made from a folder that may belong to somebody else.
        (self.root / "home" / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
        lines = [command.text for command in ALL if command.words[0] in BEGINNING]
        assert [line.split()[0] for line in lines] == list(BEGINNING)
        lines[0] = lines[0].replace("<this repository>", shlex.quote(str(REPOSITORY)))
        lines.insert(2, f"ln -s {shlex.quote(sys.prefix)} .venv")
        self.shell([*lines, "shardyard --version"], self.root)

    def shell(self, lines: list[str], folder: Path) -> str:
        """The lines in one shell, which ends at the first that fails."""
        done = subprocess.run(
            ["bash", "-ec", "\n".join(lines)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{lines}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def folder(self, page: str) -> Path:
        """Where the commands of a page are typed; the files that its blocks name in their first line are there."""
        path = self.root / "pages" / page.replace("/", "-")
        if not path.exists():
            path.mkdir(parents=True)
            for block in blocks():
                name = re.match(r"# (\w+\.yaml)\n", block.text)
                if block.page == page and name:
                    (path / name[1]).write_text(block.text, encoding="utf-8")
        return path

    def type(self, command: Command) -> int:
        """Carry a command out as the table says; a launch in a process of its own, the others in this one."""
        walk = WALKED[command.page, command.text]
        words = [dict(walk.swap).get(word, word) for word in command.words] + list(walk.more)
        folder, began = self.folder(command.page), time.monotonic()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for name, value in re.findall(r"(?:^|(?<=\s))([A-Z_]+)=(\S+)", command.text):
                patch.setenv(name, str(Path(value).expanduser()))
            if "launch" in words:
                self.shell([f"source {self.clone}/.venv/bin/activate", shlex.join(words)], folder)
                code = 0
            else:
                code = run(words[1:])
        self.seconds[str(command)] = time.monotonic() - began
        return code


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stranger]:
    person = Stranger(tmp_path_factory.mktemp("walk"))
    with pytest.MonkeyPatch.context() as patch:
        person.begin(patch)
        yield person
    slowest = sorted(person.seconds.items(), key=lambda item: -item[1])[:8]
    sys.stderr.write(f"\nwalked {len(person.seconds)} of {len(ALL)} commands; the slowest:\n")
    sys.stderr.writelines(f"{seconds:6.1f} s  {command}\n" for command, seconds in slowest)


def test_the_walk_has_somewhere_to_go() -> None:
    assert len(STEPS) >= 30
    assert next(command.page for command in STEPS) == "README.md"


@pytest.mark.parametrize("command", STEPS, ids=str)
def test_a_command_works_as_the_page_shows_it(
    command: Command, stranger: Stranger, capfd: pytest.CaptureFixture[str]
) -> None:
    code = stranger.type(command)
    out, err = capfd.readouterr()
    assert code == (2 if command.fails else 0), f"{command}\n{out}\n{err}"


@pytest.mark.filterwarnings("ignore")
def test_the_parser_of_ray_takes_what_the_pages_tell_it() -> None:
    from ray.scripts.scripts import cli

    told = [command.words[1:] for command in ALL if command.words[0] == "ray"]
    assert len(told) >= 5
    for name, *arguments in told:
        cli.commands[name].make_context(name, [word for word in arguments if word != "&"])
