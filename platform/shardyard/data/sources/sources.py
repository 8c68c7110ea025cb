"""Sources of documents: embedded corpora, local or remote files, and data sets of the hub, all read as streams."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from shardyard.data.datasets import dataset_files, dataset_fingerprint
from shardyard.data.filters.outcome import Clean
from shardyard.data.filters.steps import Steps, make_step
from shardyard.data.ledger.exclusion import exclusion_digest, read_exclusion
from shardyard.data.quirks import quiet_datasets
from shardyard.data.sources import corpus
from shardyard.data.sources.files import Found, open_files
from shardyard.data.sources.hub import open_hub, streamed
from shardyard.data.sources.kinds import column_path, feature_of, is_kind, may_be, type_of
from shardyard.data.sources.layouts import read_layout
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.values import Decode, as_kind, chained, decoder
from shardyard.data.sources.web import be_patient
from shardyard.data.sources.wording import in_words
from shardyard.data.tables.table import PROBLEM, problems_of
from shardyard.errors import DataError, UnusableRowError
from shardyard.objectives.spec import Kind, ObjectiveSpec
from shardyard.recipe.catalog.datasets import DATASETS
from shardyard.recipe.layouts import Chosen, LayoutKind, choose, explain_unknown
from shardyard.recipe.schema import Source
from shardyard.recipe.sections.filters import EvaluationSet, Step
from shardyard.recipe.sources.usual import columns_of

HUB_TIMEOUT_SECONDS = 20.0
_WORDS: Mapping[Kind, str] = {
    "label": "whole numbers",
    "texts": "lists of texts",
    "tags": "lists of whole numbers or names",
    "answers": "answers (text and answer_start)",
    "segments": "lists of segments (text and end)",
    "number": "numbers",
    "numbers": "lists of numbers",
}


# A document is its text; other examples are dictionaries: role → value.
Example = str | dict[str, object]
TEXT_ONLY: Mapping[str, Kind] = {"text": "text"}


@dataclass(frozen=True)
class OpenSource:
    """An opened source with the columns that the objective needs.

    `dataset` is a streaming `IterableDataset`; `columns` maps role → column and `kinds` role → kind of its values;
    `decoders` maps role → how its stored values are read, if they are not read as they are. `layout` is the layout of
    conversations or pairs that was recognised; its values are of any kind. `found` has all columns. `fingerprint` is
    JSON-able and identifies the data. `steps` are its filters, `excluded` the hashes of documents that
    are kept out.
    """

    name: str
    dataset: Any
    columns: Mapping[str, str]
    kinds: Mapping[str, Kind]
    fingerprint: Mapping[str, object]
    holdout: float
    training: bool
    decoders: Mapping[str, Decode] = field(default_factory=dict)
    layout: Chosen | None = None
    found: Found | None = None
    steps: Steps | None = None
    excluded: frozenset[str] = frozenset()

    @property
    def is_text(self) -> bool:
        """Whether an example is a text and nothing else."""
        return self.columns.keys() == {"text"}

    def decoded(self, stored: Example) -> Example:
        """An example as its features type it.

        Raises:
            UnusableRowError: a field that should hold JSON does not.
        """
        if not self.decoders:
            return stored
        try:
            if not isinstance(stored, dict):
                return self.decoders["text"](stored)  # type: ignore[no-any-return]
            return {
                role: decode(value) if (decode := self.decoders.get(role)) else value for role, value in stored.items()
            }
        except ValueError as error:
            raise UnusableRowError("a field holds no valid JSON", str(error)) from error

    def laid_out(self, example: Example) -> Example:
        """A decoded example with the roles of the objective.

        Raises:
            UnusableRowError: a value is not what the layout has there.
        """
        if self.layout is None or not isinstance(example, dict):
            return example
        return read_layout(self.layout.layout.name, example)

    def keeps(self, stored: Example) -> bool:
        """Whether an example is on this side of the hold-out; depends only on the hash of its stored text or first
        column."""
        if self.holdout == 0.0:
            return True
        return (identity_number(stored) >= self.holdout * 2.0**64) is self.training

    def is_usable(self, example: Any) -> bool:
        """Whether all required values of a decoded example are present and not empty."""
        return self.missing(example) is None

    def missing(self, example: Any) -> str | None:
        """The first role of a decoded example whose value is missing or empty."""
        if self.layout is not None:
            return next((role for role in self.layout.layout.needed if example.get(role) in (None, "", [])), None)
        if self.is_text:
            return None if isinstance(example, str) and example else "text"
        return next((role for role, kind in self.kinds.items() if not _is_there(example[role], kind)), None)


def _is_there(value: Any, kind: Kind) -> bool:
    if kind == "segments":
        return True
    if kind in ("label", "tags", "answers", "number"):
        return value is not None
    if isinstance(value, dict):
        # A struct of nulls stands for no value.
        return any(inner is not None for inner in value.values())
    return bool(value) and (kind != "text" or isinstance(value, str))


def identity_number(stored: Example) -> int:
    """The number below 2^64 by which an example is held out: from the hash of its stored text or first column."""
    return int.from_bytes(hashlib.sha256(_identity(stored)).digest()[:8], "big")


def _identity(example: Example) -> bytes:
    if isinstance(example, str):
        return example.encode()
    value: Any = next(iter(example.values())) if isinstance(example, dict) else example
    if isinstance(value, dict) and value.get("bytes") is not None:
        value = value["bytes"]
    elif isinstance(value, dict) and value.get("path"):
        # A folder may be moved, and its files stay on their sides.
        value = "/".join(Path(str(value["path"])).parts[-2:])
    return value if isinstance(value, bytes) else repr(value).encode() if not isinstance(value, str) else value.encode()


def source_name(source: Source) -> str:
    """The name of a source in messages and statistics: `python-docs`, `data/*.jsonl`, `org/set:config`."""
    name = source.source or source.path or ""
    return f"{name}:{source.config}" if source.config else name


def open_source(
    source: Source,
    *,
    training: bool,
    roles: Mapping[str, Kind] = TEXT_ONLY,
    optional: Mapping[str, Kind] | None = None,
    layouts: LayoutKind | None = None,
    retry: Retry | None = None,
    beside: Iterable[str] = (),
) -> OpenSource:
    """Open a source as a stream and check that it has the columns that the objective reads.

    `training` selects the default split and the side of `holdout`: training skips held-out examples, validation reads
    only those. `roles` maps required roles to the kind of their values, `optional` those that are read if present;
    with `layouts`, the columns decide which of these layouts is read instead. `beside` are further columns that the
    dataset has if the source has them.
    `retry` limits how long transient failures are retried.

    Raises:
        DataError: no such file, split or column, a column of another kind, an empty source, or the hub is unreachable.
        UnavailableError: a server kept failing with transient errors until the time limit.
    """
    quiet_datasets()
    retry = retry or Retry()
    be_patient(retry.limit_seconds)
    # Examples held out by hash are in the training split.
    split = source.split or ("train" if training or (source.holdout and source.source is None) else "validation")
    name = source_name(source)
    if source.source is not None:
        found = _open_corpus(source.source, split, retry)
    elif source.path is None:
        raise DataError("a source needs `source` (an embedded corpus) or `path` (files or a hub id).")
    else:
        found = _open_path(source, split, retry)
    layout = _layout(found.features, name, source, layouts) if layouts is not None else None
    if layout is not None:
        columns, kinds = dict(layout.columns), dict[str, Kind]()
        asked: Mapping[str, Kind] = {role: "image" for role in ("image", "images") if role in columns}
    else:
        columns, kinds = _columns(found.features, name, source, roles, optional or {})
        asked = kinds
    wanted = _wanted(found.features, columns, asked) | {name: None for name in beside if name in found.features}
    dataset = in_words(name, retry, lambda: found.stream(wanted))
    holdout = 0.0 if source.source is not None and split == "validation" else source.holdout
    fingerprint = {"source": name, "split": split, **found.fingerprint}
    opened = OpenSource(name, dataset, columns, kinds, fingerprint, holdout, training, layout=layout, found=found)
    return replace(opened, decoders=_decoders(dataset.features or found.features, opened))


def _wanted(features: Any, columns: Mapping[str, str], asked: Mapping[str, Kind]) -> dict[str, Kind | None]:
    """The top-level columns that hold `columns`, with the kind of their values if all of a column is read."""
    found: dict[str, Kind | None] = {}
    for role, column in columns.items():
        top = column_path(features, column)[0]
        found[top] = None if top != column or top in found else asked.get(role)
    return found


def open_for(spec: ObjectiveSpec, source: Source, *, training: bool, retry: Retry | None = None) -> OpenSource:
    """Open a source with the columns that an objective reads. Raises as `open_source` does."""
    opened = open_source(
        source,
        training=training,
        roles=spec.columns,
        optional=spec.optional_columns,
        layouts=spec.layouts,
        retry=retry,
    )
    if source.exclude is not None:
        excluded = read_exclusion(source.exclude)
        fingerprint = {**opened.fingerprint, "excluded": exclusion_digest(excluded)}
        opened = replace(opened, excluded=excluded, fingerprint=fingerprint)
    if not source.filters:
        return opened
    digest = hashlib.sha256("\n".join(step.model_dump_json() for step in source.filters).encode()).hexdigest()
    return replace(opened, steps=steps_of(source.filters), fingerprint={**opened.fingerprint, "filters": digest})


def steps_of(steps: Sequence[Step]) -> Steps:
    """The functions of steps that look at single documents. Raises as `make_step` does."""
    return Steps([(step.name, _step(step.model_dump_json())) for step in steps])


@functools.lru_cache(maxsize=64)
def _step(description: str) -> Clean:
    """Sources and streams share what a step has read."""
    return make_step(Step.model_validate_json(description), _texts_of)


def _texts_of(evaluation: EvaluationSet) -> Iterator[str]:
    """The texts of an evaluation set, column by column."""
    for column in evaluation.text_columns:
        opened = _opened(evaluation, column)
        yield from in_words(opened.name, Retry(), functools.partial(list, _whole_texts(opened)))


def evaluation_fingerprints(steps: Sequence[Step]) -> list[Mapping[str, object]]:
    """What identifies the evaluation sets of steps. Raises as `open_source` does."""
    sets = [one for step in steps if step.decontaminate is not None for one in step.decontaminate.against]
    return [_opened(one, one.text_columns[0]).fingerprint for one in sets]


def _opened(evaluation: EvaluationSet, column: str) -> OpenSource:
    names = {name: getattr(evaluation, name) for name in ("source", "path", "config", "revision", "split")}
    # Without `split`, embedded corpora hold out `validation`; other data may have no splits.
    return open_source(Source(text_column=column, **names), training=evaluation.source is None)


def _whole_texts(opened: OpenSource) -> Iterator[str]:
    for table in opened.dataset.with_format("arrow").iter(batch_size=256):
        for stored in stored_examples(opened, table.select(top_columns(table, opened.columns.values()))):
            if not isinstance(stored, Broken):
                with contextlib.suppress(UnusableRowError):
                    text = opened.decoded(stored)
                    if isinstance(text, str) and text:
                        yield text


def _open_corpus(name: str, split: str, retry: Retry) -> Found:
    if name in DATASETS:
        shards = [str(path) for path in dataset_files(name, split)]
        dataset = datasets.load_dataset("parquet", data_files=shards, split="train", streaming=True)
        return streamed(dataset, dataset_fingerprint(name), name, retry)
    files = corpus.corpus_files(name)
    if split not in files:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(files)}.")
    dataset = datasets.load_dataset("parquet", data_files=files, split=split, streaming=True)
    return streamed(dataset, asdict(corpus.fingerprint(name)), name, retry)


def _open_path(source: Source, split: str, retry: Retry) -> Found:
    path = str(source.path)
    found = in_words(path, retry, lambda: open_files(source, split))
    if found is not None:
        return found
    if Path(path).is_absolute() or path.startswith((".", "~")) or path.count("/") > 1 or "*" in path:
        raise DataError(f"{path}: there is no such file or folder; relative paths start at the current folder.")
    return open_hub(source, split, retry)


def _layout(features: Any, name: str, source: Source, kind: LayoutKind) -> Chosen:
    """The layout of the columns."""
    chosen = choose(kind, lambda column: feature_of(features, column) is not None, source.columns)
    if chosen is None:
        raise DataError(f"{name} {explain_unknown(kind, kind, features, source.columns)}.")
    return chosen


def _decoders(features: Any, opened: OpenSource) -> dict[str, Decode]:
    """Role → decoder of its values, where they are not stored as they are."""
    prune = opened.layout is not None
    found: dict[str, Decode] = {}
    for role, column in opened.columns.items():
        feature = feature_of(features, column)
        seen = feature_of(opened.found.features, column) if opened.found is not None else feature
        steps = [decoder(feature, prune=prune), as_kind(opened.kinds.get(role), feature, seen)]
        present = [step for step in steps if step is not None]
        if present:
            found[role] = present[0] if len(present) == 1 else chained(*present)
    return found


def _columns(
    features: Any,
    name: str,
    source: Source,
    roles: Mapping[str, Kind],
    optional: Mapping[str, Kind],
) -> tuple[dict[str, str], dict[str, Kind]]:
    """Role → column and role → kind, checked against the columns of the source."""

    def has(column: str) -> bool:
        return feature_of(features, column) is not None

    every = {**optional, **roles}
    named = columns_of(every, source.columns, source.text_column, has)

    def is_there(role: str, kind: Kind) -> bool:
        # Many a column is called `segments` and holds other things.
        other = kind == "segments" and role not in source.columns
        return has(named[role]) and not (other and not is_kind(feature_of(features, named[role]), kind))

    wanted = {**roles, **{role: kind for role, kind in optional.items() if is_there(role, kind)}}
    unknown = sorted(source.columns.keys() - roles.keys() - optional.keys())
    if unknown:
        raise DataError(f"{name}: columns names {unknown[0]!r}, which the objective does not read: {', '.join(roles)}.")
    columns = {role: named[role] for role in wanted}
    for role, kind in wanted.items():
        _check_column(features, name, role, columns[role], kind)
    return columns, wanted


def _check_column(features: Any, name: str, role: str, column: str, kind: Kind) -> None:
    setting = "text_column" if role == "text" else f"columns.{role}"
    feature = feature_of(features, column)
    if feature is None:
        raise DataError(f"{name} has no column {column!r}; it has {', '.join(features)}. Set {setting} to one.")
    if not is_kind(feature, kind) and not may_be(feature, kind):
        fitting = ", ".join(key for key, feature in features.items() if is_kind(feature, kind))
        what = _WORDS.get(kind, kind)
        raise DataError(
            f"{name}: column {column!r} holds {type_of(feature)}, not {what}; columns of {what}: {fitting or 'none'}."
        )


@dataclass(frozen=True)
class Broken:
    """An example that cannot be read as it is; `repaired` can be, if there is one."""

    problem: str
    repaired: Example | None


def stored_examples(source: OpenSource, table: pa.Table) -> list[Example | Broken]:
    """The stored examples of a table of a source."""
    table_columns = {role: values_of(table, column) for role, column in source.columns.items()}
    if source.is_text:
        examples: list[Any] = table_columns["text"]
    else:
        rows = zip(*table_columns.values(), strict=True)
        examples = [dict(zip(table_columns, values, strict=True)) for values in rows]
    for index, problem in enumerate(problems_of(table) or ()):
        if problem is not None:
            values = examples[index].values() if isinstance(examples[index], dict) else (examples[index],)
            whole = all(value is not None for value in values)
            examples[index] = Broken(problem, examples[index] if whole else None)
    return examples


def top_columns(table: pa.Table, columns: Iterable[str]) -> list[str]:
    """The top-level columns of a table that contain `columns`, each once: `translation` for `translation.en`; and the
    column of problems."""
    return [*top_names(table.column_names, columns), *([PROBLEM] if PROBLEM in table.column_names else [])]


def top_names(names: Iterable[str], columns: Iterable[str]) -> list[str]:
    """Those of the top-level columns `names` that contain `columns`, each once."""
    names = list(names)
    return list(dict.fromkeys(column_path(names, column)[0] for column in columns))


def values_of(table: pa.Table, column: str) -> list[Any]:
    """A column as a list; `translation.en` is the field `en` of the column `translation`."""
    top, *fields = column_path(table.column_names, column)
    values = table.column(top)
    return list((pc.struct_field(values, fields) if fields else values).to_pylist())
