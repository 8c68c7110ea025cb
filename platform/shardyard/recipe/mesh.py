"""The mesh: the axes along which a run arranges its ranks, their sizes, and the groups of ranks. Pure numbers.

`engine/mesh.py` has the same mesh from the view of one rank, with process groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardyard.errors import Problem, RecipeError
from shardyard.recipe.schema import Recipe

# Axes that consist of others, outermost first. Experts are distributed over data-parallel ranks: ranks that share a
# layer's experts differ in `expert`, ranks that hold the same experts differ in `expert_data`.
_JOINED = {"data": ("expert_data", "expert")}


@dataclass(frozen=True)
class MeshShape:
    """Axes with their sizes, outermost first: consecutive ranks differ in the last one. A missing axis has size 1.

    The product of all sizes is `world`. Ranks with the same index along `data` read the same rows, whatever their
    index along other axes.
    """

    axes: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        """`data 8, expert 2`."""
        others = [name for name, size in self.axes if size > 1 and name != "expert_data"]
        return ", ".join(f"{name} {self.size(name)}" for name in ("data", *others))

    @property
    def world(self) -> int:
        """The number of all ranks."""
        return self.size("world")

    @property
    def data(self) -> int:
        """The data-parallel size: the number of ranks that read different rows. ZeRO shards over them."""
        return self.size("data")

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
        sizes = {f"{name}_parallel": size for name, size in self.axes if name != "expert_data"}
        return {"world_size": self.world, **sizes}

    def _members(self, axis: str) -> tuple[str, ...]:
        return tuple(name for name, _ in self.axes) if axis == "world" else _JOINED.get(axis, (axis,))

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
    inner = _inner_axes(recipe)
    rest, left = divmod(ranks, ranks_together(recipe))
    if left:
        parallel = recipe.model.experts.parallel
        fitting = ", ".join(str(size) for size in range(parallel - 1, 0, -1) if ranks % size == 0)
        message = (
            f"{ranks} rank(s) cannot be cut into groups of {parallel} that share experts; set it to {fitting}, "
            f"or train on a multiple of {parallel} ranks (cluster.workers)"
        )
        raise RecipeError("plan", [Problem("", "model.experts.parallel", message)])
    return MeshShape((("expert_data", rest), *inner))


def ranks_together(recipe: Recipe) -> int:
    """Number of consecutive ranks that exchange activations in every layer and therefore share a node."""
    return math.prod(size for _, size in _inner_axes(recipe))


def data_size(recipe: Recipe, ranks: int) -> int:
    """The data-parallel size of `ranks` ranks, for rules that apply whether or not the other axes divide them."""
    return ranks // math.prod(size for name, size in _inner_axes(recipe) if name not in _JOINED["data"])


def _inner_axes(recipe: Recipe) -> tuple[tuple[str, int], ...]:
    """The axes whose sizes a recipe sets, outermost first; the remaining factor of the ranks is `expert_data`."""
    return (("expert", recipe.model.experts.parallel),)
