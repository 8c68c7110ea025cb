"""Images become the tensors that torchvision's rules and transformers' image processors give, or an error says why
not."""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, CLIPConfig, ResNetConfig, SwinConfig, ViTConfig

from shardyard.data.media.images import ImageTransform, decoded
from shardyard.data.media.processors import image_processor, make_processor
from shardyard.errors import DataError, UnusableRowError
from shardyard.recipe import schema
from support.images import png

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
PLAIN = {"mean": [0.0], "std": [1.0]}


def images(size: int | tuple[int, int] = 8, channels: int = 1, **fields: Any) -> ImageTransform:
    shape = (size, size) if isinstance(size, int) else size
    return ImageTransform(schema.Image(**{**PLAIN, **fields}), size=shape, channels=channels)


def noise(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    pixels = noise(8, 8)
    tensor = images(mean=[0.5], std=[0.25]).tensor(png(pixels), None)
    assert tensor.shape == (1, 8, 8)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[0], (pixels / 255 - 0.5) / 0.25, atol=1e-6)


def test_every_form_of_a_value_gives_the_same(tmp_path: Path) -> None:
    data = png(noise(8, 8))
    (tmp_path / "a.png").write_bytes(data)
    forms = [
        data,
        {"bytes": data, "path": None},
        {"bytes": data, "path": "inside-an-archive.png"},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        Image.open(io.BytesIO(data)),
    ]
    first, *others = (images().tensor(form, None) for form in forms)
    assert all(np.array_equal(first, other) for other in others)


def test_grey_and_colour_are_converted() -> None:
    grey, colour = noise(8, 8), noise(8, 8, 3)
    assert np.array_equal(*images(channels=3).tensor(png(grey), None)[:2])
    luma = colour @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(images().tensor(png(colour), None)[0], luma, atol=1.5 / 255)


def test_palettes_transparency_and_sixteen_bits() -> None:
    grey = noise(8, 8)
    palette = Image.fromarray(noise(8, 8, 3)).convert("P")
    palette.info["transparency"] = bytes(range(256))
    layer = palette.convert("RGBA")
    white = Image.new("RGBA", layer.size, "#ffffff")
    expected = np.asarray(Image.alpha_composite(white, layer).convert("RGB")).transpose(2, 0, 1) / 255
    data = encoded(palette, "png", transparency=palette.info["transparency"])
    np.testing.assert_allclose(images(channels=3).tensor(data, None), expected, atol=1e-6)
    deep = encoded(Image.fromarray(grey.astype(np.uint16) * 257), "png")
    np.testing.assert_allclose(images().tensor(deep, None)[0], grey / 255, atol=1e-6)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_images_are_turned_upright(kind: str) -> None:
    upright = np.zeros((16, 16), np.uint8)
    upright[:8] = 255
    lying = Image.fromarray(upright).rotate(90)  # counter-clockwise, so that orientation 6 turns it back
    exif = Image.Exif()
    exif[0x0112] = 6
    tensor = images(16).tensor(encoded(lying, kind, exif=exif.tobytes()), None)
    np.testing.assert_allclose(tensor[0], upright / 255, atol=0.1)


def test_the_shorter_side_is_resized_and_the_centre_cut_out() -> None:
    image = Image.fromarray(noise(20, 33, 3))
    resized = np.asarray(image.resize((int(12 * 33 / 20), 12), Image.Resampling.BICUBIC))
    left = (resized.shape[1] - 12) // 2
    tensor = images(12, 3).tensor(encoded(image, "png"), None)
    np.testing.assert_allclose(tensor, resized[:, left : left + 12].transpose(2, 0, 1) / 255, atol=1e-6)


def test_a_model_that_is_not_square_gets_the_whole_image() -> None:
    image = Image.fromarray(noise(20, 20))
    expected = np.asarray(image.resize((16, 8), Image.Resampling.BICUBIC)) / 255
    np.testing.assert_allclose(images((8, 16)).tensor(encoded(image, "png"), None)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "size", "channels"),
    [
        ((28, 28), 28, 1),
        ((50, 41), 28, 1),
        ((50, 41, 3), 32, 3),
        ((20, 33, 3), 24, 3),
        ((300, 401, 3), 224, 3),
        ((20, 33, 3), (16, 24), 3),
    ],
)
def test_the_exported_processor_gives_the_tensor_of_an_evaluation(
    shape: tuple[int, ...], size: int | tuple[int, int], channels: int
) -> None:
    ours = images(size, channels, **(IMAGENET if channels == 3 else {"mean": [0.286], "std": [0.353]}))
    image = Image.fromarray(noise(*shape))
    with tempfile.TemporaryDirectory() as folder:
        image_processor(ours).save_pretrained(folder)
        theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
    expected = theirs(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours.tensor(encoded(image, "png"), None), expected, atol=1e-6)


def test_only_objectives_with_images_have_a_processor() -> None:
    context: Any = SimpleNamespace(image=schema.Image(), model=ViTConfig(image_size=32), processor=None)
    assert make_processor("image_classification", context).crop_size == {"height": 32, "width": 32}
    assert make_processor("masked_lm", context) is None


@pytest.mark.parametrize(
    ("config", "fields", "expected"),
    [
        (ViTConfig(image_size=28, num_channels=1), {}, (1, (28, 28))),
        (SwinConfig(image_size=(32, 64)), {}, (3, (32, 64))),
        (ResNetConfig(num_channels=1), {}, (1, (224, 224))),
        (ResNetConfig(num_channels=1), {"size": 28}, (1, (28, 28))),
        (CLIPConfig(vision_config={"image_size": 64}), {}, (3, (64, 64))),
    ],
)
def test_size_and_channels_are_those_of_the_model(
    config: Any, fields: dict[str, Any], expected: tuple[int, tuple[int, int]]
) -> None:
    found = ImageTransform.for_model(schema.Image(**fields), config)
    assert (found.channels, found.size) == expected


def test_evaluation_is_not_augmented_and_training_depends_on_the_generator_alone() -> None:
    data = png(noise(40, 30))
    ours = images(16, flip=True, crop_padding=2, min_scale=0.5, rotate=20.0, erase=0.5)
    assert np.array_equal(ours.tensor(data, None), images(16).tensor(data, None))
    assert np.array_equal(ours.tensor(data, generator(3)), ours.tensor(data, generator(3)))
    assert not np.array_equal(ours.tensor(data, generator(3)), ours.tensor(data, generator(4)))


def test_flips_half_of_the_images() -> None:
    pixels = noise(8, 8)
    draws = generator()
    made = [images(flip=True).tensor(png(pixels), draws)[0] for _ in range(400)]
    flipped = sum(np.allclose(one, pixels[:, ::-1] / 255) for one in made)
    assert all(np.allclose(one, pixels / 255) or np.allclose(one, pixels[:, ::-1] / 255) for one in made)
    assert 160 < flipped < 240


def test_padding_shifts_by_every_distance_and_fills_with_black() -> None:
    draws = generator()
    ours = images(4, crop_padding=1, mean=[0.5], std=[0.5])
    seen = set()
    for _ in range(200):
        made = ours.tensor(png(np.full((4, 4), 255, np.uint8)), draws)[0]
        assert set(np.unique(made)) <= {-1.0, 1.0}
        seen.add(made.tobytes())
    assert len(seen) == 9


def test_random_crops_are_parts_of_the_image_down_to_the_least_area() -> None:
    """On a ramp a crop's values say where it was cut from."""
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    draws = generator()
    made = [images(16, min_scale=0.25).tensor(png(ramp), draws)[0] for _ in range(200)]
    spans = np.array([one[0, -1] - one[0, 0] for one in made])
    # A quarter of the area at a ratio of 3:4 is 0.43 wide.
    assert 0.35 < spans.min() < 0.6
    assert spans.max() > 0.85
    assert np.std([one[0, 0] for one in made]) > 0.1


def test_rotation_leaves_the_corners_black_and_the_mean_angle_at_zero() -> None:
    draws = generator()
    made = [images(16, rotate=45.0).tensor(png(np.full((16, 16), 255, np.uint8)), draws)[0] for _ in range(50)]
    assert max(one[8, 8] for one in made) == min(one[8, 8] for one in made) == 1.0
    assert min(one[0, 0] for one in made) == 0.0


def test_erasing_blanks_a_rectangle_with_the_mean() -> None:
    draws = generator()
    ours = images(32, erase=0.5, mean=[0.25], std=[0.5])
    shares = [float((ours.tensor(png(np.full((32, 32), 255, np.uint8)), draws) == 0).mean()) for _ in range(400)]
    erased = [share for share in shares if share]
    assert 160 < len(erased) < 240
    assert min(erased) > 0.01
    assert max(erased) < 0.36


BROKEN: dict[str, tuple[Any, str]] = {
    "not an image": (b"hello", "no known format"),
    "nothing": (b"", "no known format"),
    "cut short": (png(noise(64, 64))[:700], "cannot be decoded"),
    "a broken chunk": (png(noise(8, 8)).replace(b"IDAT", b"IDAX"), "cannot be decoded"),
    "neither": ({"bytes": None, "path": None}, "neither bytes nor a path"),
    "no file": ({"bytes": None, "path": "/nowhere/a.png"}, "'/nowhere/a.png'"),
    "half a JPEG": ({"bytes": encoded(Image.fromarray(noise(64, 64)), "jpeg")[:900], "path": "b.jpg"}, "'b.jpg'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_make_their_rows_unusable(name: str) -> None:
    value, expected = BROKEN[name]
    with pytest.raises(UnusableRowError) as caught:
        images().tensor(value, None)
    assert expected in str(caught.value)


RAMP = np.arange(256).reshape(16, 16)
DEEP: dict[str, tuple[str, np.ndarray[Any, Any]]] = {
    "a 16-bit PGM": ("ppm", (RAMP * 257).astype(np.uint16)),
    "a 16-bit PNG": ("png", (RAMP * 257).astype(np.uint16)),
    "a 16-bit TIFF": ("tiff", (RAMP * 257).astype(np.uint16)),
    "a 32-bit TIFF of 8-bit values": ("tiff", RAMP.astype(np.int32)),
    "a 32-bit TIFF of 16-bit values": ("tiff", (RAMP * 257).astype(np.int32)),
    "a 32-bit TIFF": ("tiff", (RAMP * ((2**31 - 1) // 255)).astype(np.int32)),
    "a float TIFF up to 1": ("tiff", (RAMP / 255).astype(np.float32)),
    "a float TIFF up to 255": ("tiff", RAMP.astype(np.float32)),
    "a float TIFF up to 65535": ("tiff", (RAMP * 257).astype(np.float32)),
}


@pytest.mark.parametrize("name", DEEP)
def test_images_of_more_than_eight_bits_keep_their_values(name: str) -> None:
    kind, values = DEEP[name]
    tensor = images(16).tensor(encoded(Image.fromarray(values), kind), None)[0]
    np.testing.assert_allclose(tensor, RAMP / 255, atol=1e-6)
    assert np.asarray(decoded(encoded(Image.fromarray(values), kind), "RGB")).mean() == 127.5


def test_the_value_of_white_can_be_set() -> None:
    twelve = encoded(Image.fromarray((RAMP * 4095 // 255).astype(np.uint16)), "png")
    np.testing.assert_allclose(images(16, white_level=4095.0).tensor(twelve, None)[0], RAMP / 255, atol=1 / 255)
    assert images(16).tensor(twelve, None).max() < 0.07
    bad = encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "tiff")
    with pytest.raises(UnusableRowError, match="values that are no numbers"):
        images(4).tensor(bad, None)


@pytest.mark.parametrize("background", ["#ffffff", "#ff0000", None])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_composed_on_a_stated_colour(mode: str, background: str | None) -> None:
    hidden = Image.new("RGBA", (4, 4), (0, 200, 0, 0)).convert(mode)
    tensor = images(4, 3, background=background).tensor(encoded(hidden, "png"), None)
    colours = {"#ffffff": [1.0, 1.0, 1.0], "#ff0000": [1.0, 0.0, 0.0]}
    if background is not None:
        assert tensor[:, 0, 0].tolist() == colours[background]
    else:
        assert tensor[1, 0, 0] > 0.4


def test_a_bomb_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(DataError, match="cannot be decoded"):
        images().tensor(png(noise(8, 8)), None)


def test_channels_and_statistics_that_no_image_has() -> None:
    with pytest.raises(DataError, match="num_channels"):
        images(channels=4)
    with pytest.raises(DataError, match=r"image\.mean has 3 values for images of 1 channels"):
        images(**IMAGENET)


def test_small_images_are_made_fast() -> None:
    """One core must feed a small model. Far below what is measured, because other work shares the core."""
    data = [{"bytes": png(noise(28, 28, seed=seed)), "path": None} for seed in range(200)]
    ours, draws = images(28, flip=True, crop_padding=2), generator()
    started = time.thread_time()
    for value in data:
        ours.tensor(value, draws)
    assert len(data) / (time.thread_time() - started) > 2000
