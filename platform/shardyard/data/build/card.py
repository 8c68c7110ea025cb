"""The data card of a build: where documents come from, what each step did, and how a recipe reads them."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, TypedDict

from shardyard import __version__
from shardyard.data.build.counts import SourceCounts, StepCounts
from shardyard.data.build.spec import BuildSpec
from shardyard.data.build.tasks import ShardResult
from shardyard.extras import missing
from shardyard.recipe.sources.files import CARD
from shardyard.units import format_bytes

CARD_VERSION = 1
PAGE = "README.md"
_LIBRARIES = {
    "datasets": "datasets",
    "pyarrow": "pyarrow",
    "lingua-language-detector": "lingua",
    "rensa": "rensa",
}


class CardSource(TypedDict):
    """A source in the card: its fields in the file, what identifies its data, and its counts."""

    name: str
    fields: dict[str, object]
    fingerprint: dict[str, object]
    license: str | None
    counts: SourceCounts


class CardStep(TypedDict):
    """A step in the card. `clusters` of documents that are alike, of which the first stays."""

    name: str
    parameters: dict[str, object]
    counts: StepCounts
    clusters: int | None


class Card(TypedDict):
    """The content of data-card.json."""

    card_version: int
    name: str
    description: str
    build: str
    versions: dict[str, str]
    sources: list[CardSource]
    steps: list[CardStep]
    documents: int
    bytes: int
    format: str
    files: list[ShardResult]


def versions() -> dict[str, str]:
    """The versions on which the result may depend."""
    present = {name: metadata.version(name) for name, module in _LIBRARIES.items() if not missing(module)}
    return {"shardyard": __version__, "python": platform.python_version(), **present}


def parameters(spec: BuildSpec, number: int) -> dict[str, object]:
    """The parameters of a step."""
    step = spec.steps[number]
    return dict(getattr(step, step.name).model_dump(mode="json"))


def page(card: Card, folder: str) -> str:
    """The card as Markdown."""
    return "\n".join(_page(card, folder)) + "\n"


def _page(card: Card, folder: str) -> Iterator[str]:
    yield from (f"# {card['name']}", "")
    if card["description"]:
        yield from (card["description"], "")
    yield (
        f"{card['documents']:,} documents, {format_bytes(card['bytes'])} of text in {len(card['files'])} files, made "
        f"by `shardyard data build`. The same in full, for programs: {CARD}."
    )
    yield from (
        "",
        "## Use",
        "",
        "```yaml",
        "data:",
        f"  train: [{{path: {json.dumps(folder)}, holdout: 0.01}}]",
        "```",
    )
    yield from ("", "## Sources", "", "| source | revision | licence | documents | text | in the output |", _rule(6))
    for source in card["sources"]:
        counts = source["counts"]
        cells = (_cell(source["name"]), _revision(source["fingerprint"]), _cell(source["license"] or "not stated"))
        kept = f"{counts['kept']:,} ({_share(counts['kept'], counts['documents'])})"
        yield _row(*cells, f"{counts['documents']:,}", format_bytes(counts["bytes"]), kept)
    yield from _unread(card["sources"])
    yield from ("", "## Steps", "", "| step | documents | removed | share | text removed | changed |", _rule(6))
    for number, step in enumerate(card["steps"], 1):
        counts_ = step["counts"]
        share = _share(counts_["removed"], counts_["documents"])
        size = format_bytes(counts_["removed_bytes"])
        numbers = (f"{counts_['documents']:,}", f"{counts_['removed']:,}", share, size, f"{counts_['changed']:,}")
        yield _row(f"{number}. {step['name']}", *numbers)
    for number, step in enumerate(card["steps"], 1):
        yield from _step(number, step)
    yield from ("", "## Versions", "")
    yield ", ".join(f"{name} {version}" for name, version in card["versions"].items()) + f"; build {card['build'][:16]}"


def _unread(sources: Sequence[CardSource]) -> Iterator[str]:
    for source in sources:
        counts = source["counts"]
        if counts["unusable"] or counts["empty"] or counts["repaired"]:
            told = f"{counts['unusable']} rows could not be read, {counts['repaired']} were repaired"
            named = f" ({_cell('; '.join(counts['named']))})" if counts["named"] else ""
            yield from ("", f"{_cell(source['name'])}: {told}{named}; {counts['empty']} were empty.")


def _step(number: int, step: CardStep) -> Iterator[str]:
    yield from ("", f"### {number}. {step['name']}", "", f"`{json.dumps(step['parameters'], ensure_ascii=False)}`")
    if step["clusters"] is not None:
        yield from ("", f"{step['clusters']:,} documents stay for those that are like them.")
    counts = step["counts"]
    if counts["reasons"]:
        yield from ("", "| reason | documents |", _rule(2))
        yield from (_row(_cell(reason), f"{count:,}") for reason, count in counts["reasons"].items())
    for example in counts["examples"]:
        yield from ("", f"- {_cell(example['source'])}, {_cell(example['reason'])}: {_cell(example['text'])}")
        if example["kept"] is not None:
            yield f"  - like: {_cell(example['kept'])}"


def _revision(fingerprint: Mapping[str, object]) -> str:
    for name in ("revision", "names_and_sizes_sha256", "sha256"):
        if fingerprint.get(name):
            return f"`{str(fingerprint[name])[:12]}`"
    return "-"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def _cell(text: Any) -> str:
    """Text within a line of Markdown, which must not change the page."""
    one_line = " ".join(str(text).split())
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#" else character for character in one_line)
