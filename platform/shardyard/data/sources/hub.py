"""Data sets of the hub: at one commit, of one configuration and split, with the columns that are read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import datasets
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.text.text import Text
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionNotFoundError
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from shardyard.data.sources.files import Found, Wanted, of_files
from shardyard.data.sources.retry import TRANSIENT, Retry
from shardyard.data.sources.web import UnreachedError
from shardyard.data.sources.wording import in_words, refusal, unreachable
from shardyard.data.tables.archives import tar_features
from shardyard.errors import DataError, UnavailableError
from shardyard.recipe.schema import Source
from shardyard.recipe.sources.files import FileKind, file_kind
from shardyard.recipe.sources.recognise import METADATA, Recognised

HUB_TIMEOUT_SECONDS = 20.0
# Files that are read here and not by `datasets`, so that columns that are not read may hold anything.
_OWN: Mapping[type, FileKind] = {Json: "json", Csv: "csv"}
# Options that every builder has, and that say nothing about how rows are read.
_OF_ALL = ("name", "version", "data_dir", "data_files", "description", "features")


def open_hub(source: Source, split: str, retry: Retry) -> Found:
    """Open a data set at the commit that `revision` (or the default branch) points to.

    Raises:
        DataError: the hub does not show it, or it has no such revision, configuration or split.
        UnavailableError: the hub kept failing until the time limit.
    """
    path = str(source.path)
    commit = _commit(source, retry)
    fingerprint = {"hub": path, "config": source.config, "revision": commit}
    builder = in_words(path, retry, lambda: datasets.load_dataset_builder(path, name=source.config, revision=commit))
    own = _rows(builder, source, split) or _recordings(builder, source, split)
    if own is not None:
        return in_words(path, retry, lambda: of_files(own, fingerprint, source))
    if isinstance(builder, Json) and _is_plain(builder.config):
        return in_words(path, retry, lambda: _declared(builder, fingerprint, source, split))
    dataset = in_words(path, retry, lambda: builder.as_streaming_dataset(split=split))
    if isinstance(builder, Parquet):
        return Found(dataset.features, fingerprint, lambda wanted: _of_columns(builder, split, wanted), "Parquet")
    return streamed(dataset, fingerprint, path, retry)


def _commit(source: Source, retry: Retry) -> str:
    path = str(source.path)

    def asked() -> str:
        found = HfApi().dataset_info(path, revision=source.revision, timeout=HUB_TIMEOUT_SECONDS).sha
        assert found is not None, "the hub gives the commit of a data set"
        return found

    try:
        try:
            return asked()
        except httpx.TransportError:
            # The client tries requests again, but not answers that break off.
            return retry.call(asked, f"source {path}")
    except RevisionNotFoundError as error:
        raise DataError(f"{path} has no revision {source.revision!r} on the hub.") from error
    except UnavailableError:
        raise
    except UnreachedError as error:
        raise DataError(unreachable(path)) from error
    except TRANSIENT as error:
        raise DataError(refusal(path, error) or unreachable(path)) from error
    except ValueError as error:
        raise DataError(f"{path} is neither a local file or folder nor a hub id (owner/name).") from error


def _rows(builder: Any, source: Source, split: str) -> Recognised | None:
    """The files of a split, if they are of a kind that is read here; None if `datasets` reads them.

    `datasets` reads those whose card types the columns or sets options, and texts unless the recipe divides them.
    """
    kind = next((kind for base, kind in _OWN.items() if isinstance(builder, base)), None)
    if isinstance(builder, Text) and source.documents is not None:
        kind = "text"
    if kind is None or builder.info.features is not None or not _is_plain(builder.config):
        return None
    return Recognised("rows", kind, _listed(builder, source, split))


def _recordings(builder: Any, source: Source, split: str) -> Recognised | None:
    """The files of a split of recordings, which `datasets` reads only with torchcodec; None if it holds none."""
    if isinstance(builder, AudioFolder):
        files = _listed(builder, source, split)
        metadata = next((file for file in files if file.rpartition("/")[2] in METADATA), None)
        sounds = tuple(file for file in files if file_kind(file) == "sound")
        return Recognised("AudioFolder", "sound", sounds, metadata=metadata)
    if isinstance(builder, WebDataset):
        files = _listed(builder, source, split)
        if any(name.rpartition(".")[2] in ("wav", "flac", "mp3", "ogg", "opus") for name in tar_features(files[0])):
            return Recognised("WebDataset", "tar", files)
    return None


def _listed(builder: Any, source: Source, split: str) -> tuple[str, ...]:
    """The files of a split.

    Raises:
        DataError: there is no such split.
    """
    listed = builder.config.data_files
    if split not in listed:
        raise DataError(
            f"{source.path} has no split {split!r}; it has {', '.join(map(str, listed))}. Set `split` to one, or under "
            "data.validation give the training data with `holdout`."
        )
    return tuple(str(file) for file in listed[split])


def _declared(builder: Any, fingerprint: Mapping[str, object], source: Source, split: str) -> Found:
    """JSON whose card declares the columns: those that are read are typed so, and `datasets` casts all if it must."""
    features = builder.info.features
    own = of_files(Recognised("rows", "json", _listed(builder, source, split)), fingerprint, source, features)

    def stream(wanted: Wanted) -> Any:
        if all(_is_simple(features[column]) for column in wanted):
            return own.stream(wanted)
        return builder.as_streaming_dataset(split=split)

    return replace(own, stream=stream)


def _is_simple(feature: Any) -> bool:
    """Whether values of JSON are stored as this feature without a cast of `datasets`."""
    if isinstance(feature, datasets.Value):
        return str(feature.dtype).startswith(("string", "large_string", "int", "uint", "float", "bool"))
    if isinstance(feature, Mapping):
        return all(map(_is_simple, feature.values()))
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return isinstance(feature, datasets.Json) or (inner is not None and _is_simple(inner))


def _is_plain(config: Any) -> bool:
    """Whether a configuration has the defaults of its kind."""
    default = type(config)()
    names = [field.name for field in fields(config) if field.name not in _OF_ALL]
    return all(getattr(config, name) == getattr(default, name) for name in names)


def _of_columns(builder: Any, split: str, wanted: Wanted) -> Any:
    """The stream of some columns of Parquet files; others are neither fetched nor cast."""
    narrow = copy.copy(builder)
    narrow.config, narrow.info = copy.copy(builder.config), builder.info.copy()
    narrow.config.columns = list(wanted)
    return narrow.as_streaming_dataset(split=split)


def streamed(dataset: Any, fingerprint: Mapping[str, object], name: str, retry: Retry) -> Found:
    """A dataset that is streamed as it is.

    Raises:
        DataError: it is empty.
    """
    features = dataset.features or in_words(name, retry, lambda: _features_of_first(dataset, name))
    return Found(features, fingerprint, lambda _: dataset)


def _features_of_first(dataset: Any, name: str) -> Any:
    for table in dataset.with_format("arrow").iter(batch_size=1):
        return datasets.Features.from_arrow_schema(table.schema)
    raise DataError(f"{name} is empty: it holds no documents.")
