"""Small tokenizers of the classes that models have, with their special tokens: built here, nothing is downloaded."""

from __future__ import annotations

from typing import Any

from tokenizers import pre_tokenizers
from transformers import (
    BartTokenizer,
    CLIPTokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
    WhisperTokenizer,
)

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
WHISPER = ("<|startoftranscript|>", "<|en|>", "<|es|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>")
_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def _ids(*tokens: str) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def bart() -> Any:
    return BartTokenizer(vocab=_ids(*_ROBERTA, *ALPHABET), merges=[])


def clip() -> Any:
    letters = (*ALPHABET, *(f"{letter}</w>" for letter in ALPHABET))
    return CLIPTokenizer(vocab=_ids(*letters, "<|startoftext|>", "<|endoftext|>"), merges=[])


def whisper() -> Any:
    tokenizer = WhisperTokenizer(vocab=_ids(*ALPHABET), merges=[])
    tokenizer.add_tokens(list(WHISPER), special_tokens=True)
    return tokenizer


def _pieces() -> list[tuple[str, float]]:
    special = [(token, 0.0) for token in _ROBERTA[:4]]
    return [*special, ("▁", -1.0), *((letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz")]


def mbart() -> Any:
    return MBartTokenizer(vocab=_pieces(), src_lang="en_XX", tgt_lang="es_XX")


def mbart50() -> Any:
    return MBart50Tokenizer(vocab=_pieces(), src_lang="en_XX", tgt_lang="es_XX")


def nllb() -> Any:
    letters = [token for token, _ in _pieces()]
    return NllbTokenizer(vocab=_ids(*letters), merges=[], src_lang="eng_Latn", tgt_lang="spa_Latn")
