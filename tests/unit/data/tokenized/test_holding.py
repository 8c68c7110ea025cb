"""Which tokenised sets hold documents, by the hashes of their content."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardyard.data.ledger.documents import content_hash
from shardyard.data.tokenized.holding import sets_holding
from shardyard.recipe.schema import Source
from shardyard.recipe.sources.token_sets import tokenized_root
from support.data_cases import data, documents, write_jsonl
from support.tokenizers.tokenized import tokenize_sources


def test_sets_that_hold_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "cache"))
    texts = documents(20)
    assert list(sets_holding([content_hash(texts[0])])) == []
    tokenize_sources(data([Source(path=write_jsonl(tmp_path / "a", [[*texts, texts[3]]]))]))
    (folder,) = tokenized_root().iterdir()
    tokenize_sources(data([Source(path=write_jsonl(tmp_path / "b", [documents(20, "e")]))]))
    assert list(sets_holding([content_hash(text) for text in (texts[3], texts[7], "nothing")])) == [(folder, 3)]
    assert list(sets_holding([content_hash("nothing")])) == list(sets_holding([])) == []
    (folder / "manifest.json").write_text("{}")
    assert list(sets_holding([content_hash(texts[3])])) == []
