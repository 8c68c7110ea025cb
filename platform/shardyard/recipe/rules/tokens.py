"""Rules for files of token ids: what they can be used for, and what can be told from their headers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from shardyard.errors import DataError
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.fields import Path
from shardyard.recipe.rules.model import shipped_vocabulary
from shardyard.recipe.schema import Recipe, Source
from shardyard.recipe.sources.files import file_kind
from shardyard.recipe.sources.recognise import recognise
from shardyard.recipe.sources.tokens import first_ids, set_vocabulary, token_file

Finding = tuple[Path, str]
_FILES = 16


def token_rules(recipe: Recipe) -> Iterator[Finding]:
    """All findings about sources of token ids."""
    spec = objective_spec(recipe.objective)
    reads = spec.rows in ("packed", "masked") and set(spec.columns) == {"text"}
    if recipe.data.tokenized == "always" and not reads:
        yield ("data", "tokenized"), f"is for rows of plain documents, and {spec.name} has others; remove it"
    if recipe.data.tokenized == "always" and spec.rows == "masked" and recipe.masking.whole_word:
        yield ("data", "tokenized"), "tokens have no words, which masking.whole_word needs; set one of them otherwise"
    for name in ("train", "validation"):
        for index, source in enumerate(getattr(recipe.data, name)):
            for key, message in _source(recipe, source, training=name == "train", reads=reads):
                yield ("data", name, index, key), message


def _source(recipe: Recipe, source: Source, *, training: bool, reads: bool) -> Iterator[tuple[str, str]]:
    root, files = _token_files(source, training=training)
    if not files:
        if source.token_type is not None and (source.path is None or "://" not in source.path):
            yield "token_type", "is for files of token ids (.npy, .bin, .ds), and this is another source; remove it"
        return
    if not reads:
        yield (
            "path",
            (
                f"holds token ids, and {recipe.objective} makes its rows from the data itself; give the text it was "
                "made from, or use causal_lm, distillation or masked_lm"
            ),
        )
        return
    if objective_spec(recipe.objective).rows == "masked" and recipe.masking.whole_word:
        yield "path", "holds token ids, which have no words, and masking.whole_word needs them; set it to false"
    for key in ("columns", "documents"):
        if getattr(source, key):
            yield key, "is for texts, and the data is token ids already; remove it"
    if source.text_column != Source.model_fields["text_column"].default:
        yield "text_column", "is for texts, and the data is token ids already; remove it"
    if source.filters:
        yield "filters", "look at texts, and the data is token ids already; give this source `filters: []`"
    try:
        yield from _of_set(recipe, root) if root is not None else _of_files(recipe, source, files)
    except DataError as error:
        yield "path", str(error).rstrip(".")


def _token_files(source: Source, *, training: bool) -> tuple[str | None, tuple[str, ...]]:
    """The folder of a set of Shardyard, and files of token ids; nothing if the source is another one."""
    if source.path is None or "://" in source.path or file_kind(source.path) not in (None, "tokens"):
        return None, ()
    try:
        found = recognise(source.path, source.split or ("train" if training or source.holdout else "validation"))
    except (DataError, OSError, ValueError):
        return None, ()
    if found is None or found.kind != "tokens":
        return None, ()
    return (found.root if found.layout == "tokenised" else None), found.files


def _of_set(recipe: Recipe, folder: str) -> Iterator[tuple[str, str]]:
    tokenizer, _, largest = set_vocabulary(folder)
    if recipe.tokenizer != tokenizer and "/" not in recipe.tokenizer + tokenizer:
        yield (
            "path",
            f"was tokenised with {tokenizer}, and the recipe's tokenizer is {recipe.tokenizer}; use one of them",
        )
    elif (size := _vocabulary(recipe)) is not None and largest >= size:
        yield (
            "path",
            f"holds the token id {largest}, and the model has {size} tokens; set the tokenizer that it was made with",
        )


def _of_files(recipe: Recipe, source: Source, files: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    size = _vocabulary(recipe)
    for path in itertools.islice(files, _FILES):
        file = token_file(path, source.token_type)
        kind = file.token_type or source.token_type
        if size is None or kind is None:
            continue
        ids = first_ids(file, kind)
        if ids and max(ids) >= size:
            yield (
                "path",
                (
                    f"{path} holds the token id {max(ids)}, and the model has {size} tokens; set the tokenizer with "
                    "which it was made, or token_type"
                ),
            )
            return


def _vocabulary(recipe: Recipe) -> int | None:
    size = recipe.model.config.get("vocab_size")
    if type(size) is int:
        return size
    shipped = shipped_vocabulary(recipe.tokenizer)
    return None if shipped is None else shipped + len(set(recipe.added_tokens))
