"""GGUF by llama.cpp's converter: how it is found and called, and what is said if it fails or is not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from shardyard.data.exported import exported_tokenizer
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.errors import ModelError, UsageError
from shardyard.models.export.gguf import CONVERTER, convert, find_converter

# A stand-in that takes the arguments that llama.cpp's script documents.
SCRIPT = """import argparse, sys
parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--outfile", required=True)
parser.add_argument("--outtype", choices=["f32", "f16", "bf16", "q8_0", "auto"])
given = parser.parse_args()
if "refused" in given.model:
    print("loading")
    raise NotImplementedError("Architecture 'Gpt9' not supported!")
open(given.outfile, "w").write(f"{given.model} {given.outtype}")
"""


@pytest.fixture
def converter(tmp_path: Path) -> Path:
    path = tmp_path / "llama.cpp" / CONVERTER
    path.parent.mkdir()
    path.write_text(SCRIPT)
    return path


def test_the_converter_is_found_where_people_have_it(tmp_path: Path, converter: Path) -> None:
    clone = str(converter.parent)
    assert find_converter({"LLAMA_CPP": clone}) == converter
    assert find_converter({"LLAMA_CPP": str(converter)}) == converter
    path = os.pathsep.join((str(tmp_path), clone))
    assert find_converter({"PATH": path}) == converter, "a clone on PATH, whose script need not be executable"
    converter.chmod(0o755)
    assert find_converter({"PATH": path}) == converter


def test_what_to_install_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not on PATH\. Clone https://github.com/ggml-org/llama.cpp.*LLAMA_CPP"):
        find_converter({"PATH": str(tmp_path)})
    with pytest.raises(UsageError, match=r"LLAMA_CPP is .*, where convert_hf_to_gguf\.py is not"):
        find_converter({"LLAMA_CPP": str(tmp_path)})


def test_the_converter_gets_the_folder_the_file_and_the_type(tmp_path: Path, converter: Path) -> None:
    (tmp_path / "final").mkdir()
    made = convert(tmp_path / "final", tmp_path / "out.gguf", "f16", converter=converter)
    named, kind = made.read_text().split(" ")
    assert (Path(named).name, kind) == ("final", "f16")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["causal_lm", "instruction"])
def test_the_converter_sees_the_tokenizer_as_it_was_published(tmp_path: Path, converter: Path, objective: str) -> None:
    """It knows a tokenizer by what it makes of a text; a start token that export added would hide it."""
    ours = load_tokenizer("bytes")
    exported_tokenizer(ours, objective).save_pretrained(tmp_path / "final")
    (tmp_path / "final" / "model.safetensors").write_bytes(b"weights")
    reads = "import sys, os, transformers\nfolder = sys.argv[1]\n"
    reads += "ids = transformers.AutoTokenizer.from_pretrained(folder)('ab')['input_ids']\n"
    reads += "weights = open(os.path.join(folder, 'model.safetensors')).read()\n"
    reads += "open(sys.argv[3], 'w').write(f'{ids} {weights}')\n"
    converter.write_text(reads)
    made = convert(tmp_path / "final", tmp_path / "out.gguf", "f16", converter=converter)
    assert made.read_text() == f"{ours('ab')['input_ids']} weights"
    assert json.loads((tmp_path / "final" / "tokenizer.json").read_text()), "the model itself stays as it was"


def test_a_failure_is_told_in_the_converters_words_and_leaves_nothing(tmp_path: Path, converter: Path) -> None:
    (tmp_path / "refused").mkdir()
    with pytest.raises(ModelError, match=r"could not convert .*refused: NotImplementedError: Architecture 'Gpt9' not"):
        convert(tmp_path / "refused", tmp_path / "out.gguf", "f16", converter=converter)
    assert not (tmp_path / "out.gguf").exists()
