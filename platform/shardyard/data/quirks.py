"""Workarounds for datasets and huggingface_hub; tests detect obsolete ones.

Seen in datasets 5.2 and huggingface_hub 2.4; `tests/unit/data/test_library_quirks.py` fails if a
newer version no longer needs one of these, or no longer has a name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]
from huggingface_hub.utils._http import default_client_factory


def quiet_datasets() -> None:
    """Keep `datasets` and the hub from writing to the terminal, and leave retries to `retry.Retry`.

    datasets retries 20 times after fixed waits, without backoff or jitter, and has no option for it.
    """
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # It logs errors that it also raises.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # It would report every opening of a local file to the hub, and wait seconds for DNS when offline.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    for interval in ("READ_RETRY", "READ_SERVER_UNAVAILABLE_RETRY", "READ_RATE_LIMIT_RETRY", "OPEN_RETRY"):
        setattr(datasets.config, f"STREAMING_{interval}_INTERVAL", 0)


def hub_client(wrap: Callable[[httpx.BaseTransport], httpx.BaseTransport]) -> httpx.Client:
    """The hub's own client, with each of its transports wrapped.

    Passing a transport to the constructor would disable proxies from the environment.
    """
    client = default_client_factory()
    client._transport = wrap(client._transport)
    client._mounts = {what: inner and wrap(inner) for what, inner in client._mounts.items()}
    return client


@dataclass(frozen=True)
class ShardFile:
    """A file of a streamed dataset; `row_groups` of a Parquet file, or None if all of it is read."""

    path: str
    row_groups: tuple[int, ...] | None = None


def shard_files(dataset: Any) -> list[ShardFile]:
    """The files of a streamed dataset in reading order; empty if they are not known.

    `datasets` has no public name for them.
    """
    options = getattr(getattr(dataset, "_ex_iterable", None), "kwargs", {})
    if "row_groups_list" in options:
        groups = options["row_groups_list"]
        return [ShardFile(str(file), part) for file, part in zip(options["files"], groups, strict=True)]
    return [ShardFile(str(file)) for file in options.get("original_files", ())]


def generator_of(dataset: Any) -> Any:
    """The function that yields the tables of a streamed dataset; `datasets` has no public name for it."""
    return getattr(getattr(dataset, "_ex_iterable", None), "generate_tables_fn", None)
