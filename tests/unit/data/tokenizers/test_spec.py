"""Specs of tokenizers: what is accepted, and how mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardyard.data.tokenizers.spec import TokenizerSource, TokenizerSpec, read_spec
from shardyard.errors import DataError
from support.tokenizer_cases import BERT, T5, write_spec

SPECIAL = "bos_token, eos_token, pad_token, unk_token, cls_token, sep_token"
SOURCE_KEYS = "config, language_column, languages, path, revision, source, split, text_columns"


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_spec(path)
    return str(caught.value).replace(str(tmp_path), "")


def test_every_problem_is_reported_with_its_line_and_key(tmp_path: Path) -> None:
    text = (
        "kind: wordpeice\ndescription: 3\nspecial_tokens: {unk_token: '[UNK]', end: x}\nvocabluary: 100\n"
        "min_frequency: 0\ntrain:\n  - source: python-docs\n    weight: 2\n"
    )
    assert refused(tmp_path, text).splitlines() == [
        "tokenizer spec /broken.yaml: 6 problems",
        "  /broken.yaml:1: kind: must be one of bytes, bpe, wordpiece or unigram, got 'wordpeice' (text)",
        "  /broken.yaml:2: description: input should be a valid string, got 3",
        f"  /broken.yaml:3: special_tokens.end: must be one of {SPECIAL} or mask_token, got 'end' (text)",
        "  /broken.yaml:5: min_frequency: input should be greater than or equal to 1, got 0",
        f"  /broken.yaml:8: train.0.weight: unknown key 'weight'; valid: {SOURCE_KEYS}",
        "  /broken.yaml:4: vocabluary: unknown key 'vocabluary'; did you mean 'vocabulary'?",
    ]


def test_fields_that_do_not_go_together_are_reported_together(tmp_path: Path) -> None:
    text = (
        "kind: bytes\ndescription: x\nspecial_tokens: {eos_token: ''}\ntemplate: bert\nvocabulary: 9\n"
        "lowercase: false\nheld_out: 0.1\n"
    )
    assert refused(tmp_path, text).splitlines()[1:] == [
        "  /broken.yaml:5: vocabulary: kind bytes has no vocabulary; take it out (it is for bpe, wordpiece, unigram)",
        "  /broken.yaml:6: lowercase: kind bytes has no lowercase; take it out (it is for bpe, wordpiece, unigram)",
        "  /broken.yaml:7: held_out: kind bytes has no held_out; take it out (it is for bpe, wordpiece, unigram)",
        "  /broken.yaml:3: special_tokens: template bert needs cls_token",
        "  /broken.yaml:3: special_tokens: template bert needs sep_token",
        "  /broken.yaml:3: special_tokens.eos_token: is empty",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("vocabulary: 257\ntrain: [{source: python-docs}]", "257 is too small: special tokens and single characters"),
        ("train: [{source: python-docs}]", "vocabulary: is missing"),
        ("vocabulary: 999", "train: is missing"),
        ("vocabulary: 999\ntrain: [{}]", "train.0: needs either `source`"),
        ("vocabulary: 999\ntrain: [{source: a, path: b}]", "train.0: needs either `source`"),
        (
            "vocabulary: 999\ntrain: [{path: a.csv, text_columns: [a, b], languages: [en]}]",
            "train.0.languages: has 1 labels for 2 text columns",
        ),
        (
            "vocabulary: 999\ntrain: [{path: a.csv, languages: [en], language_column: l}]",
            "train.0.language_column: contradicts languages",
        ),
        ("vocabulary: 999\ntrain: [{source: a, revision: main}]", "train.0.revision: belongs to a hub dataset"),
        ("vocabulary: 999\ntrain: [{path: a.csv, text_columns: []}]", "train.0.text_columns: list should have"),
        ("alphabet: 9\nvocabulary: 999\ntrain: [{path: a.csv}]", "alphabet: kind bpe has no alphabet"),
    ],
)
def test_what_training_needs_is_checked(tmp_path: Path, lines: str, message: str) -> None:
    text = f"kind: bpe\ndescription: x\nspecial_tokens: {{eos_token: a, bos_token: b}}\n{lines}\n"
    assert message in refused(tmp_path, text)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_kinds_with_unknown_characters_need_an_unknown_token(tmp_path: Path, kind: str) -> None:
    text = f"kind: {kind}\ndescription: x\nspecial_tokens: {{}}\nvocabulary: 99\ntrain: [{{path: a.csv}}]\n"
    assert f"special_tokens: kind {kind} needs unk_token" in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: [\n", "/broken.yaml:2 is not valid YAML"),
        ("kind: bytes\nkind: bpe\n", "not valid YAML"),
        ("[]\n", "holds a list of 0 at its top level"),
        ("", "holds null at its top level"),
    ],
)
def test_other_files_are_explained(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(tmp_path, text)


def test_a_spec_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_spec(tmp_path / "nowhere.yaml")


def test_the_sources_are_those_of_recipes(tmp_path: Path) -> None:
    source = TokenizerSource(path="org/set", config="en", revision="abc", split="test", text_columns=["a", "b"])
    opened = source.as_recipe_source()
    assert (opened.path, opened.config, opened.revision, opened.split) == ("org/set", "en", "abc", "test")
    assert opened.text_column == "a"
    assert source.name == "org/set:en"


def test_the_description_does_not_change_what_a_spec_defines(tmp_path: Path) -> None:
    values = {"kind": "unigram", "special_tokens": T5, "vocabulary": 300}
    first = read_spec(write_spec(tmp_path, "a", **values))
    second = read_spec(write_spec(tmp_path, "b", **{**values, "description": "other"}))
    assert first.definition() == second.definition()
    assert read_spec(write_spec(tmp_path, "c", **{**values, "template": "eos"})).definition() != first.definition()


def test_every_field_has_a_description() -> None:
    for section in (TokenizerSpec, TokenizerSource):
        assert [name for name, info in section.model_fields.items() if not info.description] == []
    assert TokenizerSpec.model_fields["vocabulary"].json_schema_extra == {"unit": "tokens"}
    assert len(BERT) == 5
