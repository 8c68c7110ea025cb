"""Workarounds for processors and tokenizers of transformers; tests detect obsolete ones.

Seen in transformers 5.22; `tests/unit/data/test_library_quirks.py` fails if a newer version no longer needs one of
these, or no longer has a name. Without `datasets`, which planning a model does not need.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from typing import Any

from transformers.utils import is_torchvision_available


def name_special_tokens(tokenizer: Any, names: Mapping[str, str]) -> None:
    """Give tokens names as attributes of a tokenizer (`tokenizer.image_token`), which are saved with it.

    transformers has no public function for that after the tokenizer's construction.
    """
    if names:
        tokenizer._set_model_specific_special_tokens(special_tokens=dict(names))


def import_without_torchvision(name: str) -> Any:
    """A processor's module of transformers, where torchvision may be missing.

    Some import a helper from their image processor for torchvision, although the one for Pillow has the helper too.
    """
    folder, _, module = name.rpartition(".")
    family = module.removeprefix("processing_")
    fast, slow = f"{folder}.image_processing_{family}", f"{folder}.image_processing_pil_{family}"
    if is_torchvision_available() or fast in sys.modules or importlib.util.find_spec(slow) is None:
        return importlib.import_module(name)
    sys.modules[fast] = importlib.import_module(slow)
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[fast]
