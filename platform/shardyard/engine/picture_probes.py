"""The probes of models that read pictures within text: nothing sees an answer before it, and padding changes nothing.

Rows are made by the recipe's own format, so that processor, collation and model are tried together. B: rows of a batch,
T: tokens of a row, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.stream.packing import IGNORED
from shardyard.data.stream.rows import Rows
from shardyard.engine.components import make_components
from shardyard.errors import ShardyardError
from shardyard.models.probes.narrow import Narrow, narrow_model
from shardyard.models.probes.tokens import TOLERANCE, moved, moved_by_rounding
from shardyard.objectives.registry import objective_spec
from shardyard.planning.findings import Findings
from shardyard.recipe.catalog.shipped import find_tokenizer_spec
from shardyard.recipe.schema import Recipe

# Texts and pictures of different sizes: the second row is the longer one. LLaVA's plain format takes one picture a row.
EXAMPLES: tuple[Mapping[str, object], Mapping[str, object]] = (
    {"prompt": "Colour?", "response": "red"},
    {"prompt": "Which colours are these, from left to right?", "response": "blue and green"},
)
_SIZES = ((40, 60), (60, 32))
_POSITIONS = 8192
# For tokens of the configuration that no row has, such as those of videos.
_SPARE_TOKENS = 64


@dataclass(frozen=True)
class Seen:
    """What the two probes found, as fractions of the logits' spread, and what rounding alone explains.

    ahead: how far the logits before a token of an answer move with it. padding: how far those of a row move with a
    longer row in its batch.
    """

    ahead: float
    padding: float
    tolerance: float


def probe_pictures(recipe: Recipe) -> Findings:
    """The findings for a model that reads pictures within text; none if tokenizer or weights are on a hub.

    Where attention goes both ways within a picture (Gemma 3) or over pictures and question (PaliGemma), that is left
    alone: what must not be seen before its time are answers.
    """
    asked = recipe.model.probes
    if not objective_spec(recipe.objective).sees or not (asked.causality or asked.padding) or not _is_here(recipe):
        return Findings()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # narrow copies are too small for more
    try:
        seen = _of_narrow_copy(recipe)
    except (ShardyardError, OSError) as error:
        what = "whether pictures or padding let it see answers is not known"
        return Findings(notices=(f"the model was not probed: {str(error)[:300]}; {what}",))
    finally:
        torch.set_num_threads(threads)
    return _findings(recipe, seen)


def _is_here(recipe: Recipe) -> bool:
    """Whether the tokenizer, and the processor of pretrained weights, are read without asking a hub."""
    folders = [name for name in (recipe.model.pretrained, recipe.tokenizer) if name is not None]
    return all(find_tokenizer_spec(name) is not None or Path(name).expanduser().exists() for name in folders)


def _of_narrow_copy(recipe: Recipe) -> Seen:
    components = make_components(recipe)
    rows = make_rows(recipe.objective, components.format_inputs)
    vocabulary = max(int(row["input_ids"].max()) for row in _rows(rows)) + _SPARE_TOKENS

    def reads_rows(narrow: Narrow) -> None:
        if not torch.isfinite(_logits(narrow.model, rows.collate(_rows(rows)))).all():
            raise ValueError("its logits are not finite")

    found = narrow_model(
        components.config,
        objective_spec(recipe.objective).auto_class,
        attention=None if (recipe.model.attention or "").startswith("flash") else recipe.model.attention,
        check=reads_rows,
        vocabulary=vocabulary,
        positions=_POSITIONS,
    )
    return look_at(found.model, components.format_inputs, recipe.objective)


def _findings(recipe: Recipe, seen: Seen) -> Findings:
    family, asked = recipe.model.label, recipe.model.probes
    if asked.causality and seen.ahead > seen.tolerance:
        refusal = (
            f"{family} is not causal: a changed token of an answer moves the logits before it by {seen.ahead:.1%} of "
            "their spread, so it would see what it has to write. Choose another family; "
            "`-s model.probes.causality=false` leaves this check out"
        )
        return Findings(refusals=(("model.family", refusal),))
    if asked.padding and seen.padding > seen.tolerance:
        notice = (
            f"padding is not without effect in {family}: a longer row in its batch moves the logits of a row by "
            f"{seen.padding:.1%} of their spread, so results depend on the other rows of a batch"
        )
        return Findings(notices=(notice,))
    return Findings()


def look_at(model: Any, inputs: FormatInputs, objective: str = "vision_language") -> Seen:
    """Both probes of a model in evaluation mode."""
    rows = make_rows(objective, inputs)
    short, long = _rows(rows)
    batch = rows.collate([short])
    before = _logits(model, batch)  # [1, T, V]
    answer = _answer(batch)
    ahead = max(moved(_logits(model, _changed(batch, at))[:, :at], before[:, :at]) for at in (answer[0], answer[-1]))
    together = _logits(model, rows.collate([short, long]))  # [2, T, V]
    padding = moved(together[:1, : before.shape[1]], before)
    if max(ahead, padding) <= TOLERANCE:
        return Seen(ahead, padding, TOLERANCE)
    return Seen(ahead, padding, max(TOLERANCE, moved_by_rounding(model, lambda: _logits(model, batch))))


def _rows(rows: Rows) -> list[Any]:
    generator = np.random.default_rng(0)
    pictures = (
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in _SIZES
    )
    return [
        rows.row({**example, "image": picture}, np.random.default_rng(0))  # type: ignore[attr-defined]
        for example, picture in zip(EXAMPLES, pictures, strict=True)
    ]


def _answer(batch: Mapping[str, Tensor]) -> list[int]:
    """Positions of the answer's tokens in the only row of a batch; the last token of the row is none of them."""
    targets = (batch["labels"][0] != IGNORED).nonzero().flatten() + 1
    return [int(at) for at in targets if at < batch["input_ids"].shape[1]]


def _changed(batch: Mapping[str, Tensor], at: int) -> dict[str, Tensor]:
    """The batch with another token at a position: one of the answer, which no processor treats in a special way."""
    ids = batch["input_ids"].clone()
    others = [int(ids[0, other]) for other in _answer(batch)]
    ids[0, at] = next((other for other in others if other != ids[0, at]), int(ids[0, at]) - 1)
    return {**batch, "input_ids": ids}


@torch.no_grad()
def _logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits [B, T, V]."""
    logits: Tensor = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False).logits
    return logits
