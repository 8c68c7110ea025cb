"""Captions, translations and transcripts as the exported tokenizer makes them, shifted as transformers shifts them."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from shardyard.data.exported import exported_tokenizer
from shardyard.data.formats import FormatInputs, captions, make_rows
from shardyard.data.formats.target_text import TargetText, TextEncoder
from shardyard.data.text_frame import set_languages, target_frame, text_frame
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.errors import DataError
from shardyard.models.generation import begin_texts, write
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.seq2seq.loss import Seq2Seq
from shardyard.recipe.earlier import complete
from shardyard.recipe.schema import Source
from support.data_cases import data
from support.tokenizers import own as own_tokenizers

TINY = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}
# Family → tokenizer and configuration, as the published models have them.
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "bart": (own_tokenizers.bart, {**TINY, "decoder_start_token_id": 2, "pad_token_id": 1}),
    "mbart": (own_tokenizers.mbart, {**TINY, "pad_token_id": 1}),
    "m2m_100": (own_tokenizers.nllb, {**TINY, "decoder_start_token_id": 2, "pad_token_id": 1}),
    "t5": (
        lambda: load_tokenizer("unigram-docs-4k"),
        {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
    ),
    "marian": (lambda: load_tokenizer("bytes"), {**TINY, "decoder_start_token_id": 256, "pad_token_id": 256}),
}


def config(family: str, tokenizer: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(family, vocab_size=len(tokenizer), **FAMILIES[family][1])


def exported(tokenizer: Any, objective: str, folder: Path) -> Any:
    exported_tokenizer(tokenizer, objective).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def given(tokenizer: Any, model: Any = None, **options: Any) -> FormatInputs:
    recipe = data([Source(path="x.jsonl")], **{"sequence_length": 32, **options})
    return FormatInputs(recipe, tokenizer, model)


def shifted(described: PreTrainedConfig, labels: list[int]) -> list[int]:
    """What a model of transformers makes of labels."""
    with torch.device("meta"):
        model = transformers.AutoModelForSeq2SeqLM.from_config(described)
    given = torch.tensor([labels], device="cpu")
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return list(model.prepare_decoder_input_ids_from_labels(labels=given)[0].tolist())
    shift = import_module(type(model).__module__).shift_tokens_right
    return list(shift(given, described.pad_token_id, described.decoder_start_token_id)[0].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_translations_are_those_of_the_exported_tokenizer(tmp_path: Path, family: str) -> None:
    tokenizer = FAMILIES[family][0]()
    described = config(family, tokenizer)
    row = make_rows("seq2seq", given(tokenizer, described)).row(  # type: ignore[attr-defined]
        {"source": "a cat", "target": "un gato"}, np.random.default_rng(0)
    )
    theirs = exported(tokenizer, "seq2seq", tmp_path)
    assert row["input_ids"].tolist() == theirs("a cat")["input_ids"]
    labels = theirs(text_target="un gato")["input_ids"]
    assert row["labels"].tolist() == labels
    assert row["decoder_input_ids"].tolist() == shifted(described, labels)


def test_a_start_token_is_no_label(tmp_path: Path) -> None:
    """As in fine-tuning Whisper with transformers: what labels begin with is cut where it is the start token."""
    tokenizer = own_tokenizers.whisper()
    start, english, transcribe, plain = tokenizer.convert_tokens_to_ids(
        ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    )
    described = AutoConfig.for_model("whisper", decoder_start_token_id=start)
    inputs = given(tokenizer, described, target_language="en", task="transcribe")
    set_languages(tokenizer, inputs.data)
    row, cut = TargetText(inputs, TextEncoder(inputs)).row("hello")
    theirs = exported(tokenizer, "speech_to_text", tmp_path)("hello")["input_ids"]
    assert theirs[:4] == [start, english, transcribe, plain]
    assert [start, *row["labels"].tolist()] == theirs
    assert row["decoder_input_ids"].tolist() == theirs[:-1]
    assert cut == 0
    assert target_frame(tokenizer, described, inputs.data).prompt == (english, transcribe, plain)


def test_captions_begin_and_end_as_the_exported_tokenizer_makes_them(tmp_path: Path) -> None:
    tokenizer = own_tokenizers.clip()
    side = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**side, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    vision = {**side, "image_size": 16, "patch_size": 8}
    described = AutoConfig.for_model("clip", text_config=text, vision_config=vision)
    rows = captions.make(given(tokenizer, described, sequence_length=8))
    theirs = exported(tokenizer, "contrastive", tmp_path)
    assert rows.text_row("a cat")["input_ids"].tolist() == theirs("a cat")["input_ids"]
    long = rows.text_row("a very long caption")["input_ids"].tolist()
    assert long == theirs("a very long caption", truncation=True, max_length=8)["input_ids"]
    assert rows.num_cut == len(theirs("a very long caption")["input_ids"]) - 8
    earlier = captions.make(given(tokenizer, described, special_tokens="end"))
    assert earlier.text_row("a")["input_ids"].tolist() == theirs("a")["input_ids"][1:]


def test_a_text_is_cut_between_its_special_tokens() -> None:
    tokenizer = own_tokenizers.bart()
    inputs = given(tokenizer, config("bart", tokenizer), sequence_length=5)
    encoder = TextEncoder(inputs)
    ids, cut = encoder.encode("abcdef", 5)
    assert (tokenizer.convert_ids_to_tokens(ids), cut) == (["<s>", "a", "b", "c", "</s>"], 3)
    # A text that quotes a special token stays a text.
    assert encoder.encode("</s>", 99)[0].count(tokenizer.eos_token_id) == 1


def test_languages_of_the_recipe() -> None:
    tokenizer = own_tokenizers.mbart50()
    inputs = given(tokenizer, source_language="de_DE", target_language="fr_XX")
    set_languages(tokenizer, inputs.data)
    german, french = tokenizer.convert_tokens_to_ids(["de_DE", "fr_XX"])
    assert text_frame(tokenizer, inputs.data).head == (german,)
    assert text_frame(tokenizer, inputs.data, target=True).head == (french,)
    with pytest.raises(DataError, match=r"the tokenizer has no language 'xx'.*en_XX"):
        set_languages(tokenizer, data([Source(path="x")], target_language="xx"))
    with pytest.raises(DataError, match=r"the tokenizer has no language 'en_XX'"):
        set_languages(load_tokenizer("bytes"), data([Source(path="x")], source_language="en_XX"))
    with pytest.raises(DataError, match=r"the tokenizer refuses data.target_language or data.task"):
        set_languages(own_tokenizers.whisper(), data([Source(path="x")], target_language="klingon"))


def test_generation_begins_as_training() -> None:
    found = transformers.GenerationConfig(forced_bos_token_id=0, decoder_start_token_id=2)
    begin_texts(found, (), language=None, task=None)
    assert (found.decoder_start_token_id, found.forced_bos_token_id) == (2, None)
    begin_texts(found, (4, 7), language=None, task=None)
    assert (found.decoder_start_token_id, found.forced_bos_token_id) == (4, 7)
    found.lang_to_id = {"<|en|>": 1}
    begin_texts(found, (4, 7, 8), language="en", task="transcribe")
    assert (found.forced_bos_token_id, found.language, found.task) == (None, "en", "transcribe")


@pytest.mark.parametrize(
    ("begins", "told"),
    [
        (("<|startoftranscript|>", "<|notimestamps|>"), {"no_timestamps_token_id", "return_timestamps"}),
        (("<|startoftranscript|>", "<|en|>"), {"lang_to_id", "is_multilingual", "language"}),
        (
            ("<|startoftranscript|>", "<|es|>", "<|translate|>", "<|notimestamps|>"),
            {"lang_to_id", "is_multilingual", "language", "task_to_id", "task"}
            | {"no_timestamps_token_id", "return_timestamps"},
        ),
    ],
)
def test_a_configuration_without_whispers_tokens_gets_those_of_training(
    begins: tuple[str, ...], told: set[str], tmp_path: Path
) -> None:
    """Whisper's `generate` guesses a language where it finds languages and is told none."""
    tokenizer = own_tokenizers.whisper()
    found = transformers.GenerationConfig.from_model_config(AutoConfig.for_model("whisper"))
    before = {name for name, value in found.to_dict().items() if value is not None}
    ids = tokenizer.convert_tokens_to_ids(list(begins))
    begin_texts(found, ids, language=None, task=None, vocabulary=tokenizer.added_tokens_encoder)
    assert found.decoder_start_token_id == ids[0]
    write(tmp_path, found)
    read = transformers.GenerationConfig.from_pretrained(tmp_path)
    new = {name for name, value in read.to_dict().items() if value is not None} - before
    assert new - {"forced_bos_token_id"} == told
    if "language" in told:
        assert read.lang_to_id[read.language] == ids[1]


def test_runs_of_earlier_versions_keep_their_rows() -> None:
    fields: dict[str, Any] = {"data": {"sequence_length": 8}}
    complete(fields)
    assert fields["data"]["special_tokens"] == "end"
    fields["data"]["special_tokens"] = "tokenizer"
    complete(fields)
    assert fields["data"]["special_tokens"] == "tokenizer"
    tokenizer = own_tokenizers.bart()
    inputs = given(tokenizer, config("bart", tokenizer), special_tokens="end")
    row, _ = TargetText(inputs, TextEncoder(inputs)).row("ab")
    assert tokenizer.convert_ids_to_tokens(row["labels"].tolist()) == ["a", "b", "</s>"]
    assert row["decoder_input_ids"].tolist()[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bart", "mbart"])
def test_what_is_learned_is_what_is_written(family: str) -> None:
    """A model that begins with a forced token writes a learned text from its first letter on."""
    tokenizer = FAMILIES[family][0]()
    described = config(family, tokenizer)
    torch.manual_seed(0)
    model = transformers.AutoModelForSeq2SeqLM.from_config(described)
    inputs = given(tokenizer, described)
    target = target_frame(tokenizer, described, inputs.data)
    prompt = (target.start, *target.prompt)
    # As the published configuration of BART has it.
    model.generation_config.forced_bos_token_id = tokenizer.bos_token_id
    begin_texts(model.generation_config, prompt, language=None, task=None)
    objective = Seq2Seq(
        ObjectiveInputs(sequence_length=16, tokenizer=tokenizer, model=described, decoder_prompt=prompt)
    )
    rows = make_rows("seq2seq", replace(inputs, training=False))
    batch = rows.collate([rows.row({"source": "a", "target": "cat"}, np.random.default_rng(0))])  # type: ignore[attr-defined]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = objective.measure(model, batch).losses["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    ((decoded, reference, _),) = objective.collect(model, batch, synchronised=False)
    assert decoded == reference == "cat"
    written = model.generate(**objective.inputs(model, batch), max_new_tokens=12)
    assert tokenizer.decode(written[0], skip_special_tokens=True) == "cat"
