"""Augmentation of pictures before a model's own processor prepares them."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from shardyard.recipe import schema


def augmented(picture: Image.Image, settings: schema.Image, generator: np.random.Generator) -> Image.Image:
    """A random part of the picture with its aspect ratio, rotated and flipped; uncovered areas are black."""
    if settings.min_scale < 1:
        side = math.sqrt(generator.uniform(settings.min_scale, 1.0))
        width, height = (max(1, round(edge * side)) for edge in picture.size)
        left, top = (
            int(generator.integers(whole - part + 1)) for whole, part in zip(picture.size, (width, height), strict=True)
        )
        picture = picture.crop((left, top, left + width, top + height))
    if settings.rotate:
        picture = picture.rotate(generator.uniform(-settings.rotate, settings.rotate), Image.Resampling.BILINEAR)
    if settings.flip and generator.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture
