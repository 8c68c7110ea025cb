"""Training tokenizers: determinism, round trips, templates, special tokens, and folders that are whole or not there."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shardyard.data.tokenizers.corpus import read_corpus
from shardyard.data.tokenizers.folder import trained_folder
from shardyard.data.tokenizers.spec import Kind, TokenizerSpec
from shardyard.data.tokenizers.tokenizer import fingerprint, load_tokenizer, vocabulary_size
from shardyard.data.tokenizers.training import fit, train_tokenizer
from shardyard.errors import DataError
from support.tokenizer_cases import BERT, GPT2, KINDS, T5, spec_of, texts, write_documents, write_spec
from support.waiting import PATIENCE_SECONDS

ALL = sorted(KINDS)


def fitted(spec: TokenizerSpec) -> PreTrainedTokenizerFast:
    corpus = read_corpus(spec, lambda phase, done, total: None)
    try:
        return fit(spec, corpus)
    finally:
        corpus.close()


@functools.cache
def trained(kind: Kind) -> PreTrainedTokenizerFast:
    with tempfile.TemporaryDirectory() as folder:
        return fitted(spec_of(Path(folder), kind))


@pytest.mark.parametrize("kind", ALL)
def test_training_again_gives_the_same_bytes(kind: Kind, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, kind)
    first = train_tokenizer(spec, tmp_path / "first")
    for again in ("second", "third"):
        assert train_tokenizer(spec, tmp_path / again) == first
        for path in sorted((tmp_path / "first").iterdir()):
            assert (tmp_path / again / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
def test_threads_and_processes_do_not_matter(kind: Kind, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, **KINDS[kind])
    contents = []
    for threads, seed in (("1", "1"), ("4", "2")):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed}
        folder = tmp_path / threads
        subprocess.run([*_train(spec), "--output", str(folder)], check=True, env=environment, timeout=PATIENCE_SECONDS)
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert set(contents[0]) == {"tokenizer.json", "tokenizer_config.json", "report.json"}
    assert contents[0] == contents[1]


def _train(spec: Path) -> list[str]:
    return [sys.executable, "-m", "shardyard.cli.main", "tokenizer", "train", str(spec), "--quiet"]


@pytest.mark.parametrize("kind", ALL)
def test_a_saved_tokenizer_loads_without_code_of_ours(kind: Kind, tmp_path: Path) -> None:
    tokenizer = trained(kind)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    pair = ("Objects are Python's abstraction for data.", "Über\n  été — \U0001f600 x")
    assert dict(again(*pair)) == dict(tokenizer(*pair))
    assert again.decode(again(*pair).input_ids) == tokenizer.decode(tokenizer(*pair).input_ids)
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert fingerprint(again) == fingerprint(tokenizer)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_byte_level_bpe_gives_any_text_back(text: str) -> None:
    tokenizer = trained("bpe")
    ids = tokenizer(text, split_special_tokens=True).input_ids
    assert tokenizer.decode(ids) == text
    assert len(ids) <= len(text.encode())


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("abcdexyz .,()'\n-:"), max_size=60).map(lambda text: text.lstrip(" ")))
def test_unigram_gives_known_characters_back(text: str) -> None:
    tokenizer = trained("unigram")
    ids = tokenizer(text).input_ids
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=12), min_size=1, max_size=8))
def test_wordpiece_gives_words_back(words: list[str]) -> None:
    tokenizer = trained("wordpiece")
    text = " ".join(words)
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_wordpiece_takes_spaces_before_punctuation_out_again() -> None:
    tokenizer = trained("wordpiece")
    ids = tokenizer("Don't stop, it's one object. Is it?").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "don't stop, it's one object. is it?"


@pytest.mark.parametrize(("kind", "special"), [("bpe", GPT2), ("wordpiece", BERT), ("unigram", T5)])
def test_special_tokens_have_the_first_ids_in_the_order_of_the_spec(kind: Kind, special: dict[str, str]) -> None:
    tokenizer = trained(kind)
    order = list(dict.fromkeys(special.values()))
    assert tokenizer.convert_tokens_to_ids(order) == list(range(len(order)))
    for role, text in special.items():
        assert getattr(tokenizer, role) == text
        assert tokenizer.decode([getattr(tokenizer, f"{role}_id")], skip_special_tokens=True) == ""
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocabulary_size(tokenizer)))


def test_bert_pairs_have_token_types() -> None:
    tokenizer = trained("wordpiece")
    a, b = (tokenizer(text, add_special_tokens=False).input_ids for text in ("one object", "some other data"))
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    single, pair = tokenizer("one object"), tokenizer("one object", "some other data")
    assert single.input_ids == [cls, *a, sep]
    assert single.token_type_ids == [0] * (len(a) + 2)
    assert pair.input_ids == [cls, *a, sep, *b, sep]
    assert pair.token_type_ids == [0] * (len(a) + 2) + [1] * (len(b) + 1)


def test_eos_ends_each_text_and_there_are_no_token_types() -> None:
    tokenizer = trained("unigram")
    a, b = (tokenizer(text, add_special_tokens=False).input_ids for text in ("one", "other"))
    eos = tokenizer.eos_token_id
    assert tokenizer("one").input_ids == [*a, eos]
    assert tokenizer("one", "other").input_ids == [*a, eos, *b, eos]
    assert set(tokenizer("one", "other")) == {"input_ids", "attention_mask"}


def test_bos_and_eos_surround_each_text(tmp_path: Path) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = fitted(spec_of(tmp_path, "bpe", special_tokens=special, template="bos_eos"))
    a = tokenizer("one", add_special_tokens=False).input_ids
    assert tokenizer("one", "one").input_ids == [0, *a, 1, 0, *a, 1]


def test_the_template_none_adds_nothing() -> None:
    tokenizer = trained("bpe")
    assert tokenizer("one").input_ids == tokenizer("one", add_special_tokens=False).input_ids


@pytest.mark.parametrize("kind", ALL)
def test_normalisation_is_part_of_the_tokenizer(kind: Kind, tmp_path: Path) -> None:
    plain = fitted(spec_of(tmp_path, kind, lowercase=False))
    folded = fitted(spec_of(tmp_path, kind, lowercase=True, strip_accents=True, normalization="nfkc"))
    text, same = "Object ﬁle éa", "object file ea"
    assert folded(text).input_ids == folded(same).input_ids
    assert plain(text).input_ids != plain(same).input_ids


def test_the_alphabet_is_limited_to_the_most_frequent_characters(tmp_path: Path) -> None:
    path = write_documents(tmp_path / "d.jsonl", [{"text": "aab aab abz"}, {"text": "aab b"}])
    for kind, alphabet in (("wordpiece", 2), ("unigram", 3)):
        values = {"vocabulary": 100, "min_frequency": 1, "train": [{"path": str(path)}], "held_out": 0.0}
        tokenizer = fitted(spec_of(tmp_path, kind, alphabet=alphabet, **values))
        pieces = set(tokenizer.get_vocab())
        assert not any("z" in piece for piece in pieces)
        assert any("aab" in piece for piece in pieces)
        assert tokenizer.unk_token_id in tokenizer("z").input_ids


def test_columns_documents_and_empty_texts(tmp_path: Path) -> None:
    rows = [{"en": f"house {n}", "es": "" if n == 3 else f"casa {n}", "l": "x"} for n in range(9)]
    path = write_documents(tmp_path / "pairs.jsonl", rows)
    source = {"path": str(path), "text_columns": ["en", "es"], "languages": ["en", "es"]}
    spec = spec_of(tmp_path, "bpe", train=[source], held_out=0.0, documents=11)
    corpus = read_corpus(spec, lambda phase, done, total: None)
    found = list(corpus.documents(held_out=False))
    assert found[:3] == [("en", "house 0"), ("es", "casa 0"), ("en", "house 1")]
    assert (len(found), corpus.num_training, corpus.sources[0].empty) == (11, 11, 1)
    assert ("es", "") not in found
    corpus.close()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"text_columns": ["text", "nowhere"]}, "has no column 'nowhere'; it has text, n"),
        ({"text_columns": ["text", "n"]}, "column 'n' holds int, not text"),
        ({"language_column": "lang"}, "has no column 'lang'"),
        ({"text_columns": ["nowhere"]}, "has no column 'nowhere'"),
    ],
)
def test_columns_that_are_not_there_are_explained(tmp_path: Path, source: dict[str, object], message: str) -> None:
    path = write_documents(tmp_path / "d.jsonl", [{"text": "some", "n": 1}])
    with pytest.raises(DataError, match=message):
        fitted(spec_of(tmp_path, "bpe", train=[{"path": str(path), **source}], held_out=0.0))


def test_nothing_to_train_on_or_to_measure_is_explained(tmp_path: Path) -> None:
    empty = write_documents(tmp_path / "e.jsonl", [{"text": ""}])
    with pytest.raises(DataError, match="nothing to train a tokenizer on"):
        fitted(spec_of(tmp_path, "bpe", train=[{"path": str(empty)}], held_out=0.0))
    one = write_documents(tmp_path / "o.jsonl", [{"text": "one"}])
    with pytest.raises(DataError, match="raise held_out, or set it to 0"):
        fitted(spec_of(tmp_path, "bpe", train=[{"path": str(one)}], held_out=0.02))


@pytest.mark.parametrize("phase", ["reading", "training", "measuring"])
def test_an_interrupted_training_leaves_nothing(phase: str, tmp_path: Path) -> None:
    def interrupt(now: str, done: int, total: int | None) -> None:
        if now == phase and done >= 2:
            raise KeyboardInterrupt

    spec = spec_of(tmp_path, "bpe")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(spec, tmp_path / "mine", interrupt)
    assert sorted(tmp_path.iterdir()) == before


def test_a_failure_while_writing_keeps_the_older_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, folder = spec_of(tmp_path, "bpe"), tmp_path / "mine"
    train_tokenizer(spec, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if target == folder and not self.name.endswith("-old"):
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="disk full"):
        train_tokenizer(spec, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.yaml", "texts.jsonl"]


@pytest.mark.slow
def test_control_c_ends_with_130_and_nothing_written(tmp_path: Path) -> None:
    rows = [{"text": f"{n} {text}"} for n in range(4000) for text in texts()]
    path = write_documents(tmp_path / "d.jsonl", rows)
    values = {**KINDS["unigram"], "vocabulary": 2000, "train": [{"path": str(path)}], "held_out": 0.1}
    spec = write_spec(tmp_path, **values)
    command = [argument for argument in _train(spec) if argument != "--quiet"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "reading documents …\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=PATIENCE_SECONDS) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl", "mine.yaml"]


def test_a_trained_spec_loads_the_folder_beside_it(tmp_path: Path) -> None:
    path = write_spec(tmp_path, **KINDS["wordpiece"])
    with pytest.raises(DataError, match=r"is not trained yet; train it: `shardyard tokenizer train .*mine.yaml`"):
        load_tokenizer(str(path))
    train_tokenizer(spec_of(tmp_path, "wordpiece"), trained_folder(path))
    tokenizer = load_tokenizer(str(path))
    assert vocabulary_size(tokenizer) == 400
    assert fingerprint(tokenizer) == fingerprint(load_tokenizer(str(tmp_path / "mine")))


def test_a_changed_folder_or_spec_is_refused(tmp_path: Path) -> None:
    path, folder = write_spec(tmp_path, **KINDS["bpe"]), tmp_path / "mine"
    report = train_tokenizer(spec_of(tmp_path, "bpe"), folder)
    write_spec(tmp_path, **{**KINDS["bpe"], "vocabulary": 500})
    with pytest.raises(DataError, match=r"changed after the training \(vocabulary\).*--replace"):
        load_tokenizer(str(path))
    reordered = dict(reversed(GPT2.items()))
    write_spec(tmp_path, **{**KINDS["bpe"], "special_tokens": reordered})
    with pytest.raises(DataError, match=r"changed after the training \(special_tokens\)"):
        load_tokenizer(str(path))
    write_spec(tmp_path, **KINDS["bpe"])
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("endoftext", "other"))
    for name in (str(path), str(folder)):
        with pytest.raises(DataError, match=r"tokenizer_config.json differs from the fingerprint"):
            load_tokenizer(name)
    config.unlink()
    with pytest.raises(DataError, match=r"tokenizer_config.json differs"):
        load_tokenizer(str(path))
    (folder / "report.json").write_text(json.dumps(report)[:50])
    with pytest.raises(DataError, match=r"report.json cannot be read"):
        load_tokenizer(str(path))
    (folder / "report.json").write_text("[]")
    with pytest.raises(DataError, match="is not a tokenizer report"):
        load_tokenizer(str(path))
