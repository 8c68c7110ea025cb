"""Opening the sources of a recipe: as streams of examples, or as tokens where these are there."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import datasets

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.ledger.exclusion import exclusion_digest, read_exclusion
from shardyard.data.sources.files import Found, fingerprint_files
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import TEXT_ONLY, OpenSource, open_for, source_name
from shardyard.data.stream.packing import separators
from shardyard.data.tokenized.address import address_of
from shardyard.data.tokenized.documents import TokenDataset, TokenizedSource
from shardyard.data.tokenized.foreign import ForeignPart, Vocabulary
from shardyard.data.tokenized.making import why_not
from shardyard.data.tokenized.stored import TokenSet
from shardyard.data.tokenizers.tokenizer import fingerprint, vocabulary_size
from shardyard.errors import DataError
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.schema import Source
from shardyard.recipe.sources.recognise import Recognised
from shardyard.recipe.sources.token_sets import any_sets, recognised_tokens, tokenized_root
from shardyard.recipe.sources.tokens import MANIFEST
from shardyard.units import format_count

_TEXT_FEATURES = datasets.Features({"text": datasets.Value("string")})


def open_documents(
    inputs: FormatInputs, objective: str, source: Source, *, training: bool, retry: Retry | None = None
) -> OpenSource:
    """Open a source for the rows of an objective; tokenised documents are read where there are any.

    That is the case if `path` names files of token ids, or if `shardyard data tokenize` has made a set of the same
    source, tokenizer and options, unless `data.tokenized` is `never`. The rows are the same.

    Raises:
        DataError: the source cannot be read, or not with these settings; nothing is tokenised and `data.tokenized` is
            `always`.
        UnavailableError: a server kept failing.
    """
    spec = objective_spec(objective)
    found = recognised_tokens(source, training=training)
    if found is not None:
        return _excluding(_of_files(inputs, objective, source, found, training=training), source)
    opened = open_for(spec, source, training=training, retry=retry)
    way = inputs.data.tokenized
    if way == "never" or (way == "auto" and (why_not(spec, inputs) is not None or not any_sets())):
        return opened
    if (why := why_not(spec, inputs)) is not None:
        raise DataError(f"data.tokenized is always, and {why}; set it to auto or never.")
    address = address_of(opened, source, fingerprint(inputs.text_tokenizer))
    folder = tokenized_root() / address.folder_name
    if (folder / MANIFEST).is_file():
        tokens = TokenSet(folder)
        if tokens.manifest.address == address.digest:
            return _instead_of(opened, tokens)
    if way == "always":
        raise DataError(
            f"{opened.name} is not tokenised on this machine for this tokenizer and these options, and data.tokenized "
            "is always: call `shardyard data tokenize RECIPE`, or set it to auto."
        )
    return opened


def _instead_of(opened: OpenSource, tokens: TokenSet) -> TokenizedSource:
    """The tokenised documents of an opened source, under its name and fingerprint."""
    note = f"{opened.name} is read from tokenised data: {describe(tokens)}. data.tokenized: never reads the text"
    before = opened.found.note if opened.found is not None and opened.found.note else ""
    found = opened.found or Found(_TEXT_FEATURES, opened.fingerprint, lambda _: opened.dataset)
    found = replace(found, note="; ".join(filter(None, (before, note))))
    return TokenizedSource(
        opened.name,
        tokens.dataset(),
        opened.columns,
        opened.kinds,
        opened.fingerprint,
        opened.holdout,
        opened.training,
        found=found,
        folder=str(tokens.folder),
        excluded_contents=_beginnings(opened.excluded),
    )


def _beginnings(hashes: frozenset[str]) -> frozenset[int]:
    return frozenset(int(one[:16], 16) for one in hashes)


def tokens_in_words(opened: OpenSource) -> str | None:
    """What is read of an opened source that is tokenised; None for others."""
    if not isinstance(opened, TokenizedSource):
        return None
    note = opened.found.note if opened.found is not None else ""
    return note or f"{opened.name} holds token ids"


def describe(tokens: TokenSet) -> str:
    """`1.2M documents, 1.3B tokens in /…/tokenized/data-…`."""
    counts = tokens.manifest.counts
    return f"{format_count(counts.documents)} documents, {format_count(counts.tokens)} tokens in {tokens.folder}"


def _of_files(
    inputs: FormatInputs, objective: str, source: Source, found: Recognised, *, training: bool
) -> TokenizedSource:
    name = source_name(source)
    if (why := why_not(objective_spec(objective), inputs)) is not None:
        raise DataError(f"{name} holds token ids, which {objective} cannot read: {why}.")
    if source.filters:
        raise DataError(
            f"{name} holds token ids, and data.filters look at texts: filter before the data is tokenised, and give "
            "this source `filters: []`."
        )
    if found.layout == "tokenised":
        return _of_set(inputs, name, source, found, training=training)
    tokenizer = inputs.text_tokenizer
    model = inputs.model.get_text_config() if inputs.model is not None else None
    tokenizer_size = vocabulary_size(tokenizer)
    size = getattr(model, "vocab_size", None) or tokenizer_size
    vocabulary = Vocabulary(size, tokenizer_size, tuple(chain(*separators(tokenizer))))
    parts = tuple(ForeignPart(file, vocabulary, source.token_type) for file in found.files)
    kinds = ", ".join(sorted({part.token_type for part in parts}))
    if divided := [part for part in parts if _is_divided(part)]:
        rows = divided[0].num_rows()
        note = (
            f"{Path(divided[0].name).name} has no separator between documents (token id "
            f"{' or '.join(map(str, vocabulary.separators))}): it is divided into {rows} pieces, which are dealt and "
            "held out as documents are"
        )
    else:
        note = ""
    fingerprint_of = {"source": name, "split": source.split or "train", **fingerprint_files(found.files)}
    about = f"{kinds} token ids"
    return _source(name, source, TokenDataset(parts), fingerprint_of, about, note, training=training)


def _excluding(opened: TokenizedSource, source: Source) -> TokenizedSource:
    """The source without the documents of data.exclude: by the hash of their text, or of their tokens if these are all
    there is."""
    if source.exclude is None:
        return opened
    excluded = read_exclusion(source.exclude)
    fingerprint_of = {**opened.fingerprint, "excluded": exclusion_digest(excluded)}
    if opened.folder is None:
        return replace(opened, excluded=excluded, fingerprint=fingerprint_of)
    return replace(opened, excluded_contents=_beginnings(excluded), fingerprint=fingerprint_of)


def _is_divided(part: ForeignPart) -> bool:
    part.num_rows()
    return part.is_divided


def _of_set(inputs: FormatInputs, name: str, source: Source, found: Recognised, *, training: bool) -> TokenizedSource:
    tokens = TokenSet(Path(str(found.root)))
    manifest = tokens.manifest
    if manifest.tokenizer_sha256 != fingerprint(inputs.text_tokenizer):
        raise DataError(
            f"{name} was tokenised with {manifest.tokenizer}, and the recipe's tokenizer makes other tokens: set that "
            "one, or tokenise the data with yours (`shardyard data tokenize RECIPE`)."
        )
    fingerprint_of: dict[str, object] = {"source": name, "tokens": manifest.address}
    note = f"{name} is read from tokenised data: {describe(tokens)}"
    opened = _source(name, source, tokens.dataset(), fingerprint_of, "tokenised documents", note, training=training)
    return replace(opened, folder=str(tokens.folder))


def _source(
    name: str,
    source: Source,
    dataset: TokenDataset,
    fingerprint_of: dict[str, object],
    about: str,
    note: str,
    *,
    training: bool,
) -> TokenizedSource:
    found = Found(_TEXT_FEATURES, fingerprint_of, lambda _: dataset, about, note=note)
    columns = {"text": "text"}
    return TokenizedSource(name, dataset, columns, TEXT_ONLY, fingerprint_of, source.holdout, training, found=found)
