"""Small specs and documents, shared by the tests of tokenizers."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from shardyard.data.tokenizers.spec import Kind, TokenizerSpec, read_spec

BERT = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
T5 = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
GPT2 = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
KINDS: dict[Kind, dict[str, Any]] = {
    "bpe": {"kind": "bpe", "special_tokens": GPT2, "vocabulary": 400},
    "wordpiece": {
        "kind": "wordpiece",
        "special_tokens": BERT,
        "template": "bert",
        "lowercase": True,
        "vocabulary": 400,
    },
    "unigram": {"kind": "unigram", "special_tokens": T5, "template": "eos", "vocabulary": 300},
}


@functools.cache
def texts() -> list[str]:
    """About 40 paragraphs of Python's language reference."""
    text = topics["objects"] + topics["compound"]
    return [paragraph.strip() for paragraph in text.split("\n\n") if len(paragraph) > 200][:40]


def write_documents(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_spec(folder: Path, name: str = "mine", **values: Any) -> Path:
    """A spec file; without `train` it learns from `texts()`."""
    if "train" not in values and values["kind"] != "bytes":
        path = write_documents(folder / "texts.jsonl", [{"text": text} for text in texts()])
        values["train"] = [{"path": str(path)}]
        values.setdefault("held_out", 0.2)
    path = folder / f"{name}.yaml"
    # JSON is YAML, and keeps the order of the keys.
    path.write_text(json.dumps({"description": "for tests", **values}))
    return path


def spec_of(folder: Path, kind: Kind, **values: Any) -> TokenizerSpec:
    return read_spec(write_spec(folder, **{**KINDS[kind], **values}))
