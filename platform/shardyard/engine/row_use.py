"""How a step uses the positions of its rows: tokens without padding, and what cut documents lost."""

from __future__ import annotations

from collections.abc import Sequence

from shardyard.data.stream.loader import Batch
from shardyard.data.stream.use import text_positions
from shardyard.engine.mesh import Mesh
from shardyard.objectives.registry import objective_spec
from shardyard.objectives.spec import ObjectiveSpec
from shardyard.planning.plan import RunPlan
from shardyard.recipe.isolation import leaves_gaps
from shardyard.recipe.schema import Recipe
from shardyard.tracking.metrics import record as names

NUM_COUNTS = 4


class RowUse:
    """Counts of a step, which are summed over the ranks with the loss: `counts`, then `tokens` and `metrics`."""

    def __init__(self, recipe: Recipe, plan: RunPlan, mesh: Mesh) -> None:
        self._recipe, self._plan = recipe, plan
        self._spec: ObjectiveSpec = objective_spec(recipe.objective)
        # Ranks that read the same rows count once.
        self._copies = mesh.world.size / mesh.data.size
        self._sums: tuple[float, ...] = (0.0,) * NUM_COUNTS

    def counts(self, batch: Batch) -> list[float]:
        """What this rank adds: tokens, positions, documents that were cut, and tokens that this cost."""
        tokens, positions = text_positions(batch.micro_batches, batch.num_tokens)
        return [float(tokens), float(positions), float(batch.cuts.documents), float(batch.cuts.tokens)]

    def take(self, summed: Sequence[float]) -> None:
        """Take the sums of all ranks over a step."""
        assert len(summed) == NUM_COUNTS
        self._sums = tuple(value / self._copies for value in summed)

    def tokens(self, step: int) -> float:
        """Tokens of the step without padding. Patches of images and frames of sound are counted as the plan does."""
        stage = self._plan.stage_at(step)
        planned = float(self._plan.tokens_per_step if stage is None else stage.tokens_per_step)
        tokens, positions, *_ = self._sums
        if not positions:
            return planned
        if not {"image", "audio"} & set(self._spec.all_columns.values()):
            return tokens
        rows = self._recipe.train.global_batch if stage is None else stage.global_batch
        length = self._recipe.data.sequence_length if stage is None else stage.sequence_length
        return max(tokens, planned - rows * (length or 0) + tokens)

    def metrics(self) -> dict[str, float]:
        """The share of positions with tokens where rows are padded, and what cutting cost where it may happen."""
        tokens, positions, documents, lost = self._sums
        if not positions:
            return {}
        padded = self._spec.rows != "packed" or leaves_gaps(self._recipe)
        fill = {names.ROW_FILL: tokens / positions} if padded else {}
        return fill | {names.CUT_DOCUMENTS: documents, names.CUT_TOKENS: lost}
