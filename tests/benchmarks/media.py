"""Pictures and seconds of sound that a core decodes, beside a plain PyTorch DataLoader and WebDataset.

All read the same tar files and make the same tensors: a random resized crop of 224 pixels and a flip, or Whisper's
features of FLAC of 44.1 kHz. CPU seconds are those of the process and of its workers; arms alternate, and the least of
several rounds counts. WebDataset is left out unless it is installed (`pip install webdataset`).

    python tests/benchmarks/media.py --pictures 600 --clips 192
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import io
import math
import resource
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import ViTConfig, WhisperConfig, WhisperFeatureExtractor

from shardyard.data.formats import FormatInputs
from shardyard.data.stream.loader import TrainLoader
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.recipe import schema

SIZE, BATCH, SHARDS, WORKERS = 224, 32, 4, 2
RATE, SECONDS = 44_100, 10
Sample = dict[str, bytes]


def photo(generator: np.random.Generator, width: int = 500, height: int = 375) -> bytes:
    """A JPEG of about 80 KB, as those of ImageNet are."""
    coarse = Image.fromarray(generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = smooth + generator.integers(-12, 13, smooth.shape)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def clip(generator: np.random.Generator) -> bytes:
    """Ten seconds of a tone with noise, as FLAC of 44.1 kHz."""
    time = np.arange(RATE * SECONDS) / RATE
    samples = 0.3 * np.sin(2 * np.pi * 220 * time) + 0.05 * generator.standard_normal(len(time))
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.float32), RATE, format="FLAC")
    return file.getvalue()


def write(folder: Path, number: int, suffix: str, beside: Sample, make: Callable[[np.random.Generator], bytes]) -> None:
    """Shards as WebDataset has them."""
    generator = np.random.default_rng(0)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{suffix}-{shard}.tar", "w") as archive:
            for index in range(number // SHARDS):
                for end, content in {suffix: make(generator), **beside}.items():
                    entry = tarfile.TarInfo(f"{index:05}.{end}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))


def cropped(content: bytes, generator: np.random.Generator) -> torch.Tensor:
    """A random resized crop with Pillow and PyTorch, as most training scripts make it."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    area = image.width * image.height * generator.uniform(0.08, 1.0)
    ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
    width = min(image.width, round(math.sqrt(area * ratio)))
    height = min(image.height, round(math.sqrt(area / ratio)))
    left, top = int(generator.integers(image.width - width + 1)), int(generator.integers(image.height - height + 1))
    image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255).sub_(0.5).div_(0.5)
    return tensor.flip(-1) if generator.random() < 0.5 else tensor


def heard(content: bytes, extractor: WhisperFeatureExtractor) -> torch.Tensor:
    """Whisper's features of a recording."""
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    return extractor(soxr.resample(samples, rate, 16_000), sampling_rate=16_000, return_tensors="pt").input_features[0]


class Tars(IterableDataset[torch.Tensor]):
    """The members of tar files as tensors, each worker its own files."""

    def __init__(self, files: list[str], suffix: str, make: Callable[[bytes], torch.Tensor]) -> None:
        self._files, self._suffix, self._make = files, suffix, make

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        torch.set_num_threads(1)
        for file in self._files[info.id :: info.num_workers] if info else self._files:
            with tarfile.open(file, "r|") as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    if content is not None and member.name.endswith(self._suffix):
                        yield self._make(content.read())


def of_plain(files: list[str], suffix: str, make: Callable[[bytes], torch.Tensor]) -> Iterator[Any]:
    return iter(DataLoader(Tars(files, suffix, make), batch_size=BATCH, num_workers=WORKERS))


def of_webdataset(files: list[str], suffix: str, make: Callable[[bytes], torch.Tensor]) -> Iterator[Any]:
    import webdataset

    found = webdataset.WebDataset(files, shardshuffle=False).shuffle(256).map(lambda sample: make(sample[suffix]))
    return iter(webdataset.WebLoader(found.batched(BATCH), batch_size=None, num_workers=WORKERS))


def of_ours(files: list[str], suffix: str) -> Iterator[Any]:
    """The loader of a run with one rank, with its default window."""
    data = schema.Data(
        train=[schema.Source(path=str(Path(files[0]).parent / f"{suffix}-*.tar"))], sequence_length=16, streams=SHARDS
    )
    if suffix == "jpg":
        model: Any = ViTConfig(image_size=SIZE, num_labels=10)
        inputs = FormatInputs(data, model=model, image=schema.Image(min_scale=0.08, flip=True))
        objective = "image_classification"
    else:
        model = WhisperConfig(decoder_start_token_id=7)
        inputs, objective = FormatInputs(data, load_tokenizer("bytes"), model), "speech_to_text"
    return iter(
        TrainLoader(inputs, objective=objective, global_batch=BATCH, streams=SHARDS, seed=1, dp_rank=0, dp_size=1)
    )


def cpu_seconds(batches: Iterator[Any], number: int) -> float:
    """CPU seconds of this process and its workers until so many batches are made."""
    before = _cpu()
    for _ in range(number):
        next(batches)
    close = getattr(batches, "close", None)
    if close is not None:
        close()
    del batches
    gc.collect()  # Workers end with their iterator, and their time counts once they have.
    return _cpu() - before


def _cpu() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def compare(folder: Path, suffix: str, number: int, rounds: int, make: Callable[[bytes], torch.Tensor]) -> None:
    """Print what each way makes of a core, and its ratio to the plain one."""
    files = [str(folder / f"{suffix}-{shard}.tar") for shard in range(SHARDS)]
    arms: dict[str, Callable[[], Iterator[Any]]] = {
        "plain DataLoader": lambda: of_plain(files, suffix, make),
        "Shardyard": lambda: of_ours(files, suffix),
    }
    if importlib.util.find_spec("webdataset") is not None:
        arms["WebDataset"] = lambda: of_webdataset(files, suffix, make)
    batches = number // BATCH - 2
    seconds = dict.fromkeys(arms, math.inf)
    for _ in range(rounds):
        for name, begin in arms.items():
            seconds[name] = min(seconds[name], cpu_seconds(begin(), batches))
    unit, each = ("pictures", 1) if suffix == "jpg" else ("seconds of sound", SECONDS)
    for name, spent in seconds.items():
        rate = batches * BATCH * each / spent
        ratio = seconds["plain DataLoader"] / spent
        print(f"{unit:17} {name:17} {rate:8.0f} a core and second, {ratio:.2f} of plain")  # noqa: T201


def main() -> None:
    """Write the shards and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--clips", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    generator, extractor = np.random.default_rng(0), WhisperFeatureExtractor()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, asked.pictures, "jpg", {"cls": b"1"}, photo)
        write(folder, asked.clips, "flac", {"txt": b"a"}, clip)
        compare(folder, "jpg", asked.pictures, asked.rounds, lambda content: cropped(content, generator))
        compare(folder, "flac", asked.clips, asked.rounds, lambda content: heard(content, extractor))


if __name__ == "__main__":
    main()
