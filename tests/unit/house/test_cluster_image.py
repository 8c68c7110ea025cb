"""The Dockerfile of cluster/image/, read and not built: versions, files, user, secrets."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
IMAGE = REPOSITORY / "cluster" / "image"
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
INSTRUCTIONS = {"FROM", "ARG", "ENV", "RUN", "USER", "COPY", "WORKDIR", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """Instruction and arguments, with lines joined that end in a backslash."""
    lines = [line for line in (IMAGE / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def arguments(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def copied() -> set[str]:
    """What comes from the repository, by its path there."""
    words = [[word for word in line.split() if not word.startswith("--")] for line in arguments("COPY")]
    return {source for line in words for source in line[:-1]}


def test_every_instruction_is_known_and_the_base_is_pinned() -> None:
    assert {name for name, _ in instructions()} == INSTRUCTIONS
    (base,) = arguments("FROM")
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-devel-ubuntu\d+\.\d+", base), base


def test_versions_are_those_of_the_project() -> None:
    versions = dict(line.split("=") for line in arguments("ARG"))
    pins = dict(entry.split("==") for entry in PROJECT["project"]["dependencies"] if "==" in entry)
    assert versions["TORCH_VERSION"] == pins["torch"]
    assert f">={versions['PYTHON_VERSION']}" == PROJECT["project"]["requires-python"]
    page = (IMAGE / "README.md").read_text()
    runs = " ".join(arguments("RUN"))
    for name, version in versions.items():
        assert f"${{{name}}}" in runs, f"{name} is not used"
        assert f"`{name}`" in page
        assert version in page or name == "TORCH_VERSION"


def test_everything_that_the_build_needs_is_copied_and_there() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    needed |= set(wheel["force-include"]) | {path.partition("/")[0] for path in wheel["packages"]}
    assert copied() == needed
    assert not [path for path in copied() if not (REPOSITORY / path).exists()]
    ignore = (IMAGE / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignore if line.startswith("!")} == needed
    (installed,) = re.findall(r"/opt/src\[([\w,]+)\]", " ".join(arguments("RUN")))
    assert set(installed.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


def test_it_runs_as_an_ordinary_user() -> None:
    """By number: Kubernetes can see then that it is not root."""
    assert arguments("USER")[-1] == "1000"
    assert "useradd --uid 1000" in " ".join(arguments("RUN"))


def test_no_secret_goes_in() -> None:
    suspicious = re.compile(r"token(?!izer)|secret|password|api_?key|credential", re.IGNORECASE)
    assert not [line for name in ("ARG", "ENV", "COPY") for line in arguments(name) if suspicious.search(line)]
    assert not re.search(r"--(no-check-certificate|insecure|trusted-host)|curl[^|]* -k ", " ".join(arguments("RUN")))
