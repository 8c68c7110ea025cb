"""Saving the tokenizer of an exported model so that `AutoTokenizer` loads this tokenizer and no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer beside the `config.json` of its model.

    For some model types (qwen2, phi3, jamba, …) transformers 5 distrusts the class that a folder names, takes the
    family's own class instead, and that class replaces the normalizer and the pre-tokenizer: other tokens, in silence.
    It trusts a folder that names a tokenizer of its own; an empty name changes nothing else.
    """
    tokenizer.save_pretrained(folder)
    if (folder / "config.json").is_file() and not _loads(tokenizer, folder):
        path = folder / "tokenizer_config.json"
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["auto_map"] = {"AutoTokenizer": []}
        path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _loads(tokenizer: Any, folder: Path) -> bool:
    """Whether `AutoTokenizer` reads the folder as this tokenizer."""
    try:
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, ImportError, LookupError, TypeError, AttributeError):
        return False  # the class of the family wants files or libraries of its own
    backend = getattr(found, "backend_tokenizer", None)
    return backend is not None and backend.to_str() == tokenizer.backend_tokenizer.to_str()
