"""setup.sh: which installer it takes, what it says, how it fails. Stand-ins for Python and uv note what is asked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
# A Python that has `venv`, and whose pip answers as the variables say; each call is a line of $CALLS.
PYTHON = """#!/bin/bash
echo "python $*" >> "$CALLS"
case "$*" in
  *"-m venv"*) mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python" ;;
  *"pip config list"*) echo "$PIP_SAYS" ;;
  *"pip --version"*) [[ -z $NO_PIP ]] ;;
  *" install "*) echo "$INSTALL_SAYS"; exit "${INSTALL_CODE:-0}" ;;
  *purelib*) mkdir -p "$CALLS.site/a.dist-info"; echo "$CALLS.site" ;;
  *'v("torch")'*) echo "$TORCH" ;;
  -V) echo "Python 3.11.9" ;;
esac
"""
UV = '#!/bin/bash\necho "uv $*" >> "$CALLS"\n'


class Machine:
    """A clone, with the stand-ins first on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("setup.sh", "pyproject.toml"):
            shutil.copy(REPOSITORY / name, folder / name)
        (folder / "bin").mkdir()
        self.program("python", PYTHON)

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def setup(
        self, extras: str = "data,dashboard", **variables: str
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """What it printed, and the installations that it asked for."""
        calls = self.folder / "calls"
        calls.write_text("")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_"))}
        environment = {
            **kept,
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "CALLS": str(calls),
            **variables,
        }
        command = ["./setup.sh", ".venv", str(self.folder / "bin" / "python"), extras]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        return done, [line for line in calls.read_text().splitlines() if " install " in line]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_torch_comes_first_by_its_version_and_each_step_is_told(machine: Machine) -> None:
    done, installed = machine.setup()
    assert done.returncode == 0, done.stderr
    torch, rest = installed
    assert re.search(r"-m pip .*install --no-compile torch==[\d.]+$", torch)
    assert rest.endswith("-e .[data,dashboard]")
    assert "with pip." in done.stdout
    assert re.search(r"torch==[\d.]+ +\d+ s\n  Shardyard with data,dashboard +\d+ s\n  bytecode +\d+ s\n", done.stdout)
    assert re.search(r"Ready after \d+ s: 1 distributions, \d+ MB\.", done.stdout)


def test_a_torch_that_is_there_is_left_alone(machine: Machine) -> None:
    version = re.search(r'"torch==([\d.]+)"', (REPOSITORY / "pyproject.toml").read_text())
    assert version is not None
    _, installed = machine.setup(TORCH=version[1])
    assert [line.split()[-1] for line in installed] == [".[data,dashboard]"]


@pytest.mark.parametrize(
    ("variables", "tool"),
    [
        ({}, "uv"),
        ({"PIP_SAYS": "global.find-links='/opt/wheels'"}, "pip"),
        ({"PIP_EXTRA_INDEX_URL": "https://example.org/simple"}, "pip"),
        ({"PIP_SAYS": "global.timeout='60'"}, "uv"),
        ({"PIP_SAYS": "global.find-links='/opt/wheels'", "UV_TORCH_BACKEND": "cpu"}, "uv"),
        ({"PIP_INDEX_URL": "https://example.org/simple", "UV_DEFAULT_INDEX": "https://example.org/simple"}, "uv"),
    ],
)
def test_uv_installs_unless_only_pip_knows_where_to_look(
    variables: dict[str, str], tool: str, machine: Machine
) -> None:
    machine.program("uv", UV)
    done, installed = machine.setup(**variables)
    assert done.returncode == 0, done.stderr
    assert [line.startswith("uv pip install --python .venv/bin/python") for line in installed] == [tool == "uv"] * 2
    assert ("which uv does not read" in done.stdout) == (tool == "pip")


def test_cuda_is_spoken_of_where_it_would_be_downloaded_for_nothing(machine: Machine) -> None:
    assert "UV_TORCH_BACKEND=cpu" in machine.setup()[0].stdout
    assert "UV_TORCH_BACKEND" not in machine.setup(PIP_FIND_LINKS="/opt/wheels")[0].stdout
    machine.program("nvidia-smi", "#!/bin/bash\n")
    assert "UV_TORCH_BACKEND" not in machine.setup()[0].stdout


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (
            (
                "WARNING: Retrying ... NewConnectionError('Failed to establish a new connection')\n"
                "ERROR: No matching distribution found for torch==2.13.0"
            ),
            (
                r"No matching distribution.*\ntorch==[\d.]+ was not installed: the package index cannot be reached\. .*"
                r"HTTPS_PROXY.*PIP_INDEX_URL"
            ),
        ),
        ("ERROR: [Errno 28] No space left on device", r"the disk is full"),
        ("ERROR: something else", r"something else\ntorch==[\d.]+ was not installed; the lines above say why"),
    ],
)
def test_a_failed_installation_says_what_to_do(output: str, says: str, machine: Machine) -> None:
    done, _ = machine.setup(INSTALL_CODE="1", INSTALL_SAYS=output)
    assert done.returncode == 1
    assert re.search(says, done.stderr), done.stderr


def test_what_is_missing_on_the_machine_is_said(machine: Machine) -> None:
    machine.program("python", "#!/bin/bash\n[[ $* != *version_info* ]] || exit 1\necho Python 3.9.2\n")
    assert "needs Python 3.11 or newer; found Python 3.9.2" in machine.setup()[0].stderr
    machine.program("python", "#!/bin/bash\n[[ $* != *ensurepip* ]]\n")
    assert "apt-get install python3-venv" in machine.setup()[0].stderr
    machine.program("python", PYTHON)
    machine.program("uv", UV)
    assert "pip is told of an index that uv does not read" in machine.setup(NO_PIP="1", PIP_NO_INDEX="1")[0].stderr


def test_extras_are_separated_by_commas_or_spaces_and_must_be_there(machine: Machine) -> None:
    assert machine.setup("data,sweep eval")[1][-1].endswith("-e .[data,sweep,eval]")
    done, installed = machine.setup("data,swep")
    assert (done.returncode, installed) == (1, [])
    assert re.search(r"no extra 'swep'; pyproject\.toml has data, .*eval, .*, ops\.", done.stderr)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(["shellcheck", REPOSITORY / "setup.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_make_hands_extras_on(tmp_path: Path) -> None:
    (tmp_path / ".shardyard-setup").touch()
    command = ["make", "-n", "setup", f"VENV={tmp_path}", "EXTRAS=sweep eval"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert f'./setup.sh {tmp_path} "' in done.stdout, done.stderr
    assert '" "data,dashboard,ops,sweep eval"' in done.stdout


def test_make_installs_more_only_for_what_needs_it() -> None:
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    needs = dict(re.findall(r"^([a-z-]+): \$\((\w+)\)", text, re.MULTILINE))
    assert {name for name, stamp in needs.items() if stamp == "STAMP"} == {
        "setup",
        "demo",
        "data",
        "schema",
        "gpu-check",
    }
    assert {"test", "test-fast", "check", "bench", "setup-all"} <= {n for n, stamp in needs.items() if stamp == "ALL"}
