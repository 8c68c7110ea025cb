"""Files of token ids, told by their names and headers: their type, and where the ids begin. Pure."""

from __future__ import annotations

import ast
import json
import os
import struct
from dataclasses import dataclass
from typing import Literal

from shardyard.errors import DataError

MANIFEST = "manifest.json"
FORMAT = "shardyard-tokens"
TokenFileKind = Literal["npy", "megatron", "datatrove", "bin"]
MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_NUMPY_MAGIC = b"\x93NUMPY"
# Magic number and version of llm.c's files → type of their ids; 256 words of 32 bits precede them.
_LLM_C = {(20240520, 1): "uint16", (20240801, 7): "uint32"}
_LLM_C_BYTES = 1024
_PEEKED_IDS = 4096
_MEGATRON_TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
_BYTES = {"uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "uint64": 8, "int64": 8}
_MEGATRON_HEADER = struct.Struct("<9sQBQQ")
# Archives, as of the weights of a model, which also end in .bin.
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True)
class TokenFile:
    """A file of token ids in the format of another library.

    token_type: numpy's name of it; None if neither a header nor an index tells. offset: of the first id, in bytes.
    count: of ids, as the header or index says; None if it does not. index: the file with the bounds of documents.
    sequences, documents: their numbers in a Megatron index.
    """

    path: str
    kind: TokenFileKind
    token_type: str | None
    offset: int = 0
    count: int | None = None
    index: str | None = None
    sequences: int = 0
    documents: int = 0


def is_token_set(folder: str) -> bool:
    """Whether a folder was written by `shardyard data tokenize` and is complete."""
    try:
        with open(os.path.join(folder, MANIFEST), "rb") as file:
            return file.read(64).lstrip(b"{ \n").startswith(f'"format": "{FORMAT}"'.encode())
    except OSError:
        return False


def token_file(path: str, given: str | None = None) -> TokenFile:
    """What a file of token ids is.

    Args:
        given: the type of the ids that the recipe names.

    Raises:
        DataError: its header or index is damaged, or contradicts the recipe.
    """
    try:
        found = _token_file(path)
        size = os.path.getsize(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if given is not None and found.token_type not in (None, given):
        raise DataError(
            f"{path} holds {found.token_type} ids as its header says, and token_type is {given}; remove it."
        )
    kind = given or found.token_type
    if kind is not None and (size - found.offset) % _BYTES[kind]:
        raise DataError(f"{path}: its {size - found.offset} bytes are no whole number of {kind} ids; set token_type.")
    if kind is not None and found.count is not None and size - found.offset < found.count * _BYTES[kind]:
        raise DataError(f"{path} is cut short: it should hold {found.count} ids of type {kind}; copy it again.")
    return found


def _token_file(path: str) -> TokenFile:
    if path.endswith(".ds"):
        return _datatrove(path)
    if path.endswith(".npy"):
        return _numpy(path)
    index = path.removesuffix(".bin") + ".idx"
    return _megatron(path, index) if os.path.isfile(index) else _bare(path)


def _numpy(path: str) -> TokenFile:
    """With the header of numpy, or without one, as `numpy.memmap` writes and OLMo-core reads it."""
    with open(path, "rb") as file:
        start = file.read(10)
        if not start.startswith(_NUMPY_MAGIC):
            return TokenFile(path, "npy", None)
        wide = start[6] > 1
        length = struct.unpack("<I", start[8:10] + file.read(2))[0] if wide else struct.unpack("<H", start[8:10])[0]
        text = file.read(length).decode("latin1")
    try:
        header = ast.literal_eval(text)
        shape, kind = header["shape"], str(header["descr"])
    except (ValueError, SyntaxError, KeyError, TypeError) as error:
        raise DataError(f"{path}: the header of numpy is damaged.") from error
    names = {"u1": "uint8", "u2": "uint16", "u4": "uint32", "u8": "uint64", "i1": "int8", "i2": "int16", "i4": "int32"}
    name = {**names, "i8": "int64"}.get(kind.lstrip("<|"))
    if name is None or len(shape) != 1:
        raise DataError(
            f"{path} holds an array of type {kind} and shape {shape}; token ids are a row of whole numbers."
        )
    return TokenFile(path, "npy", name, (12 if wide else 10) + length, shape[0])


def _bare(path: str) -> TokenFile:
    """Ids alone, as nanoGPT writes them, or after the header of llm.c."""
    with open(path, "rb") as file:
        start = file.read(12)
    if start.startswith(_ARCHIVES):
        raise DataError(f"{path} is an archive, such as the weights of a model, and holds no token ids.")
    if len(start) == 12:
        magic, version, count = struct.unpack("<iii", start)
        if (magic, version) in _LLM_C:
            return TokenFile(path, "bin", _LLM_C[magic, version], _LLM_C_BYTES, count)
    return TokenFile(path, "bin", None)


def _megatron(path: str, index: str) -> TokenFile:
    with open(index, "rb") as file:
        start = file.read(_MEGATRON_HEADER.size)
    if len(start) < _MEGATRON_HEADER.size or not start.startswith(MEGATRON_MAGIC):
        raise DataError(f"{index} is no index of Megatron (it does not begin with MMIDIDX).")
    _, version, code, sequences, documents = _MEGATRON_HEADER.unpack(start)
    if version != 1 or code not in _MEGATRON_TYPES:
        raise DataError(f"{index}: version {version} and type {code} of ids are not known.")
    size = os.path.getsize(index)
    if size < _MEGATRON_HEADER.size + 12 * sequences + 8 * documents:
        raise DataError(f"{index} is cut short: it should list {sequences} sequences; copy it again.")
    return TokenFile(path, "megatron", _MEGATRON_TYPES[code], 0, None, index, sequences, documents)


def _datatrove(path: str) -> TokenFile:
    index = f"{path}.index"
    if not os.path.isfile(index):
        raise DataError(f"{path} has no {os.path.basename(index)} beside it, in which its documents end.")
    size = os.path.getsize(index)
    if size % 8:
        raise DataError(f"{index} is cut short: it holds numbers of 8 bytes.")
    count = 0
    if size:
        with open(index, "rb") as file:
            file.seek(size - 8)
            (count,) = struct.unpack("<Q", file.read(8))
    bytes_each = os.path.getsize(path) / count if count else 2
    kind = {2.0: "uint16", 4.0: "uint32"}.get(bytes_each)
    if kind is None:
        raise DataError(f"{path} has {bytes_each:.2f} bytes for each of the {count} ids of its index; copy both again.")
    return TokenFile(path, "datatrove", kind, 0, count, index, documents=size // 8)


def set_vocabulary(folder: str) -> tuple[str, int, int]:
    """Of a set of `shardyard data tokenize`: its tokenizer, the size of that vocabulary, and the largest id.

    Raises:
        DataError: its manifest is damaged.
    """
    try:
        with open(os.path.join(folder, MANIFEST), encoding="utf-8") as file:
            fields = json.load(file)
        return str(fields["tokenizer"]), int(fields["vocabulary"]), int(fields["counts"]["largest_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: its {MANIFEST} is damaged; tokenise the data again.") from error


def first_ids(file: TokenFile, kind: str) -> list[int]:
    """The ids at the beginning of a file, read as of this type.

    Raises:
        DataError: it cannot be read.
    """
    letter = {1: "B", 2: "H", 4: "I", 8: "Q"}[_BYTES[kind]]
    try:
        with open(file.path, "rb") as content:
            content.seek(file.offset)
            data = content.read(_PEEKED_IDS * _BYTES[kind])
    except OSError as error:
        raise DataError(f"{file.path} cannot be read: {error.strerror or error}.") from error
    number = len(data) // _BYTES[kind]
    return list(struct.unpack(f"<{number}{letter}", data[: number * _BYTES[kind]]))
