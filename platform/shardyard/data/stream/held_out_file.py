"""Held-out rows in a file, so that one rank makes them once, and every rank and later start reads them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from shardyard.data.sources.sources import OpenSource
from shardyard.data.stream.left_out import LeftOutCounts
from shardyard.data.stream.rows import Row

log = logging.getLogger(__name__)
VERSION = 1
# Rows with the index of their source, the counts of rows that were left out, and the number of cut tokens.
Made = tuple[list[tuple[Row, int]], LeftOutCounts, int]


def key_of(settings: Mapping[str, object], sources: Sequence[OpenSource]) -> str:
    """What tells rows from others: all that they are made of, with the fingerprints of the data."""
    values = [VERSION, settings, [source.fingerprint for source in sources]]
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def keep(path: Path, key: str, made: Made) -> bool:
    """Write rows to a file, whole or not at all; False, with a warning, if that is impossible."""
    rows, left_out, num_cut = made
    arrays = {
        f"{n}.{name}": np.array(value, order="C") for n, (row, _) in enumerate(rows) for name, value in row.items()
    }
    about = {"row_sources": [source for _, source in rows], "left_out": left_out, "num_cut": num_cut}
    try:
        content = save(arrays, {"key": key, "about": json.dumps(about)})
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
    except (OSError, SafetensorError, KeyError) as error:  # KeyError: a type of array that the format lacks.
        log.warning("the held-out rows cannot be kept in %s (%s: %s)", path, type(error).__name__, error)
        return False
    return True


def kept(path: Path, key: str) -> Made | None:
    """The rows of a file; None if it does not hold those of the key."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            if about.get("key") != key:
                return None
            told = json.loads(about["about"])
            rows: list[tuple[Row, int]] = [({}, source) for source in told["row_sources"]]
            for name in file.keys():  # noqa: SIM118 - no mapping
                number, _, column = name.partition(".")
                rows[int(number)][0][column] = file.get_tensor(name)
    except (OSError, SafetensorError, ValueError, KeyError, IndexError):
        return None
    return rows, told["left_out"], told["num_cut"]
