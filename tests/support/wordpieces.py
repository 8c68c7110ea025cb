"""A WordPiece tokenizer of a few entries, the same on every machine, and texts for it."""

from __future__ import annotations

import random
import string
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from support.tiny import WORDS

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
LETTERS = string.ascii_lowercase


def tiny_wordpiece() -> PreTrainedTokenizerFast:
    """Whole words of the tiny corpus but a few, which are spelled in pieces: `weight` is we ##ight."""
    words = [word for word in WORDS if word not in ("weight", "token")]
    pieces = [*SPECIAL.values(), *LETTERS, *(f"##{letter}" for letter in LETTERS), *".,!?", "we", "##ight", *words]
    backend = Tokenizer(WordPiece({piece: n for n, piece in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
    backend.normalizer = BertNormalizer(lowercase=True)
    backend.pre_tokenizer = BertPreTokenizer()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, n) for n, token in enumerate(SPECIAL.values()) if token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def save_tokenizer(folder: Path) -> Path:
    """The tokenizer as a folder that a recipe can name."""
    target = folder / "tokenizer"
    tiny_wordpiece().save_pretrained(target)
    return target


def sentences(generator: random.Random, most: int = 8) -> str:
    """One to `most` sentences of known words."""
    made = [generator.choices(WORDS, k=generator.randint(2, 9)) for _ in range(generator.randint(1, most))]
    return " ".join(" ".join(words).capitalize() + "." for words in made)
