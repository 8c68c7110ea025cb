"""From the tree of a query to SQL with parameters; user input never becomes part of a statement."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shardyard.dashboard.index.query import Both, Compare, Either, Node, Not, QueryError, Search, Value
from shardyard.suggest import nearest

# Fields of a run that are columns of the table `runs`, called r.
COLUMNS = {
    "state": "r.state",
    "name": "r.name",
    "id": "r.id",
    "recipe": "r.name",
    "sweep": "r.sweep",
    "step": "r.step",
    "total_steps": "r.total_steps",
    "age": "(:now - r.created)",
    "created": "r.created",
    "loss": "r.loss",
    "world_size": "r.world_size",
    "attempts": "r.attempts",
    "problem": "r.problem",
}
_TEXTS = frozenset({"state", "name", "id", "recipe", "sweep", "problem"})
STATISTICS = ("last", "best", "max", "smoothed")
PREFIXES = ("train", "eval", "perf", "memory", "moe")
# Names that any run may have, so that queries for them are valid even while no run has them.
USUAL = ("train/loss", "train/lr", "train/grad_norm", "train/tokens", "eval/validation/loss", "perf/tokens_per_second")
_MOST_PARAMETERS = 500


@dataclass
class Names:
    """The names usable in queries: metrics as named in files, and dotted paths of recipes."""

    metrics: Sequence[str]
    recipe: Sequence[str]


class Compiler:
    """Collects the parameters of one statement."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self.parameters: dict[str, object] = {}

    def where(self, tree: Node | None) -> str:
        """The condition of a query.

        Raises:
            QueryError: an unknown field.
        """
        if tree is None:
            return "1"
        if isinstance(tree, Both):
            return f"({self.where(tree.left)} AND {self.where(tree.right)})"
        if isinstance(tree, Either):
            return f"({self.where(tree.left)} OR {self.where(tree.right)})"
        if isinstance(tree, Not):
            # NULL counts as false, so its negation is true.
            return f"NOT COALESCE({self.where(tree.inner)}, 0)"
        if isinstance(tree, Search):
            text = self._parameter(_like(tree.text))
            return f"(r.id LIKE {text} ESCAPE '\\' OR r.name LIKE {text} ESCAPE '\\' OR r.tags LIKE {text} ESCAPE '\\')"
        return self._compare(tree)

    def value(self, field: str, statistic: str = "last", position: int = 0) -> str:
        """An expression for the value of a field of run r; NULL if the run has none.

        Raises:
            QueryError: an unknown field.
        """
        if field in COLUMNS:
            return COLUMNS[field]
        if field == "tag":
            return "r.tags"
        if field == "group":
            return "COALESCE(r.sweep, r.name)"
        if field == "eval.loss" and statistic == "last":
            return "r.eval_loss"
        if (path := _recipe_path(field)) is not None:
            self._known(path, self._names.recipe, field, position)
            name = self._parameter(path)
            return f"(SELECT f.value FROM fields f WHERE f.run = r.key AND f.path = {name})"
        names = ", ".join(self._parameter(name) for name in self._metrics(field, position))
        column = f"m.{statistic}"
        return f"(SELECT MIN({column}) FROM metrics m WHERE m.run = r.key AND m.name IN ({names}))"

    def _compare(self, tree: Compare) -> str:
        field, _, statistic = tree.field.partition(":")
        if statistic and statistic not in STATISTICS:
            raise QueryError(f"{statistic!r} is none of {', '.join(STATISTICS)}", tree.position, tree.field)
        if field == "tag":
            return self._tag(tree)
        if field == "group":
            return f"({self._either('r.sweep', tree, text=True)} OR {self._either('r.name', tree, text=True)})"
        expression = self.value(field, statistic or "last", tree.position)
        return self._either(expression, tree, text=field in _TEXTS)

    def _either(self, expression: str, tree: Compare, *, text: bool) -> str:
        operator = "=" if tree.operator == "in" else tree.operator
        conditions = [self._one(expression, operator, value, text=text) for value in tree.values]
        return f"({' OR '.join(conditions)})"

    def _one(self, expression: str, operator: str, value: Value, *, text: bool) -> str:
        if operator == "~":
            return f"CAST({expression} AS TEXT) LIKE {self._parameter(_like(_text(value)))} ESCAPE '\\'"
        if value is None:
            return f"{expression} IS {'NOT ' if operator == '!=' else ''}NULL"
        if text or isinstance(value, str | bool):
            # Queries are case-insensitive.
            return f"{expression} {operator} {self._parameter(_text(value))} COLLATE NOCASE"
        return f"{expression} {operator} {self._parameter(value)}"

    def _tag(self, tree: Compare) -> str:
        conditions = []
        for value in tree.values:
            # Tags are stored between line breaks, which distinguishes whole tags from parts.
            inner = _escaped(_text(value))
            pattern = f"%{inner}%" if tree.operator == "~" else f"%\n{inner}\n%"
            conditions.append(f"r.tags LIKE {self._parameter(pattern)} ESCAPE '\\'")
        found = f"({' OR '.join(conditions)})"
        if tree.operator not in ("=", "!=", "~", "in"):
            raise QueryError(f"tags have no order, so {tree.operator!r} means nothing", tree.position, "tag")
        return f"NOT {found}" if tree.operator == "!=" else found

    def _metrics(self, field: str, position: int) -> list[str]:
        known = {*self._names.metrics, *USUAL}
        exact = field.replace(".", "/")
        if field in known or exact in known:
            return [field if field in known else exact]
        prefix, _, rest = field.partition(".")
        if prefix == "eval" and rest:
            tail = rest.replace(".", "/")
            found = sorted(name for name in known if re.fullmatch(rf"eval/[^/]+/{re.escape(tail)}", name))
            validation = f"eval/validation/{tail}"
            if found:
                return [validation] if validation in found else found[:_MOST_PARAMETERS]
        self._known(exact, known, field, position)
        return [exact]

    def _known(self, name: str, known: Iterable[str], field: str, position: int) -> None:
        if name in (listed := list(known)):
            return
        candidates = [*COLUMNS, "tag", "group", "eval.loss", *map(dotted, {*self._names.metrics, *USUAL})]
        candidates += [f"recipe.{path}" for path in self._names.recipe]
        match = nearest(field, candidates)
        hint = f"did you mean {match!r}?" if match else "fields are state, name, tag, step, age, loss, eval.…, recipe.…"
        if not listed and field.startswith("recipe."):
            hint = "no recipe has been read yet"
        raise QueryError(f"there is no field {field!r}; {hint}", position, field, match)

    def _parameter(self, value: Any) -> str:
        if len(self.parameters) >= _MOST_PARAMETERS:
            raise QueryError("the query asks for too many values", 0)
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        return f":{name}"


def dotted(metric: str) -> str:
    """`eval/validation/loss` → `eval.validation.loss`, the form in queries."""
    return metric.replace("/", ".")


def _recipe_path(field: str) -> str | None:
    if not field.startswith("recipe."):
        return None
    # List items may be written in either form.
    return re.sub(r"\[(\d+)\]", r".\1", field.removeprefix("recipe."))


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return "" if value is None else str(value)


def _escaped(text: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", text)


def _like(text: str) -> str:
    return f"%{_escaped(text)}%"
