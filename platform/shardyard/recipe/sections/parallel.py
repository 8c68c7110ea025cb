"""How the ranks of a run share the work: the sizes of the parallel axes."""

from __future__ import annotations

from typing import Literal

from shardyard.recipe.sections.base import Section, described


class Parallel(Section):
    """`tensor` × `sequence` × `data` is the number of ranks (`cluster.workers`); see docs/large/parallel.md."""

    tensor: int = described(
        1,
        "Tensor-parallel size: consecutive ranks that share every matrix of a layer (DeepSpeed AutoTP) and read the "
        "same rows; 1 keeps the matrices whole.",
        "ranks",
        ge=1,
    )
    sequence: int = described(
        1,
        "Sequence-parallel size: ranks that share the tokens of every row (DeepSpeed Ulysses); 1 keeps rows whole.",
        "ranks",
        ge=1,
    )
    expert: int = described(
        1,
        "Expert-parallel size: ranks that share the experts of a layer (DeepSpeed AutoEP), among them those that share "
        "a row or its layers; 1 keeps all experts on each rank.",
        "ranks",
        ge=1,
    )
    data: int | Literal["rest"] = described(
        "rest",
        "Data-parallel size: ranks that read different rows; `rest` is what the other axes leave. A number is compared "
        "with the number of ranks.",
        "ranks",
    )
