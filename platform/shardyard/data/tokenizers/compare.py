"""Whether a teacher, or the model that training starts from, was trained with the tokens of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shardyard.errors import ModelError

# Files of which a folder with a tokenizer has one.
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
# Up to this share of other tokens, a tokenizer is that of the model with a few tokens replaced.
_FEW = 0.01
_SAMPLE = "The Model's 1st run: x_2 = f(3.14)\n\n\tdéjà vu, naïve, 数据 😀 don't  stop"
# The padding token is no token of a text.
_SPECIAL = ("bos_token", "eos_token", "cls_token", "sep_token", "mask_token", "unk_token")


@dataclass(frozen=True)
class OtherTokens:
    """How a tokenizer differs from that of a pretrained model.

    few: whether the model still knows most of the tokens.
    """

    text: str
    few: bool


def other_tokens(pretrained: str, tokenizer: Any) -> OtherTokens | None:
    """How a tokenizer differs from that of the model that training starts from; None if it does not.

    Tokens behind those of the model, and a shorter vocabulary, are no difference: the model's tokens mean the same. A
    model without a tokenizer of its own, or whose tokenizer is not on this machine, is not compared.

    Args:
        pretrained: folder or hub id (`org/name@revision`).
    """
    theirs = _own_tokenizer(pretrained)
    if theirs is None:
        return None
    known, ours = _tokens(theirs), _tokens(tokenizer)
    shared = known.keys() & ours.keys()
    different = sorted(id for id in shared if known[id] != ours[id])
    if different:
        reserved = set(theirs.added_tokens_decoder)
        few = len(different) <= _FEW * len(shared) or set(different) <= reserved
        first = different[0]
        return OtherTokens(
            f"{len(different)} of {len(shared)} ids stand for other tokens, the first of them {first}: "
            f"{known[first]!r} for the model and {ours[first]!r} here",
            few,
        )
    named = ((name, getattr(theirs, name, None), getattr(tokenizer, name, None)) for name in _SPECIAL)
    special = [f"{name} is {a!r} for the model and {b!r} here" for name, a, b in named if a and b and a != b]
    if special:
        return OtherTokens("; ".join(special), few=True)
    parts = [one.tokenize(_SAMPLE) for one in (theirs, tokenizer)]
    if len(ours) >= len(known) and parts[0] != parts[1]:
        return OtherTokens("it has the same tokens, but divides texts into others of them", few=True)
    return None


def _own_tokenizer(name: str) -> Any:
    """The tokenizer of a folder or hub id; None if it has none, or cannot be reached."""
    folder = Path(name).expanduser()
    if folder.is_dir() and not any((folder / file).is_file() for file in _FILES):
        return None  # transformers would make an empty one of the family
    name, _, revision = (str(folder), "", "") if folder.is_dir() else name.partition("@")
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError, ImportError, LookupError, TypeError, AttributeError):
        return None


def _tokens(tokenizer: Any) -> dict[int, str]:
    return {id: token for token, id in tokenizer.get_vocab().items()}


def check_same_tokens(teacher: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Check that ids of a teacher mean the tokens that they mean for the student, as far as both have them.

    A teacher without a tokenizer of its own is taken to have the student's.

    Args:
        teacher: folder or hub id (`org/name@revision`).
        tokenizer: the student's.

    Raises:
        ModelError: an id stands for another token.
    """
    theirs = _own_tokenizer(teacher)
    if theirs is None:
        return
    tokens, ours = _tokens(theirs), _tokens(tokenizer)
    different = sorted(id for id in tokens.keys() & ours.keys() if tokens[id] != ours[id])
    if different:
        first = different[0]
        raise ModelError(
            f"distillation.teacher: {teacher} has another vocabulary than the student: {len(different)} of "
            f"{len(ours)} ids stand for other tokens, the first of them {first}: {tokens[first]!r} for the teacher and "
            f"{ours[first]!r} for the student. Use the teacher's tokenizer, or a teacher with this one."
        )
