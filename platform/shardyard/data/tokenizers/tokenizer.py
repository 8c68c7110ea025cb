"""Tokenizers: the shipped specs, folders and hub ids, all as fast tokenizers of `transformers`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shardyard.data.tokenizers.build import bytes_tokenizer
from shardyard.data.tokenizers.folder import REPORT, Report, trained_folder, verify_folder
from shardyard.data.tokenizers.spec import TokenizerSpec, read_spec
from shardyard.errors import DataError
from shardyard.recipe.catalog.shipped import find_tokenizer_spec


def load_tokenizer(name: str, added_tokens: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """The tokenizer called `name`: a shipped spec, a spec file (.yaml), a tokenizer folder or a hub id.

    `added_tokens` are special tokens that it gets in addition, unless it has them; their ids follow its own.

    A spec that is trained from data refers to the folder with its name beside it, whose files must be unchanged since
    training.

    Raises:
        DataError: the tokenizer does not exist, its spec is invalid, it is not trained yet or was changed since, or it
            has no fast implementation.
    """
    spec = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else find_tokenizer_spec(name)
    tokenizer = _from_spec(spec, name) if spec is not None else _from_folder_or_hub(name)
    if added_tokens:
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added_tokens], special_tokens=True)
    return tokenizer


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Number of token ids up to the largest one, including special and added ones: the minimum number of embeddings.

    A vocabulary may leave out ids; then it has fewer tokens than this.
    """
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


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
    # A document that quotes "<|endoftext|>" must not end there.
    backend.encode_special_tokens = True
    return backend


def _from_spec(path: Path, name: str) -> PreTrainedTokenizerFast:
    spec = read_spec(path)
    if not spec.is_trained:
        return bytes_tokenizer(spec)
    folder = trained_folder(path)
    if not folder.is_dir():
        raise DataError(
            f"tokenizer {name} has a spec but is not trained yet; train it: `shardyard tokenizer train {name}`."
        )
    _check_spec(spec, verify_folder(folder), path, name)
    return _from_transformers(str(folder))


def _check_spec(spec: TokenizerSpec, report: Report, path: Path, name: str) -> None:
    """Check that the spec was not edited after training: it would no longer describe the tokenizer."""
    now, then = spec.definition(), report.get("spec", {})
    # Compared as text, because the order of the special tokens determines their ids.
    changed = sorted(key for key in now.keys() | then.keys() if json.dumps(now.get(key)) != json.dumps(then.get(key)))
    if changed:
        raise DataError(
            f"tokenizer spec {path} was changed after the training ({', '.join(changed)}); undo that, or train it "
            f"again: `shardyard tokenizer train {name} --replace`."
        )


def _from_folder_or_hub(name: str) -> PreTrainedTokenizerFast:
    folder = Path(name).expanduser()
    if (folder / REPORT).is_file() and (folder / "tokenizer.json").is_file():
        verify_folder(folder)
    return _from_transformers(name)


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
