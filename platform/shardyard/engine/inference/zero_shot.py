"""Zero-shot classification: assigns an image to the class with the nearest name (Radford et al. 2021, section 3.1).

N: held-out images, C: classes, D: size of an embedding
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shardyard.data.formats.captions import Captions
from shardyard.data.stream.held_out import HeldOut, validation_sources
from shardyard.data.stream.rows import Row
from shardyard.engine.components import Components, held_out, make_components
from shardyard.engine.inference.load import DEFAULT_MICRO_BATCH, Trained
from shardyard.engine.standard_errors import of_share
from shardyard.engine.step import to_device
from shardyard.errors import DataError, UsageError
from shardyard.objectives.registry import objective_spec
from shardyard.objectives.scores import zero_shot_accuracy

NAME = "{}"
# What rows hold of an image.
_IMAGE = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


def measure_zero_shot(
    trained: Trained, column: str, templates: Sequence[str] = (NAME,), rows: int | None = None
) -> dict[str, object]:
    """The accuracy of classifying held-out images by the names of the classes.

    Args:
        column: column of the run's validation sources with the names of the classes.
        templates: sentences with `{}` for the name; a class is represented by the mean of their embeddings.
        rows: number of images; the recipe's by default.

    Returns:
        `zero_shot_accuracy`, baselines of guessing (`chance`, `most_frequent_class`), `classes`, `rows`.

    Raises:
        UsageError: the model has no common embedding space of images and texts, or a template has no `{}`.
        DataError: the column does not exist, or holds only one class.
    """
    recipe = trained.recipe
    if not objective_spec(recipe.objective).zero_shot:
        raise UsageError(
            f"--classes needs a model trained for contrastive; this one was trained for {recipe.objective}."
        )
    if recipe.model.module is not None:
        raise UsageError(f"--classes needs a model of transformers; this run trained {recipe.model.module}.")
    for template in templates:
        if template.count(NAME) != 1:
            raise UsageError(f"--prompt {template!r} needs one {NAME} where the name of a class goes.")
    # The class column replaces the caption, so the rows hold images and the names of their classes.
    update = {"validation": [_captioned_by(source, column) for source in validation_sources(recipe.data)]}
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=update)})
    components = make_components(recipe, tokenizer=trained.tokenizer, config=trained.model.config)
    held = held_out(recipe, components, rows)
    names = [tuple(row["input_ids"].tolist()) for row in held.rows]
    classes = sorted(set(names))
    if len(classes) < 2:
        raise DataError(f"the column {column} of the held-out rows has one class only; name another with --classes.")
    labels = torch.tensor([classes.index(name) for name in names])
    images = _embeddings(trained, components, held, held.rows)[0]
    texts = _class_texts(trained, components, held, classes, templates)
    (_, most), *_ = Counter(names).most_common(1)
    accuracy = zero_shot_accuracy(images, texts, labels)
    return {
        "zero_shot_accuracy": accuracy,
        "zero_shot_accuracy_stderr": of_share(accuracy, held.num_rows),
        "chance": 1 / len(classes),
        "most_frequent_class": most / len(names),
        "classes": len(classes),
        "rows": held.num_rows,
    }


def _captioned_by(source: Any, column: str) -> Any:
    return source.model_copy(update={"columns": {**source.columns, "text": column}, "weight": 1.0})


def _class_texts(
    trained: Trained,
    components: Components,
    held: HeldOut,
    classes: Sequence[tuple[int, ...]],
    templates: Sequence[str],
) -> Tensor:
    """Embeddings of the classes [C, D], each the mean over templates."""
    if not isinstance(held.format, Captions):
        raise UsageError(f"--classes needs rows of images with captions, not {type(held.format).__name__}.")
    named = {tuple(row["input_ids"].tolist()): row for row in held.rows}
    image, by_template = {name: held.rows[0][name] for name in _IMAGE if name in held.rows[0]}, []
    for template in templates:
        rows: list[Row] = []
        for ids in classes:
            name = trained.tokenizer.decode(ids, skip_special_tokens=True)
            text = named[ids] if template == NAME else held.format.text_row(template.replace(NAME, name))
            rows.append({**text, **image})
        by_template.append(_embeddings(trained, components, held, rows)[1])
    return torch.stack(by_template).mean(0)


def _embeddings(trained: Trained, components: Components, held: HeldOut, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Embeddings of images and of texts, [N, D] each, of length 1."""
    size = trained.recipe.train.micro_batch or DEFAULT_MICRO_BATCH
    pairs: list[Any] = []
    with torch.no_grad():
        for first in range(0, len(rows), size):
            batch = to_device(held.format.collate(rows[first : first + size]), trained.device)
            pairs += [
                pair.embeddings for pair in components.objective.collect(trained.model, batch, synchronised=False)
            ]
    images, texts = torch.from_numpy(np.stack(pairs)).chunk(2, dim=-1)
    return images, texts
