"""Encoder–decoders against transformers' own loss, label smoothing and Whisper's generation; scores of decoded rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, PreTrainedModel
from transformers.trainer_pt_utils import LabelSmoother

from shardyard.data.exported import exported_tokenizer
from shardyard.engine.hooks.generate import generate
from shardyard.models.build import architecture_config, construct, special_token_ids
from shardyard.objectives.base import Tensors
from shardyard.objectives.decoding import decode, kept_texts
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.losses import ctc
from shardyard.objectives.make import make_objective
from shardyard.objectives.seq2seq.loss import EncoderDecoder
from shardyard.recipe.schema import Audio, Evaluate, Loss, Model
from support.data_cases import SEPARATOR, bytes_tokenizer

LENGTH = 7
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
LAYERS = {"encoder_layers": 2, "decoder_layers": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "marian": {"d_model": 32, "max_position_embeddings": 16, **HEADS, **LAYERS},
    "bart": {"d_model": 32, "max_position_embeddings": 16, **HEADS, **LAYERS},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2},
    "whisper": {"d_model": 32, "max_source_positions": 50, "max_target_positions": 16, "num_mel_bins": 8}
    | HEADS
    | LAYERS,
}


def tiny(family: str) -> PreTrainedModel:
    torch.manual_seed(7)
    model = Model(family=family, config=CONFIGS[family], dropout=0.0)
    tokenizer = bytes_tokenizer()
    config = architecture_config(model, vocabulary=257, special_tokens=special_token_ids(tokenizer))
    built = construct(model, config, name_of(family))
    with torch.no_grad():  # As they are made, all inputs give nearly the same, which would hide a wrong one.
        for name, parameter in built.named_parameters():
            if "positions" in name:  # computed by some families, and not saved
                continue
            if "embed" in name or "shared" in name:
                parameter.mul_(1.0 if family == "t5" else 8.0)
            elif parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
    return built.eval()


def name_of(family: str) -> str:
    return "speech_to_text" if family == "whisper" else "seq2seq"


def objective(
    family: str, *, smoothing: float = 0.0, name: str = "cross_entropy", beams: int = 1, audio: Audio | None = None
) -> EncoderDecoder:
    parts = ObjectiveInputs(
        audio=audio or Audio(),
        loss=Loss(name=name, label_smoothing=smoothing),
        evaluate=Evaluate(generate_rows=3, beams=beams),
        sequence_length=LENGTH,
        tokenizer=bytes_tokenizer(),
    )
    made = make_objective(name_of(family), parts)
    assert isinstance(made, EncoderDecoder)
    return made


def batch_of(family: str, rows: int = 3) -> Tensors:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 256, (rows, LENGTH), generator=generator)
    labels[:, -1] = SEPARATOR
    labels[1, 4:] = -100
    start = torch.full((rows, 1), SEPARATOR)
    batch = {"labels": labels, "decoder_input_ids": torch.cat([start, labels[:, :-1].clamp(min=0)], 1)}
    if family == "whisper":
        return batch | {"input_features": torch.randn((rows, 8, 100), generator=generator)}
    mask = torch.ones((rows, 9), dtype=torch.long)
    mask[2, 5:] = 0
    return batch | {"input_ids": torch.randint(0, 256, (rows, 9), generator=generator), "attention_mask": mask}


def inputs(batch: Tensors) -> Tensors:
    return {name: batch[name] for name in ("input_ids", "attention_mask", "input_features") if name in batch}


def measured(model: PreTrainedModel, family: str, batch: Tensors, **options: Any) -> Tensor:
    made = objective(family, **options)
    return made.measure(model, batch).losses["loss"] / made.counts(batch)["loss"]


@pytest.mark.parametrize("family", CONFIGS)
def test_the_loss_and_its_gradient_are_those_of_transformers(family: str) -> None:
    ours, theirs, batch = tiny(family), tiny(family), batch_of(family)
    theirs_loss = theirs(**inputs(batch), decoder_input_ids=batch["decoder_input_ids"], labels=batch["labels"]).loss
    loss = measured(ours, family, batch)
    assert float(loss.detach()) == pytest.approx(float(theirs_loss.detach()), rel=1e-5)
    loss.backward()
    theirs_loss.backward()
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(
                b.grad, a.grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("family", CONFIGS)
def test_label_smoothing_is_that_of_transformers_and_only_in_training(family: str) -> None:
    model, batch = tiny(family), batch_of(family)
    with torch.no_grad():
        output = model(**inputs(batch), decoder_input_ids=batch["decoder_input_ids"])
        smoothed = float(LabelSmoother(0.1)(output, batch["labels"]))
        plain = float(measured(model, family, batch))
        assert float(measured(model, family, batch, smoothing=0.1)) == plain
        assert float(measured(model.train(), family, batch, smoothing=0.1)) == pytest.approx(smoothed, rel=1e-5)
    assert abs(smoothed - plain) > 1e-3


def test_the_engine_tells_by_the_module_inside_whether_it_trains() -> None:
    """DeepSpeed's engine stays in training mode itself."""

    class Engine(torch.nn.Module):
        def __init__(self, module: PreTrainedModel) -> None:
            super().__init__()
            self.module = module

        def forward(self, **arguments: Any) -> Any:
            return self.module(**arguments)

    model, batch = tiny("marian"), batch_of("marian")
    engine = Engine(model)
    model.eval()
    with torch.no_grad():
        assert engine.training
        assert measured(engine, "marian", batch, smoothing=0.1) == measured(model, "marian", batch)  # type: ignore[arg-type]


def test_focal_loss_trains_and_cross_entropy_evaluates() -> None:
    model, batch = tiny("marian"), batch_of("marian")
    with torch.no_grad():
        plain = float(measured(model, "marian", batch))
        assert float(measured(model, "marian", batch, name="focal")) == plain
        assert float(measured(model.train(), "marian", batch, name="focal")) < plain


def test_padding_changes_nothing() -> None:
    """A row alone, and beside longer ones."""
    for family in ("marian", "t5", "bart"):
        model, batch = tiny(family), batch_of(family)
        with torch.no_grad():
            together = objective(family).measure(model, batch).losses["loss"]
            cuts = {0: (9, LENGTH), 1: (9, 4), 2: (5, LENGTH)}
            alone = torch.zeros(())
            for row, (source, target) in cuts.items():
                one = {name: value[row : row + 1] for name, value in batch.items()}
                one |= {name: one[name][:, :source] for name in ("input_ids", "attention_mask")}
                one |= {name: one[name][:, :target] for name in ("decoder_input_ids", "labels")}
                alone += objective(family).measure(model, one).losses["loss"]
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["marian", "t5", "bart"])
def test_decoding_is_that_of_the_exported_model(tmp_path: Path, family: str, beams: int) -> None:
    model, batch, tokenizer = tiny(family), batch_of(family), bytes_tokenizer()
    ours = decode(model, tokenizer, inputs(batch), max_tokens=LENGTH, beams=beams)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    ids = loaded.generate(**inputs(batch), max_new_tokens=LENGTH, num_beams=beams, pad_token_id=SEPARATOR)
    assert ours == tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert len(set(ours)) > 1


def test_greedy_decoding_takes_the_likeliest_token_each_time() -> None:
    model, batch, tokenizer = tiny("whisper"), batch_of("whisper"), bytes_tokenizer()
    ids = torch.full((3, 1), SEPARATOR)
    with torch.no_grad():
        for _ in range(LENGTH):
            logits = model(**inputs(batch), decoder_input_ids=ids).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    expected = [row[: row.index(SEPARATOR)] if SEPARATOR in row else row for row in ids[:, 1:].tolist()]
    found = decode(model, tokenizer, inputs(batch), max_tokens=LENGTH)
    assert found == tokenizer.batch_decode(expected)
    assert len(set(found)) > 1


def test_whisper_forbids_no_token_of_another_vocabulary(tmp_path: Path) -> None:
    """Its defaults are ids of its own tokenizer; 220 would be a byte here."""
    model = tiny("whisper")
    assert model.generation_config.begin_suppress_tokens is None
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path)
    batch = batch_of("whisper")
    ours = decode(model, bytes_tokenizer(), inputs(batch), max_tokens=LENGTH)
    assert decode(loaded, bytes_tokenizer(), inputs(batch), max_tokens=LENGTH) == ours


def as_rows(texts: list[str]) -> Tensor:
    encoded = [text.encode() for text in texts]
    longest = max(map(len, encoded))
    return torch.tensor([list(text.ljust(longest, b"\0")) for text in encoded], dtype=torch.uint8)


def test_texts_are_kept_through_a_batch() -> None:
    texts = ["ñandú", "", "a longer text, with spaces "]
    assert kept_texts({"reference": as_rows(texts)}, "reference") == texts


def test_translations_are_collected_with_references_and_scored() -> None:
    made, model = objective("marian", beams=2), tiny("marian")
    assert made.rows_to_collect(64) == 3
    assert made.rows_to_collect(2) == 2
    kept = {"reference": as_rows(["uno", "dos", "tres"]), "source_text": as_rows(["one", "two", "three"])}
    collected = made.collect(model, batch_of("marian") | kept, synchronised=False)
    assert [row[1:] for row in collected] == [("uno", "one"), ("dos", "two"), ("tres", "three")]
    assert all(isinstance(row[0], str) for row in collected)
    perfect = made.score([("el gato duerme en la casa",) * 2 + ("the cat sleeps at home",)])
    assert perfect["bleu"] == pytest.approx(100.0)
    assert perfect["chrf"] == pytest.approx(100.0)
    assert 0 < perfect["chrf_of_source"] < 40


def test_error_rates_know_no_case_and_no_punctuation() -> None:
    made = objective("whisper")
    right = made.score([("press two, to HEAR it", "Press two to hear it!")])
    assert right == {"word_error_rate": 0.0, "character_error_rate": 0.0}
    half = made.score([("one", "one two"), ("x", "x")])
    assert half["word_error_rate"] == pytest.approx(1 / 3)
    assert half["character_error_rate"] == pytest.approx(4 / 8)


def test_a_sample_of_an_encoder_decoder_is_its_whole_output() -> None:
    model, tokenizer = tiny("marian"), exported_tokenizer(bytes_tokenizer(), "seq2seq")
    text = generate(model, tokenizer, "abcd", max_new_tokens=LENGTH, device=torch.device("cpu"))
    ids = torch.tensor([[*b"abcd", SEPARATOR]])
    assert [text] == decode(model, tokenizer, {"input_ids": ids}, max_tokens=LENGTH)
    longer = generate(model, tokenizer, "a" * 40, max_new_tokens=40, device=torch.device("cpu"))
    assert len(longer) <= CONFIGS["marian"]["max_position_embeddings"]


def test_ctc_teaches_the_encoder_in_training_alone() -> None:
    batch, plain, taught = batch_of("whisper"), objective("whisper"), objective("whisper", audio=Audio(ctc=0.5))
    model = tiny("whisper")
    assert taught.measure(model, batch).losses["loss"] == plain.measure(model, batch).losses["loss"]
    model.train()
    found = taught.measure(model, batch)
    heard = model.get_output_embeddings()(model.get_encoder()(batch["input_features"]).last_hidden_state)
    nll = ctc(heard, batch["labels"], blank=SEPARATOR)
    written = plain.measure(model, batch).losses["loss"]
    torch.testing.assert_close(found.losses["loss"], written + 0.5 * nll)
    assert float(found.observed["ctc"]) == pytest.approx(float(nll.detach()))
