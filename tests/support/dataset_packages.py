"""Tiny packages in the formats from which datasets are converted."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import wave
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

Files = Mapping[str, bytes]


def deb(folder: Path, name: str, files: Files, *, version: str = "1.2-3", compression: str = "xz") -> Path:
    """A Debian package: an `ar` archive of a format number, control data and the files."""
    mode = {"xz": "w:xz", "gz": "w:gz", "zst": "w"}[compression]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for path, content in files.items():
            info = tarfile.TarInfo(f"./{path}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    data = stream.getvalue()
    if compression == "zst":
        data = pa.compress(data, codec="zstd", asbytes=True)
    members = (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (f"data.tar.{compression}", data))
    packed = b"!<arch>\n" + b"".join(
        f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        + content
        + b"\n" * (len(content) % 2)
        for member, content in members
    )
    path = folder / f"{name}_{version}_all.deb"
    path.write_bytes(packed)
    return path


def wheel(folder: Path, name: str, files: Files, *, version: str = "1.0") -> Path:
    """A wheel with all that unpacking needs."""
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return path


def idx(array: np.ndarray) -> bytes:
    """A gzipped IDX file of bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def wordnet(**glosses: Sequence[tuple[int, str, str]]) -> Files:
    """The data files of WordNet: class, word and gloss of each synset, by part of speech."""
    licence = "  1 This software and database is being provided to you\n"
    return {
        f"usr/share/wordnet/data.{part}": (
            licence
            + "".join(
                f"{offset:08d} {label:02d} {part[0]} 01 {word} 0 001 @ 00001740 n 0000 | {gloss}  \n"
                for offset, (label, word, gloss) in enumerate(glosses.get(part, ()))
            )
        ).encode()
        for part in ("noun", "verb", "adj", "adv")
    }


def sword(name: str, books: Mapping[str, Sequence[Sequence[str]]]) -> Files:
    """A SWORD module of block type BOOK with all its books in the new testament: chapters of verses by book."""
    blocks, index = [b"module"], [(0, 0, 0), (0, 0, 6)]
    for book, chapters in books.items():
        block = b""
        entries = [f'<div canonical="true" osisID="{book}" sID="g1" type="book"/> <title>{book}</title>']
        for number, verses in enumerate(chapters, start=1):
            entries += [f'<chapter n="{number}" osisID="{book}.{number}" sID="{book}.{number}"/>', *verses]
        for entry in entries:
            index.append((len(blocks), len(block), len(entry.encode())))
            block += entry.encode()
        blocks.append(block)
    packed, starts = b"", []
    for block in blocks:
        content = zlib.compress(block)
        starts.append(struct.pack("<III", len(packed), len(content), len(block)))
        packed += content
    folder = f"usr/share/sword/modules/texts/ztext/{name}"
    return {
        f"{folder}/nt.bzz": packed,
        f"{folder}/nt.bzs": b"".join(starts),
        f"{folder}/nt.bzv": b"".join(struct.pack("<IIH", *entry) for entry in index),
        **{f"{folder}/ot.{suffix}": b"" for suffix in ("bzz", "bzs", "bzv")},
    }


def tone(hertz: float, seconds: float, rate: int = 8000) -> bytes:
    """A WAV file of a sine."""
    stream = io.BytesIO()
    samples = np.rint(8000 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype("<i2")
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return stream.getvalue()


def prompts(code: str, transcripts: str, clips: Mapping[str, bytes]) -> tuple[Files, Files]:
    """The two packages of recorded prompts: transcripts, and clips by id."""
    listed = f"usr/share/doc/asterisk-core-sounds-{code}/core-sounds-{code}.txt.gz"
    voice = "usr/share/asterisk/sounds/xx_XX_f_Voice"
    return {listed: gzip.compress(transcripts.encode())}, {f"{voice}/{id_}.wav": clip for id_, clip in clips.items()}
