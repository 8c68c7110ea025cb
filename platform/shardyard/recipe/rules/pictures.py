"""Rules for pictures: who makes the rows of those within text, what that leaves of `image`, and where masks count."""

from __future__ import annotations

from collections.abc import Iterator

from shardyard.objectives.registry import objective_spec
from shardyard.recipe.fields import Path
from shardyard.recipe.image_shape import PATCHED
from shardyard.recipe.image_tokens import uses_own_processor
from shardyard.recipe.schema import Chat, Image, Recipe

# Row formats of whole pictures.
_WHOLE = frozenset({"labelled_images", "captions", "image_answers"})

Finding = tuple[Path, str]

# Changes to pixels at the size of the model's input, which only its processor knows.
_AT_THE_END = ("crop_padding", "erase")


def picture_rules(recipe: Recipe) -> Iterator[Finding]:
    """All findings about the section `image`."""
    image = recipe.image
    yield from _masks(recipe)
    if objective_spec(recipe.objective).rows == "captions" and recipe.model.family in PATCHED:
        for name in ("size", *_AT_THE_END):
            if getattr(image, name):
                yield ("image", name), f"does nothing in {recipe.model.family}, which takes pictures of any shape"
    if not objective_spec(recipe.objective).sees:
        for name in ("processor", "options"):
            if getattr(image, name) != Image.model_fields[name].get_default(call_default_factory=True):
                yield ("image", name), f"is for vision_language; {recipe.objective} does not read it, so take it out"
        return
    if recipe.model.module is not None:
        return
    if uses_own_processor(recipe.model, image):
        for name in _AT_THE_END:
            if getattr(image, name):
                yield ("image", name), "does nothing where the model's own processor makes the rows; take it out"
    else:
        if recipe.model.family != "llava":
            yield ("image", "processor"), f"plain is the format of llava, and the family is {recipe.model.family}"
        if recipe.chat != Chat():
            yield (
                ("chat",),
                "does nothing in LLaVA's plain format, which has no chat template; set image.processor: model",
            )
        if image.options:
            yield ("image", "options"), "are arguments of the model's own processor; set image.processor: model, too"


def _masks(recipe: Recipe) -> Iterator[Finding]:
    """Masks of pictures that nothing reads."""
    rows = objective_spec(recipe.objective).rows
    for name in ("mask_ratio", "mask_size"):
        if getattr(recipe.image, name) == Image.model_fields[name].get_default():
            continue
        if rows in _WHOLE:
            yield ("image", name), f"is for masked_image; {recipe.objective} masks nothing, so take it out"
        elif recipe.model.family == "vit_mae":
            yield ("image", name), "is not for vit_mae, which masks model.config.mask_ratio of the patches; take it out"
