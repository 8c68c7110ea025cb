"""From the bytes of an image to a tensor: decoding, geometry, augmentation, normalisation.

Images stay integers from 0 to 255 until the last step, so that evaluation matches the image processors of transformers.

    C: channels, H, W: height and width of the model's input, h, w: height and width of the image that was read
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from shardyard.data.tables.opened import read_remote
from shardyard.errors import DataError, UnusableRowError
from shardyard.recipe import schema
from shardyard.recipe.image_shape import image_shape

Pixels = npt.NDArray[np.uint8]
Tensor = npt.NDArray[np.float32]

_MODES = {1: "L", 3: "RGB"}
# Aspect ratio of a random crop: Szegedy et al. 2015 (Going Deeper with Convolutions), section 6.
_CROP_RATIOS = (3 / 4, 4 / 3)
_CROP_TRIES = 10
# The values of white that images of 32 bits or floats are written with.
_WHITES = (1.0, 255.0, 65535.0, 2.0**31 - 1, 2.0**32 - 1)
# Area and aspect ratio of an erased rectangle: Zhong et al. 2017 (Random Erasing Data Augmentation), section 3.
_ERASED_AREA = (0.02, 0.33)
_ERASED_RATIOS = (0.3, 1 / 0.3)
# Pillow's exceptions for invalid or truncated images.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class ImageTransform:
    """Transforms images of any size to tensors of one shape.

    Evaluation: the shorter side is resized (bicubic, antialiased) and the centre cropped; if the model's height and
    width differ, the whole image is resized to them. Training, in this order and each as set in the recipe's section:
    random resized crop, rotation, crop with padding, flip, erasing. Padding and areas uncovered by rotation are black
    (0); erased areas are 0 after normalisation.

    Args:
        settings: the recipe's section.
        size: (H, W).
        channels: 1 (grey) or 3 (RGB); images are converted.

    Raises:
        DataError: the number of channels is unsupported, or `mean` and `std` do not match it.
    """

    def __init__(self, settings: schema.Image, *, size: tuple[int, int], channels: int) -> None:
        if channels not in _MODES:
            raise DataError(
                f"the model takes images of {channels} channels, and images have 1 (grey) or 3 (RGB); set "
                "num_channels in model.config to one of these."
            )
        self.settings, self.size, self.channels = settings, size, channels
        self.mean, self.std = (_per_channel(getattr(settings, name), channels, name) for name in ("mean", "std"))
        values = np.arange(256, dtype=np.float64) / 255
        tables = [(values - mean) / std for mean, std in zip(self.mean, self.std, strict=True)]
        self._normalised = np.stack(tables).astype(np.float32)  # [C, 256]

    @classmethod
    def for_model(cls, settings: schema.Image, config: Any) -> ImageTransform:
        """The transform for a transformers configuration (of its vision part, if it has several)."""
        channels, height, width = image_shape(settings, config)
        return cls(settings, size=(height, width), channels=channels)

    def tensor(self, value: Any, generator: np.random.Generator | None) -> Tensor:
        """One image, normalised: float32 [C, H, W].

        Args:
            value: the struct {bytes, path} of `datasets`, bytes of a file, or an image of Pillow.
            generator: for augmentation; None for evaluation, without augmentation.

        Raises:
            UnusableRowError: the image cannot be decoded.
        """
        image = decoded(value, _MODES[self.channels], self.settings)
        if generator is None:
            return self._normalise(_pixels(self._centre(image)))
        return self._augmented(image, generator)

    def _augmented(self, image: Image.Image, generator: np.random.Generator) -> Tensor:
        settings = self.settings
        image = self._random_crop(image, generator) if settings.min_scale < 1 else self._centre(image)
        if settings.rotate:
            angle = generator.uniform(-settings.rotate, settings.rotate)
            image = image.rotate(angle, Image.Resampling.BILINEAR)
        pixels = _pixels(image)
        if settings.crop_padding:
            pixels = _shifted(pixels, settings.crop_padding, generator)
        if settings.flip and generator.random() < 0.5:
            pixels = pixels[:, ::-1]
        tensor = self._normalise(pixels)
        if settings.erase and generator.random() < settings.erase:
            _erase(tensor, generator)
        return tensor

    def _centre(self, image: Image.Image) -> Image.Image:
        """The centre crop, as in evaluation."""
        height, width = self.size
        if image.size == (width, height):
            return image
        if height != width:
            return image.resize((width, height), Image.Resampling.BICUBIC)
        w, h = image.size
        short, long = min(w, h), max(w, h)
        longer = int(width * long / short)
        resized = (width, longer) if w <= h else (longer, height)
        image = image.resize(resized, Image.Resampling.BICUBIC) if resized != image.size else image
        left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
        return image.crop((left, top, left + width, top + height))

    def _random_crop(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """A crop of random area and aspect ratio, resized; the centre crop if none fits in ten attempts."""
        w, h = image.size
        for _ in range(_CROP_TRIES):
            area = w * h * generator.uniform(self.settings.min_scale, 1.0)
            ratio = _ratio(_CROP_RATIOS, generator)
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width <= w and 0 < height <= h:
                left, top = int(generator.integers(w - width + 1)), int(generator.integers(h - height + 1))
                box = (left, top, left + width, top + height)
                return image.resize(self.size[::-1], Image.Resampling.BICUBIC, box=box)
        return self._centre(image)

    def _normalise(self, pixels: Pixels) -> Tensor:
        """(value / 255 - mean) / std from a table; [H, W] or [H, W, C] → [C, H, W]."""
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        tensor = np.empty(planes.shape, np.float32)
        for channel, plane in enumerate(planes):
            np.take(self._normalised[channel], plane, out=tensor[channel], mode="clip")
        return tensor


def decoded(value: Any, mode: str, settings: schema.Image | None = None) -> Image.Image:
    """An image in mode `L` or `RGB`, turned upright by its EXIF orientation.

    Args:
        settings: what stands behind transparent images, and which value is white in those of more than 8 bits.

    Raises:
        UnusableRowError: the image is invalid or truncated, or holds values that are no numbers.
    """
    settings = settings or schema.Image()
    try:
        image = value if isinstance(value, Image.Image) else Image.open(_file(value))
        image.load()
        if "exif" in image.info or image.format in ("TIFF", "MPO"):
            image = ImageOps.exif_transpose(image)
        return _converted(image, mode, settings)
    except _BROKEN as error:
        raise UnusableRowError(f"{_name(value)} cannot be decoded", _first_line(error)) from error


def _file(value: Any) -> Any:
    """The input for Pillow: a buffer of the bytes, or the path if there are none."""
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return io.BytesIO(value)
    if isinstance(value, str) and value:
        return io.BytesIO(read_remote(value)) if "://" in value else value
    raise ValueError("there are neither bytes nor a path")


def _converted(image: Image.Image, mode: str, settings: schema.Image) -> Image.Image:
    if image.mode[0] in "IF":
        # Pillow would clip the values at 255.
        image = Image.fromarray(_to_bytes(np.asarray(image), settings.white_level))
    elif image.has_transparency_data and settings.background is not None:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", image.size, settings.background)
        image.alpha_composite(layer)
        image = image.convert("RGB")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _to_bytes(values: npt.NDArray[Any], white: float | None) -> Pixels:
    """Values of 16 or 32 bits, or floats, as 0 to 255.

    Args:
        white: the value of white. Default: 65535 for 16 bits, else the smallest of 1 (floats only), 255, 65535, 2³¹ - 1
            and 2³² - 1 that no value exceeds.
    """
    if values.dtype == np.uint16 and white is None:
        return (values >> 8).astype(np.uint8)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are no numbers")
    whites = _WHITES if values.dtype.kind == "f" else _WHITES[1:]
    largest = float(values.max(initial=0))
    white = white or next((level for level in whites if largest <= level), largest)
    return np.clip(np.rint(values.astype(np.float64) * (255 / white)), 0, 255).astype(np.uint8)


def _name(value: Any) -> str:
    """A description by which to find the image."""
    if isinstance(value, dict) and value.get("path"):
        return f"the image {value['path']!r}"
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes):
        return f"an image of {len(data)} bytes (SHA-256 {hashlib.sha256(data).hexdigest()[:16]}…)"
    return "an image"


def _first_line(error: BaseException) -> str:
    # Pillow identifies the buffer by its address, which is useless in a message.
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return "no known format" if "cannot identify" in text else text


def _pixels(image: Image.Image) -> Pixels:
    """[H, W] or [H, W, 3]."""
    return np.asarray(image)


def _shifted(pixels: Pixels, padding: int, generator: np.random.Generator) -> Pixels:
    """The pixels padded with black on all sides and cropped to their size at a random position."""
    height, width = pixels.shape[:2]
    padded = np.zeros((height + 2 * padding, width + 2 * padding, *pixels.shape[2:]), np.uint8)
    padded[padding : padding + height, padding : padding + width] = pixels
    top, left = generator.integers(2 * padding + 1, size=2)
    return padded[top : top + height, left : left + width]


def _erase(tensor: Tensor, generator: np.random.Generator) -> None:
    """Set a random rectangle to 0, in place; does nothing if none fits in ten attempts."""
    _, h, w = tensor.shape
    for _ in range(_CROP_TRIES):
        area = h * w * generator.uniform(*_ERASED_AREA)
        ratio = _ratio(_ERASED_RATIOS, generator)
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < height < h and 0 < width < w:
            top, left = int(generator.integers(h - height + 1)), int(generator.integers(w - width + 1))
            tensor[:, top : top + height, left : left + width] = 0
            return


def _ratio(bounds: tuple[float, float], generator: np.random.Generator) -> float:
    """Ratio of width to height, log-uniform, so that wide and tall are equally likely."""
    return math.exp(generator.uniform(math.log(bounds[0]), math.log(bounds[1])))


def _per_channel(values: list[float], channels: int, name: str) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise DataError(
            f"image.{name} has {len(values)} values for images of {channels} channels; give one for each channel, or "
            "one for all."
        )
    return tuple(values if len(values) == channels else values * channels)
