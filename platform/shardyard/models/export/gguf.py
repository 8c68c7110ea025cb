"""GGUF, the format of llama.cpp, written by llama.cpp's own converter where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from shardyard.errors import ModelError, UsageError
from shardyard.redaction import scrub

CONVERTER = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"
# Field of tokenizer_config.json with the token that export made a tokenizer begin with (data/exported.py).
STARTS_WITH = "documents_start_with"
TYPES = ("auto", "f32", "f16", "bf16", "q8_0")


def find_converter(environment: Mapping[str, str] = os.environ) -> Path:
    """llama.cpp's converter: the file or checkout that LLAMA_CPP names, else the one on PATH.

    Raises:
        UsageError: it is not installed.
    """
    named = environment.get(VARIABLE)
    if named:
        given = Path(named).expanduser()
        found = given / CONVERTER if given.is_dir() else given
        if not found.is_file():
            raise UsageError(f"{VARIABLE} is {named}, where {CONVERTER} is not; name a checkout of llama.cpp.")
        return found
    on_path = shutil.which(CONVERTER, path=environment.get("PATH")) or _unmarked(environment.get("PATH", ""))
    if on_path is None:
        raise UsageError(
            f"GGUF needs llama.cpp's {CONVERTER}, which is not on PATH. Clone https://github.com/ggml-org/llama.cpp, "
            f"`pip install gguf sentencepiece`, and set {VARIABLE} to the clone."
        )
    return Path(on_path)


def convert(model: Path, destination: Path, kind: str, *, converter: Path) -> Path:
    """Convert an exported model to one GGUF file.

    Args:
        model: folder that `from_pretrained` loads.
        destination: the file to write.
        kind: one of TYPES, the type of most weights.
        converter: llama.cpp's script.

    Raises:
        ModelError: the converter fails, for example because llama.cpp does not have the architecture.
    """
    with tempfile.TemporaryDirectory(prefix="shardyard-") as scratch:
        plain = _as_published(model, Path(scratch) / model.name)
        command = [sys.executable, str(converter), str(plain), "--outfile", str(destination), "--outtype", kind]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0 or not destination.is_file():
        destination.unlink(missing_ok=True)
        lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
        said = scrub(lines[-1]).rstrip(".") if lines else f"it ended with {done.returncode}"
        raise ModelError(
            f"{converter.name} could not convert {model}: {said}. llama.cpp may not have this architecture or "
            "tokenizer; the folder itself is complete."
        )
    return destination


def _as_published(model: Path, folder: Path) -> Path:
    """The model with links to its files, and its tokenizer without the start token that export added.

    The converter recognises a tokenizer by what it makes of a text, start token included. llama.cpp itself adds the
    token where the configuration says so.
    """
    folder.mkdir()
    for path in model.iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path.resolve())
    settings = _json(model / "tokenizer_config.json")
    start = settings.pop(STARTS_WITH, None)
    if start is None:
        return folder
    stored = _json(model / "tokenizer.json")
    processor = stored["post_processor"]
    assert isinstance(processor, dict), "written by the export"
    *kept, _ = processor["processors"]
    stored["post_processor"] = {"type": "Sequence", "processors": kept} if kept else None
    _replace(folder / "tokenizer.json", stored)
    _replace(folder / "tokenizer_config.json", {**settings, "add_bos_token": start == settings.get("bos_token")})
    return folder


def _json(path: Path) -> dict[str, object]:
    try:
        found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _replace(link: Path, value: Mapping[str, object]) -> None:
    link.unlink(missing_ok=True)
    link.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _unmarked(path: str) -> str | None:
    """The script in a folder of PATH that is not marked as executable, as in a clone."""
    for folder in filter(None, path.split(os.pathsep)):
        candidate = Path(folder) / CONVERTER
        if candidate.is_file():
            return str(candidate)
    return None
