"""Layouts of conversations, pairs and pictures with text, recognised by their columns: ShareGPT, Alpaca, … Pure.

A layout maps roles to columns. The first layout whose required roles all have a column is used; `columns` of a source
maps roles to columns with other names, and so also chooses between layouts. `data/sources/layouts.py` converts the
values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from shardyard.objectives.registry import objective_spec
from shardyard.recipe.catalog.datasets import DATASETS
from shardyard.recipe.schema import Recipe
from shardyard.recipe.seen_columns import seen_columns

LayoutKind = Literal["conversations", "pairs", "pictures"]


@dataclass(frozen=True)
class Layout:
    """A layout: role → usual names of its column, for roles that it needs and for those that it uses if present."""

    name: str
    needed: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def roles(self) -> tuple[str, ...]:
        """All roles."""
        return (*self.needed, *self.optional)

    def columns(self, has: Callable[[str], bool], mapping: Mapping[str, str]) -> dict[str, str] | None:
        """Role → column; None if a needed role has no column, or `mapping` names a role of another layout.

        Args:
            has: whether a column exists.
            mapping: role → column, from the recipe.
        """
        if not mapping.keys() <= set(self.roles):
            return None
        found: dict[str, str] = {}
        for role, usual in {**self.needed, **self.optional}.items():
            names = (mapping[role],) if role in mapping else usual
            column = next((name for name in names if has(name)), None)
            if column is not None:
                found[role] = column
            elif role in self.needed or role in mapping:
                return None
        return found


_TALKS = ("conversations", "conversation", "dialogue", "dialog", "turns")
_SYSTEM: dict[str, tuple[str, ...]] = {"system": ("system", "system_prompt")}
_TOOLS: dict[str, tuple[str, ...]] = {
    "tools": ("tools", "functions"),
    "documents": ("documents",),
    "chat_template_kwargs": ("chat_template_kwargs",),
}

_ASKED: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "query"),
    "response": ("response", "answer", "completion"),
}

# The first of each kind has the roles of the objective itself.
LAYOUTS: Mapping[LayoutKind, tuple[Layout, ...]] = {
    "conversations": (
        Layout("messages", {"messages": ("messages",)}, _SYSTEM | _TOOLS),
        Layout("ShareGPT", {"conversations": _TALKS}, _SYSTEM | _TOOLS),
        Layout(
            "Alpaca",
            {"instruction": ("instruction",), "output": ("output", "response")},
            {"input": ("input", "context"), "history": ("history",)} | _SYSTEM,
        ),
        Layout(
            "prompt–completion",
            {"prompt": ("prompt", "question", "query"), "completion": ("completion", "response", "answer")},
            _SYSTEM | _TOOLS,
        ),
    ),
    "pairs": (
        Layout(
            "prompt with two answers",
            {
                "prompt": ("prompt", "question", "instruction", *_TALKS),
                "chosen": ("chosen", "chosen_response"),
                "rejected": ("rejected", "rejected_response"),
            },
            _SYSTEM | _TOOLS,
        ),
        Layout("two conversations", {"chosen": ("chosen",), "rejected": ("rejected",)}, _SYSTEM | _TOOLS),
    ),
    "pictures": (
        Layout("a picture, prompt and response", {"image": ("image",)} | _ASKED),
        Layout("pictures, prompt and response", {"images": ("images",)} | _ASKED),
        Layout("pictures and messages", {"images": ("images", "image"), "messages": ("messages",)}, _SYSTEM | _TOOLS),
        Layout(
            "pictures and ShareGPT",
            {"images": ("images", "image"), "conversations": _TALKS},
            _SYSTEM | _TOOLS,
        ),
        Layout("messages that hold pictures", {"messages": ("messages",)}, _SYSTEM | _TOOLS),
    ),
}


@dataclass(frozen=True)
class Chosen:
    """A layout and its columns, role → column."""

    layout: Layout
    columns: Mapping[str, str]

    def describe(self) -> str:
        """`ShareGPT (conversations)`; columns with another name than their role as `completion: answer`."""
        named = (role if role == column else f"{role}: {column}" for role, column in self.columns.items())
        return f"{self.layout.name} ({', '.join(named)})"


def choose(kind: LayoutKind, has: Callable[[str], bool], mapping: Mapping[str, str]) -> Chosen | None:
    """The first layout of a kind that fits, see `Layout.columns`."""
    fitting = ((layout, layout.columns(has, mapping)) for layout in LAYOUTS[kind])
    return next((Chosen(layout, columns) for layout, columns in fitting if columns is not None), None)


def roles_of(kind: LayoutKind) -> tuple[str, ...]:
    """The roles of all layouts of a kind."""
    return tuple(dict.fromkeys(role for layout in LAYOUTS[kind] for role in layout.roles))


def explain_unknown(kind: LayoutKind, objective: str, seen: Iterable[str], mapping: Mapping[str, str]) -> str:
    """Why no layout fits the columns `seen`, and how to map them."""
    layouts = "; ".join(f"{' and '.join(layout.needed)} ({layout.name})" for layout in LAYOUTS[kind])
    columns = list(seen)
    mapped = ", ".join(f"{role}: {column}" for role, column in mapping.items())
    given = f" with columns: {{{mapped}}}" if mapping else ""
    fitting = (layout.needed for layout in reversed(LAYOUTS[kind]) if len(layout.needed) <= len(columns))
    needed = next(fitting, LAYOUTS[kind][0].needed)
    example = ", ".join(f"{role}: {column}" for role, column in zip(needed, columns, strict=False))
    return (
        f"has the columns {', '.join(columns)}, of which {objective} recognises no layout{given}. It reads {layouts}. "
        f"Map your columns to such roles with `columns`, for example {{{example}}}"
    )


def recognised(recipe: Recipe) -> str:
    """The layouts of the sources that can be seen from here: `train.jsonl: ShareGPT (conversations)`; "" if none."""
    kind = objective_spec(recipe.objective).layouts
    if kind is None:
        return ""
    found = dict[str, str]()
    for source in (*recipe.data.train, *recipe.data.validation):
        dataset = DATASETS.get(source.source or "")
        columns = list(dataset.columns) if dataset is not None else seen_columns(source.path or "")
        chosen = choose(kind, columns.__contains__, source.columns)
        if chosen is not None:
            found[(source.source or source.path or "").rpartition("/")[2]] = chosen.describe()
    return "; ".join(f"{name}: {layout}" for name, layout in found.items())
