"""The mesh: the axes along which a run arranges its ranks, their sizes, and the groups of ranks. Pure numbers.

`engine/mesh.py` has the same mesh from the view of one rank, with process groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardyard.errors import Problem, RecipeError
from shardyard.recipe.schema import Recipe

# Axes that consist of others, outermost first. Experts are distributed over data-parallel ranks: ranks that share a
# layer's experts differ in `expert`, ranks that hold the same experts differ in `expert_data`. Where ranks share rows
# or layers as well, those that do share experts too: `expert` then consists of `expert_rows` and the axes within.
_JOINED = {
    "data": ("expert_data", "expert", "expert_rows"),
    "zero": ("expert_data", "expert", "expert_rows", "sequence"),
}
# The axes whose sizes a recipe gives.
_GIVEN = ("expert", "sequence", "tensor")
# GPUs of a usual node. Groups of experts that are larger span nodes.
USUAL_NODE = 8


@dataclass(frozen=True)
class MeshShape:
    """Axes with their sizes, outermost first: consecutive ranks differ in the last one. A missing axis has size 1.

    The product of all sizes is `world`. Ranks with the same index along `data` read the same rows, whatever their
    index along other axes.
    """

    axes: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        """`data 8, expert 2`."""
        others = [name for name in _GIVEN if self.size(name) > 1]
        return ", ".join(f"{name} {self.size(name)}" for name in ("data", *others))

    @property
    def world(self) -> int:
        """The number of all ranks."""
        return self.size("world")

    @property
    def data(self) -> int:
        """The data-parallel size: the number of ranks that read different rows."""
        return self.size("data")

    @property
    def zero(self) -> int:
        """Number of ranks that hold the same weights: those along `data` and `sequence`. ZeRO shards over them."""
        return self.size("zero")

    @property
    def tensor(self) -> int:
        """Number of ranks that share the matrices of a layer."""
        return self.size("tensor")

    @property
    def sequence(self) -> int:
        """Number of ranks that share the tokens of a row."""
        return self.size("sequence")

    @property
    def expert(self) -> int:
        """Number of data-parallel ranks that share the experts of a layer."""
        return self.size("expert")

    def size(self, axis: str) -> int:
        """Number of ranks along an axis; `world` stands for all axes together."""
        return math.prod(size for name, size in self.axes if name in self._members(axis))

    def index(self, axis: str, rank: int) -> int:
        """The index of a rank along an axis, from 0."""
        index = 0
        for (name, size), place in zip(self.axes, self._places(rank), strict=True):
            if name in self._members(axis):
                index = index * size + place
        return index

    def ranks(self, axis: str, rank: int) -> tuple[int, ...]:
        """The group of `rank` along an axis: the ranks that differ from it only along this axis, in index order."""
        return next(group for group in self.groups(axis) if rank in group)

    def groups(self, axis: str) -> list[tuple[int, ...]]:
        """All groups along an axis. Each rank is in exactly one of them."""
        members, found = self._members(axis), dict[tuple[int, ...], list[int]]()
        for rank in range(self.world):
            places = zip(self.axes, self._places(rank), strict=True)
            others = tuple(place for (name, _), place in places if name not in members)
            # Among ranks that differ only along this axis, a larger rank has a larger index.
            found.setdefault(others, []).append(rank)
        return [tuple(group) for group in found.values()]

    def same_data(self, rank: int) -> tuple[int, ...]:
        """The ranks that read the same rows as `rank`, including itself."""
        index = self.index("data", rank)
        return tuple(other for other in range(self.world) if self.index("data", other) == index)

    def layout(self) -> dict[str, int]:
        """The sizes that determine the files of a checkpoint, by their names in the manifest."""
        return {"world_size": self.world, **{f"{name}_parallel": self.size(name) for name in _GIVEN}}

    def _members(self, axis: str) -> tuple[str, ...]:
        names = tuple(name for name, _ in self.axes)
        if axis == "world":
            return names
        if axis == "expert" and "expert_rows" in names:
            return ("expert_rows", "sequence", "tensor")
        return _JOINED.get(axis, (axis,))

    def _places(self, rank: int) -> list[int]:
        """The index of a rank along each of `axes`."""
        assert 0 <= rank < self.world, f"rank {rank} of {self.world}"
        places = []
        for _, size in reversed(self.axes):
            rank, place = divmod(rank, size)
            places.append(place)
        return places[::-1]


def data_mesh(ranks: int) -> MeshShape:
    """Pure data parallelism: each rank reads different rows and holds the whole model or its shard."""
    return MeshShape((("expert_data", ranks), ("expert", 1)))


def mesh_shape(recipe: Recipe, ranks: int) -> MeshShape:
    """The mesh in which a recipe arranges `ranks` ranks.

    Raises:
        RecipeError: the sizes of its axes do not divide `ranks`.
    """
    problem = size_problem(recipe, ranks)
    if problem is not None:
        raise RecipeError("plan", [Problem("", *problem)])
    parallel = recipe.parallel
    inner = parallel.sequence * parallel.tensor
    within = [axis for axis in (("sequence", parallel.sequence), ("tensor", parallel.tensor)) if axis[1] > 1]
    if inner > 1 and parallel.expert > 1:
        rows = parallel.expert // inner
        return MeshShape((("expert_data", ranks // parallel.expert), ("expert_rows", rows), *within))
    return MeshShape((("expert_data", ranks // inner // parallel.expert), ("expert", parallel.expert), *within))


def size_problem(recipe: Recipe, ranks: int) -> tuple[str, str] | None:
    """The field whose size does not divide `ranks`, and why; None if all do."""
    parallel = recipe.parallel
    within = parallel.tensor * parallel.sequence
    if ranks % within:
        name = "tensor" if parallel.tensor > 1 else "sequence"
        own, other = getattr(parallel, name), within // getattr(parallel, name)
        return f"parallel.{name}", _uncut(ranks, own, other, "that share a layer" if name == "tensor" else "of a row")
    data = ranks // within
    if ranks % parallel.expert:
        return "parallel.expert", _uncut(ranks, parallel.expert, 1, "that share experts")
    if parallel.expert > 1 and parallel.expert % within:
        fitting = ", ".join(str(n) for n in range(within, ranks + 1, within) if ranks % n == 0)
        message = f"{within} ranks share a row or its layers, and so they share experts too"
        return "parallel.expert", f"{message}; set it to one of {fitting}, or to 1"
    if parallel.data not in ("rest", data):
        message = f"is {parallel.data}, but {ranks} ranks / {within} leave {data}; set it to {data} or rest, or train "
        return "parallel.data", f"{message}on {int(parallel.data) * within} ranks (cluster.workers)"
    return None


def _uncut(ranks: int, size: int, other: int, what: str) -> str:
    group = size * other
    fitting = ", ".join(str(n) for n in range(size - 1, 0, -1) if ranks % (n * other) == 0)
    advice = f"set it to {fitting}, or " if fitting else ""
    return (
        f"{ranks} rank(s) cannot be cut into groups of {group} {what}; {advice}train on a multiple of {group} ranks "
        "(cluster.workers)"
    )


def ranks_together(recipe: Recipe) -> int:
    """Number of consecutive ranks that exchange activations in every layer and therefore share a node.

    Experts that more ranks share than a usual node has GPUs lie on several nodes.
    """
    within = recipe.parallel.tensor * recipe.parallel.sequence
    together = max(within, recipe.parallel.expert)
    return together if together <= USUAL_NODE else within


def together_in_words(recipe: Recipe) -> str:
    """`4 ranks share the experts of a layer (parallel.expert)`."""
    parallel, group = recipe.parallel, ranks_together(recipe)
    named = [name for name in ("tensor", "sequence") if getattr(parallel, name) > 1]
    if parallel.expert > 1 and group > parallel.tensor * parallel.sequence:
        named.append("expert")
    what = (
        "the experts of a layer"
        if named == ["expert"]
        else "the tokens of a row"
        if named == ["sequence"]
        else ("every layer")
    )
    return f"{group} ranks share {what} ({' × '.join(f'parallel.{name}' for name in named)})"


def data_size(recipe: Recipe, ranks: int) -> int:
    """The data-parallel size of `ranks` ranks, for rules that apply whether or not the other axes divide them."""
    return max(1, ranks // (recipe.parallel.tensor * recipe.parallel.sequence))
