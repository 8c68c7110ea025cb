"""Tokenizers: the shipped specs, folders and hub ids, all as fast tokenizers of `transformers`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shardyard.errors import DataError
from shardyard.recipe.catalog import find_tokenizer_spec

SpecialName = Literal["bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token"]


class TokenizerSpec(BaseModel):
    """What a YAML file in tokenizers/ says."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    kind: Literal["bytes"] = Field(description="How text becomes tokens; `bytes`: one token for each byte of UTF-8.")
    description: str = Field(description="What the tokenizer is good for, in a sentence.")
    special_tokens: dict[SpecialName, str] = Field(
        description="Text of each special token; their ids follow the bytes in the order of this list."
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer called `name`: a shipped spec, a spec file (.yaml), a tokenizer folder or a hub id.

    Raises:
        DataError: there is no such tokenizer, its spec is invalid, or it has no fast implementation.
    """
    if name.endswith((".yaml", ".yml")):
        return _from_spec(Path(name).expanduser())
    spec = find_tokenizer_spec(name)
    return _from_spec(spec) if spec is not None else _from_transformers(name)


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Number of token ids, special and added ones included: the least number of embeddings."""
    return len(tokenizer)


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 (hex) of the serialised tokenizer and its special tokens: equal means equal token ids."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    serialised = plain_backend(tokenizer).to_str() + json.dumps(special, sort_keys=True)
    return hashlib.sha256(serialised.encode()).hexdigest()


def plain_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the inner tokenizer that neither cuts nor pads, and reads special tokens in a text as text."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    # A document that quotes "<|endoftext|>" must not be able to end itself.
    backend.encode_special_tokens = True
    return backend


def _from_spec(path: Path) -> PreTrainedTokenizerFast:
    spec = _read_spec(path)
    backend = _byte_level()
    for text in dict.fromkeys(spec.special_tokens.values()):
        backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **spec.special_tokens)


def _read_spec(path: Path) -> TokenizerSpec:
    try:
        return TokenizerSpec.model_validate(YAML(typ="safe").load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"tokenizer spec {path} cannot be read: {error.strerror}; check the path.") from error
    except YAMLError as error:
        raise DataError(f"tokenizer spec {path} is not valid YAML: {str(error).splitlines()[0]}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        raise DataError(
            f"tokenizer spec {path}: {where}: {first['msg']}; tokenizers/bytes.yaml is a complete example."
        ) from error


def _byte_level() -> Tokenizer:
    """Byte-level BPE without merges: the id of a byte is its value."""
    backend = Tokenizer(models.BPE(vocab={char: byte for byte, char in enumerate(_byte_characters())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_characters() -> list[str]:
    """The printable character by which the ByteLevel pre-tokenizer stands for each byte, in the order of bytes.

    GPT-2's table: a printable Latin-1 byte stands for itself, the others are numbered from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _from_transformers(name: str) -> PreTrainedTokenizerFast:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"tokenizer {name!r} is neither a shipped spec, nor a folder, nor a hub id that can be loaded here: "
            f"{reason} Use `bytes`, which needs no download, or the path of a folder with tokenizer.json."
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise DataError(f"tokenizer {name!r} has no fast implementation (tokenizer.json); choose one that has.")
    return tokenizer
