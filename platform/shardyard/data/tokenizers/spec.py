"""Specs of tokenizers: the schema of the YAML files in tokenizers/; a check reports all problems at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from shardyard.errors import DataError, Problem
from shardyard.recipe.loading.problems import show, where
from shardyard.recipe.schema import Section, Source
from shardyard.suggest import suggestion

Kind = Literal["bytes", "bpe", "wordpiece", "unigram"]
SpecialName = Literal["bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token"]
Template = Literal["none", "bert", "eos", "bos_eos"]
Loc = tuple[str | int, ...]

# Special tokens that a template puts around texts.
TEMPLATE_TOKENS: Mapping[Template, tuple[SpecialName, ...]] = {
    "none": (),
    "bert": ("cls_token", "sep_token"),
    "eos": ("eos_token",),
    "bos_eos": ("bos_token", "eos_token"),
}
BYTE_LEVEL: tuple[Kind, ...] = ("bytes", "bpe")
# Fields of only some kinds. For other kinds they would have no effect.
_ONLY_FOR: Mapping[str, tuple[Kind, ...]] = {
    "vocabulary": ("bpe", "wordpiece", "unigram"),
    "min_frequency": ("bpe", "wordpiece", "unigram"),
    "max_piece_length": ("bpe", "unigram"),
    "alphabet": ("wordpiece", "unigram"),
    "normalization": ("bpe", "wordpiece", "unigram"),
    "lowercase": ("bpe", "wordpiece", "unigram"),
    "strip_accents": ("bpe", "wordpiece", "unigram"),
    "train": ("bpe", "wordpiece", "unigram"),
    "documents": ("bpe", "wordpiece", "unigram"),
    "held_out": ("bpe", "wordpiece", "unigram"),
}


def _field(default: Any, description: str, unit: str = "", **constraints: Any) -> Any:
    extra: dict[str, JsonValue] | None = {"unit": unit} if unit else None
    return Field(default, description=description, json_schema_extra=extra, **constraints)


class TokenizerSource(Section):
    """A source as in a recipe, but read completely: without weight, and with any number of text columns."""

    source: str | None = _field(None, "Embedded corpus or dataset, as in a recipe.")
    path: str | None = _field(None, "Files, a folder or a hub id, as in a recipe.")
    config: str | None = _field(None, "Configuration (subset) of a hub dataset.")
    revision: str | None = _field(None, "Git revision of a hub dataset: pin it to repeat a training exactly.")
    split: str | None = _field(None, "Split to read; by default `train`.")
    text_columns: list[str] = _field(["text"], "Columns to learn from; each is a separate document.", min_length=1)
    languages: list[str] = _field(
        [], "Label in the report of each text column, such as [en, es]; by default the name of the source."
    )
    language_column: str | None = _field(None, "Column that holds the label of a row, where rows differ.")

    def as_recipe_source(self) -> Source:
        """The source for `open_source`."""
        return Source(
            source=self.source,
            path=self.path,
            config=self.config,
            revision=self.revision,
            split=self.split,
            text_column=self.text_columns[0],
        )

    @property
    def name(self) -> str:
        """The name in messages and in the report."""
        return f"{self.source or self.path}:{self.config}" if self.config else str(self.source or self.path)


class TokenizerSpec(Section):
    """A tokenizer: how it splits text, its special tokens, and its training data."""

    kind: Kind = _field(
        ...,
        "How text becomes tokens: bytes of UTF-8, byte-level BPE (Radford et al. 2019), WordPiece as BERT has it, or "
        "a Unigram language model of pieces (Kudo 2018).",
    )
    description: str = _field(..., "What the tokenizer is good for, in a sentence.")
    special_tokens: dict[SpecialName, str] = _field(
        ...,
        "Text of each special token. They have the first ids in this order; with kind bytes the ids after the bytes.",
    )
    template: Template = _field(
        "none",
        "Special tokens around a text: bert is [CLS] A [SEP] and [CLS] A [SEP] B [SEP] with token types 0 and 1; eos "
        "puts eos after each text; bos_eos also bos before it.",
    )
    vocabulary: int | None = _field(None, "Size of the vocabulary, special tokens included.", "tokens", ge=2)
    min_frequency: int = _field(2, "Least occurrences of a piece that is longer than a character.", "times", ge=1)
    max_piece_length: int = _field(
        16, "Longest piece that is learnt; in bytes for bpe, in characters for unigram.", "characters", ge=1
    )
    alphabet: int = _field(
        1000, "Most characters that are pieces of their own, the most frequent ones; others are unknown.", ge=1
    )
    normalization: Literal["none", "nfc", "nfkc"] = _field("none", "Unicode normalisation before anything else.")
    lowercase: bool = _field(False, "Make letters lower case; decoding cannot undo it.")
    strip_accents: bool = _field(False, "Take accents off letters; decoding cannot undo it.")
    train: list[TokenizerSource] = _field([], "Sources that the pieces are learnt from.")
    documents: int | None = _field(None, "Most documents that are read from each source.", "documents", ge=1)
    held_out: float = _field(
        0.02,
        "Fraction of the documents, chosen by the hash of their text, that only the report reads; with 0 the report "
        "measures the training documents. It is the choice that `holdout` makes in a recipe.",
        ge=0.0,
        le=0.5,
    )

    @property
    def is_trained(self) -> bool:
        """Whether pieces are learnt from data, so that the spec alone is not enough."""
        return self.kind != "bytes"

    @property
    def size(self) -> int:
        """`vocabulary` of a trained spec, which is required there."""
        assert self.vocabulary is not None, self.kind
        return self.vocabulary

    def definition(self) -> dict[str, object]:
        """The fields that determine the result: all except the description."""
        return self.model_dump(mode="json", exclude={"description"})


def read_spec(path: Path) -> TokenizerSpec:
    """The spec in a YAML file.

    Raises:
        DataError: the file cannot be read or its content is invalid; lists every problem with line and key.
    """
    data, places = _read_yaml(path)
    try:
        spec = TokenizerSpec.model_validate(data)
    except ValidationError as error:
        problems = [
            Problem(where(item["loc"], places, str(path)), _dotted(item["loc"]), _message(item))
            for item in error.errors(include_url=False)
        ]
        raise _refused(path, problems) from error
    problems = [
        Problem(where(loc, places, str(path)), _dotted(loc), message)
        for loc, message in _rule_violations(spec, set(data))
    ]
    if problems:
        raise _refused(path, problems)
    return spec


def _dotted(loc: Loc) -> str:
    # pydantic marks a key that is invalid itself.
    return ".".join(str(part) for part in loc if part != "[key]")


def _refused(path: Path, problems: list[Problem]) -> DataError:
    count = len(problems)
    title = f"tokenizer spec {path}: {count} problem{'s' if count != 1 else ''}"
    return DataError("\n".join([title, *(f"  {problem}" for problem in problems)]))


def _read_yaml(path: Path) -> tuple[Any, dict[Loc, str]]:
    """Plain values, and the line of each key."""
    try:
        text = path.read_text(encoding="utf-8")
        data = YAML(typ="safe", pure=True).load(text)
        places = dict(_places(YAML(typ="rt", pure=True).load(text), (), str(path)))
    except OSError as error:
        raise DataError(f"tokenizer spec {path} cannot be read: {error.strerror}; check the path.") from error
    except (YAMLError, ValueError) as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        place = f"{path}:{mark.line + 1}" if mark is not None else path
        raise DataError(f"tokenizer spec {place} is not valid YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(data, dict):
        raise DataError(
            f"tokenizer spec {path} holds {show(data)} at its top level, where a spec is a section of keys; "
            "`shardyard tokenizer show bytes` prints a complete example."
        )
    return data, places


def _places(node: Any, loc: Loc, shown: str) -> Iterator[tuple[Loc, str]]:
    if isinstance(node, CommentedMap | CommentedSeq):
        keys = node if isinstance(node, CommentedMap) else range(len(node))
        for key in keys:
            line = node.lc.key(key)[0] if isinstance(node, CommentedMap) else node.lc.item(key)[0]
            yield (*loc, key), f"{shown}:{line + 1}"
            yield from _places(node[key], (*loc, key), shown)


def _message(item: ErrorDetails) -> str:
    loc, kind = item["loc"], item["type"]
    if kind == "extra_forbidden":
        section = TokenizerSource if len(loc) > 1 else TokenizerSpec
        return f"unknown key {loc[-1]!r}; {suggestion(str(loc[-1]), section.model_fields)}"
    if kind == "missing":
        return f"is missing: {TokenizerSpec.model_fields[str(loc[-1])].description}"
    if kind == "literal_error":
        return f"must be one of {item['ctx']['expected'].replace(chr(39), '')}, got {show(item['input'])}"
    return f"{item['msg'][0].lower()}{item['msg'][1:]}, got {show(item['input'])}"


def _rule_violations(spec: TokenizerSpec, given: set[str]) -> Iterator[tuple[Loc, str]]:
    """Fields that are valid alone but not together."""
    for name, kinds in _ONLY_FOR.items():
        if name in given and spec.kind not in kinds:
            yield (name,), f"kind {spec.kind} has no {name}; take it out (it is for {', '.join(kinds)})"
    for special in TEMPLATE_TOKENS[spec.template]:
        if special not in spec.special_tokens:
            yield ("special_tokens",), f"template {spec.template} needs {special}"
    if spec.kind not in BYTE_LEVEL and "unk_token" not in spec.special_tokens:
        yield ("special_tokens",), f"kind {spec.kind} needs unk_token, for characters that it has no piece for"
    for special, text in spec.special_tokens.items():
        if not text:
            yield ("special_tokens", special), "is empty"
    if spec.is_trained:
        yield from _training(spec)


def _training(spec: TokenizerSpec) -> Iterator[tuple[Loc, str]]:
    specials = len(set(spec.special_tokens.values()))
    least = specials + (256 if spec.kind == "bpe" else 1)
    if spec.vocabulary is None:
        yield ("vocabulary",), "is missing: Size of the vocabulary, special tokens included."
    elif spec.vocabulary < least:
        yield ("vocabulary",), f"{spec.vocabulary} is too small: special tokens and single characters alone are {least}"
    if not spec.train:
        yield ("train",), "is missing: Sources that the pieces are learnt from."
    for index, source in enumerate(spec.train):
        loc: Loc = ("train", index)
        if (source.source is None) == (source.path is None):
            yield loc, "needs either `source` (embedded or prepared) or `path` (files or a hub id)"
        if source.languages and len(source.languages) != len(source.text_columns):
            yield (
                (*loc, "languages"),
                f"has {len(source.languages)} labels for {len(source.text_columns)} text columns; give one for each",
            )
        if source.languages and source.language_column is not None:
            yield (*loc, "language_column"), "contradicts languages; keep one of them"
        for key in ("config", "revision"):
            if source.source is not None and getattr(source, key) is not None:
                yield (*loc, key), f"belongs to a hub dataset, but the source is {source.source}; take it out"
