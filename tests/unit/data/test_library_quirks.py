"""What Shardyard works around in datasets and the hub's library: that it works, and that they still need it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import datasets
import httpx2 as httpx
import pytest
from huggingface_hub.utils._http import default_client_factory
from transformers import AutoTokenizer
from transformers.utils import is_torchvision_available

from shardyard.data import quirks
from shardyard.data.multimodal import quirks as processors
from shardyard.data.tokenizers.tokenizer import load_tokenizer

_ASK = (
    "from datasets import config as c; "
    "print(c.STREAMING_READ_MAX_RETRIES, c.STREAMING_OPEN_MAX_RETRIES, c.HF_UPDATE_DOWNLOAD_COUNTS)"
)


def test_datasets_still_tries_again_twenty_times_by_itself_and_reports_to_the_hub() -> None:
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["20", "20", "True"]
    quirks.quiet_datasets()
    assert datasets.config.STREAMING_READ_MAX_RETRIES == datasets.config.STREAMING_OPEN_MAX_RETRIES == 1
    assert datasets.config.STREAMING_READ_RETRY_INTERVAL == 0
    assert datasets.config.HF_UPDATE_DOWNLOAD_COUNTS is False


def test_every_interval_of_datasets_is_known() -> None:
    names = {name for name in dir(datasets.config) if name.startswith("STREAMING_") and name.endswith("_INTERVAL")}
    quirks.quiet_datasets()
    assert len(names) == 4
    assert {getattr(datasets.config, name) for name in names} == {0}


class _Wrapped(httpx.BaseTransport):
    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner = inner


def test_a_client_of_the_hub_is_wrapped_with_the_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    client = quirks.hub_client(_Wrapped)
    assert isinstance(client._transport, _Wrapped)
    assert [type(one) for one in client._mounts.values() if one] == [_Wrapped] * len(
        list(filter(None, client._mounts.values()))
    )
    assert any(client._mounts.values())


def test_a_transport_of_ones_own_still_turns_proxies_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert not any(httpx.Client(transport=_Wrapped(httpx.HTTPTransport()))._mounts.values())
    assert any(default_client_factory()._mounts.values())


def test_the_files_of_a_stream_have_no_public_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n')
    stream = datasets.load_dataset("json", data_files=[str(path)], split="train", streaming=True)
    assert quirks.shard_files(stream) == [quirks.ShardFile(str(path))]
    assert not hasattr(stream, "files")
    assert quirks.shard_files(object()) == []


def test_tokens_can_be_named_after_the_construction_of_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("bytes")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    assert not hasattr(tokenizer, "image_token")
    processors.name_special_tokens(tokenizer, {"image_token": "<image>"})
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).image_token == tokenizer.image_token == "<image>"
    assert tokenizer.image_token_id == len(tokenizer) - 1


@pytest.mark.slow
@pytest.mark.skipif(is_torchvision_available(), reason="the processor is imported as it is with torchvision")
def test_the_processor_of_pixtral_still_needs_torchvision_for_a_helper() -> None:
    name = "transformers.models.pixtral.processing_pixtral"
    done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, timeout=120)
    assert "torchvision" in done.stderr
    assert processors.import_without_torchvision(name).PixtralProcessor.__name__ == "PixtralProcessor"
