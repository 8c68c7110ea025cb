"""Rules for data: sources that are incomplete, ambiguous or missing."""

from __future__ import annotations

import re
from collections.abc import Iterator

from shardyard.objectives.registry import objective_spec
from shardyard.objectives.spec import ObjectiveSpec
from shardyard.recipe.catalog.datasets import DATASETS
from shardyard.recipe.catalog.shipped import EMBEDDED_SOURCES
from shardyard.recipe.fields import Path
from shardyard.recipe.layouts import choose, explain_unknown, roles_of
from shardyard.recipe.rules.filters import filter_rules
from shardyard.recipe.schema import Data, Recipe, Source
from shardyard.recipe.seen_columns import Seen, look
from shardyard.recipe.sources.files import file_kind, is_table, matching
from shardyard.recipe.sources.usual import columns_of
from shardyard.suggest import suggestion

Finding = tuple[Path, str]

_EMBEDDED_SPLITS = ("train", "validation")


def data_rules(recipe: Recipe) -> Iterator[Finding]:
    """All findings about `data`."""
    for name in ("train", "validation"):
        for index, source in enumerate(getattr(recipe.data, name)):
            path = ("data", name, index)
            for key, message in source_findings(source, recipe.objective, training=name == "train"):
                yield (*path, *((key,) if key else ())), message
    yield from filter_rules(recipe)
    yield from _packing(recipe)
    yield from _grouping(recipe)
    yield from _languages(recipe)
    yield from _held_out(recipe.data)
    yield from _leaks(recipe.data)


def source_findings(source: Source, objective: str, *, training: bool) -> Iterator[tuple[str, str]]:
    """Findings about one source as (key, message); an empty key stands for the source itself."""
    if source.source is None and source.path is None:
        yield "", "names no data; give `source` (an embedded corpus) or `path` (hub id, folder, file or URL)"
    elif source.source is not None and source.path is not None:
        yield "path", "a source has either `source` or `path`; keep one, and list the other as a separate source"
    elif source.source is not None:
        yield from _embedded(source, source.source, objective)
    elif source.path is not None:
        yield from _local(source.path)
        yield from _documents(source)
        seen = look(source.path, source.split or ("train" if training or source.holdout else "validation"))
        if seen.problem is not None:
            yield ("split" if "has no split" in seen.problem else "path"), seen.problem.rstrip(".")
        yield from _seen(source, seen, objective)
    yield from _columns(source, objective)


def _embedded(source: Source, name: str, objective: str) -> Iterator[tuple[str, str]]:
    dataset = DATASETS.get(name)
    known = [*EMBEDDED_SOURCES, *(other for other, found in DATASETS.items() if found.kind == "rows")]
    if name not in known:
        yield (
            "source",
            f"no embedded corpus or dataset {name!r}; {suggestion(name, known)} Hub data goes under `path`",
        )
        return
    splits = tuple(dataset.num_rows) if dataset is not None else _EMBEDDED_SPLITS
    if source.split is not None and source.split not in splits:
        yield "split", f"{name} has the splits {' and '.join(splits)}, not {source.split!r}"
    if source.holdout:
        yield "holdout", f"{name} has its own validation split; remove holdout"
    for key in ("config", "revision"):
        if getattr(source, key) is not None:
            yield key, f"is for hub datasets (`path`), not for {name}; remove it"
    columns: dict[str, str] = dict(dataset.columns) if dataset is not None else {"text": "text"}
    if dataset is None and source.text_column != Source.model_fields["text_column"].default:
        yield "text_column", f"the embedded {name} has no columns; remove it"
        return
    named = {"text": source.text_column, **source.columns}
    layouts = objective_spec(objective).layouts
    if layouts is not None and choose(layouts, columns.__contains__, source.columns) is not None:
        return
    for role, kind in objective_spec(objective).columns.items():
        column = named.get(role, role)
        if columns.get(column) != kind:
            fitting = ", ".join(other for other, found in columns.items() if found == kind) or "none"
            yield (
                "columns",
                f"{objective} reads {role} ({kind}), and {name} has no such column {column!r}; of this kind: {fitting}",
            )


def _columns(source: Source, objective: str) -> Iterator[tuple[str, str]]:
    spec = objective_spec(objective)
    roles = dict.fromkeys([*spec.all_columns, *(roles_of(spec.layouts) if spec.layouts is not None else ())])
    for role in source.columns:
        if role not in roles:
            yield "columns", f"{objective} reads no {role!r}; {suggestion(role, roles)}"
    if source.text_column != Source.model_fields["text_column"].default and "text" not in roles:
        yield "text_column", f"{objective} reads {', '.join(roles)}; name their columns under `columns`"


def _seen(source: Source, seen: Seen, objective: str) -> Iterator[tuple[str, str]]:
    """Findings about the columns of a local file: they must be those of a layout, or one for each role."""
    spec = objective_spec(objective)
    roles = {*spec.all_columns, *(roles_of(spec.layouts) if spec.layouts is not None else ())}
    if not seen.columns or not source.columns.keys() <= roles:
        return

    def has(column: str) -> bool:
        # The fields within a column are not known here.
        return column in seen.columns or column.split(".")[0] in seen.columns

    if spec.layouts is not None:
        if choose(spec.layouts, has, source.columns) is None:
            yield "columns", explain_unknown(spec.layouts, objective, seen.columns, source.columns)
        return
    named = columns_of(spec.all_columns, source.columns, source.text_column, has)
    missing = [role for role in spec.columns if not has(named[role])]
    mapped = [role for role in spec.optional_columns if role in source.columns and not has(named[role])]
    for role in (*missing, *mapped):
        yield _no_column(role, named[role], source, seen, spec)


def _no_column(role: str, column: str, source: Source, seen: Seen, spec: ObjectiveSpec) -> tuple[str, str]:
    field = "text_column" if role == "text" and role not in source.columns else "columns"
    how = "text_column" if field == "text_column" else f"columns: {{{role}: …}}"
    listed = ", ".join(seen.columns)
    return field, (
        f"{spec.name} reads {role} ({spec.all_columns[role]}), and the data has no column {column!r}; it has {listed}. "
        f"Name the right one with {how}"
    )


def _documents(source: Source) -> Iterator[tuple[str, str]]:
    way = source.documents
    if way is None:
        return
    if isinstance(way, int):
        if way < 1:
            yield "documents", f"is {way}; give a number of characters from 1 on"
    elif way.startswith("/") and way.endswith("/") and len(way) > 2:
        try:
            re.compile(way[1:-1])
        except re.error as error:
            yield "documents", f"is no regular expression: {error}"
    elif way not in ("file", "lines", "paragraphs"):
        yield "documents", f"is {way!r}; give file, lines, paragraphs, a number of characters, or a pattern as /…/"


def _local(path: str) -> Iterator[tuple[str, str]]:
    if "://" in path:
        return
    looks_local = path.startswith(("./", "../", "/", "~")) or file_kind(path) is not None
    try:
        found = bool(matching(path))
    except (OSError, ValueError):
        found = False
    if looks_local and not found:
        yield "path", f"no file or folder matches {path!r}; relative paths start at the current folder"


def _languages(recipe: Recipe) -> Iterator[Finding]:
    if not objective_spec(recipe.objective).decodes:
        for name in ("source_language", "target_language", "task"):
            if getattr(recipe.data, name) is not None:
                yield ("data", name), f"is for decoders of texts and transcripts, not for {recipe.objective}; remove it"


def _packing(recipe: Recipe) -> Iterator[Finding]:
    packing, rows = recipe.data.packing, objective_spec(recipe.objective).rows
    if not packing:
        return
    where = ("data", "packing")
    if rows == "packed":
        if packing is True:
            yield where, f"is concat or best_fit for the documents of {recipe.objective}, which are packed anyway"
    elif rows != "conversations":
        yield where, f"packs documents and conversations; {recipe.objective} has other rows, so leave it out"
    elif packing == "concat":
        yield where, f"concat would cut conversations; use best_fit for {recipe.objective}"
    elif not recipe.data.isolate_documents:
        yield where, "keeps the conversations of a row apart, and data.isolate_documents is false; leave that at true"


def _grouping(recipe: Recipe) -> Iterator[Finding]:
    spec = objective_spec(recipe.objective)
    if not recipe.data.group_by_length:
        return
    where = ("data", "group_by_length")
    if spec.rows == "packed" or recipe.data.packing:
        yield where, "saves padding, and packed rows have next to none; leave one of data.packing and this out"
    elif not spec.text and "audio" not in spec.all_columns.values():
        yield where, f"is for texts and recordings; the images of {recipe.objective} are of one size, so leave it out"


def _held_out(data: Data) -> Iterator[Finding]:
    embedded = any(source.source is not None for source in data.train)
    if not data.validation and not embedded and not any(source.holdout for source in data.train):
        yield (
            ("data", "validation"),
            ("nothing is held out; add data.validation, or set `holdout: 0.01` on a source of data.train"),
        )


def _leaks(data: Data) -> Iterator[Finding]:
    """Reject validation on the training data."""
    trained = {_identity(source, "train"): source for source in data.train}
    for index, source in enumerate(data.validation):
        twin = trained.get(_identity(source, "validation"))
        if twin is None:
            continue
        path = ("data", "validation", index)
        if source.source is not None:
            yield path, "is the split that data.train reads; leave `split` out on both"
        elif twin.holdout == 0 or source.holdout == 0:
            yield path, "is the data that data.train reads; set the same `holdout` above 0 on both, or a split"
        elif twin.holdout != source.holdout:
            yield (
                (*path, "holdout"),
                (f"is {source.holdout}, but {twin.holdout} on the same source of data.train; they must be equal"),
            )


def _identity(source: Source, split: str) -> tuple[str | None, ...]:
    # Files have no splits, and documents held out by hash are in the training split.
    if source.path is not None and (source.holdout or is_table(source.path)):
        split = "train"
    return (source.source, source.path, source.config, source.revision, source.split or split)
