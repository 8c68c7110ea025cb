"""Rows of pictures within text are what each model's own processor makes, and their loss is that of transformers."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer
from transformers.utils import is_torchvision_available

from shardyard.data.formats import pictures_in_text
from shardyard.data.multimodal.classes import processor_class, processor_name
from shardyard.data.multimodal.conversation import chat_of, conversation, picture_answer_ends, prompt_inputs, written
from shardyard.data.multimodal.encode import takes_suffix
from shardyard.data.multimodal.processor import own_processor
from shardyard.data.stream.loader import TrainLoader
from shardyard.data.stream.packing import IGNORED
from shardyard.errors import DataError, UnusableRowError
from shardyard.launch.run.prepare import prepare
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.make import make_objective
from shardyard.planning.plan import World
from shardyard.recipe import schema
from shardyard.recipe.loading.load import parse_recipe
from support.objectives.picture_families import FAMILIES, ROWS, family_of, noise, recipe_fields, tiny, tiny_inputs
from support.objectives.vision_language import write_data

GENERATOR = np.random.default_rng(0)

# Of each kind of processor one or two; the others only have to give the same batch and loss.
SAMPLE = ("llava/pixtral", "qwen2_vl", "gemma3", "paligemma", "idefics3", "mllama")


def batch_of(rows: Any, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return dict(rows.collate([rows.row(example, GENERATOR) for example in examples]))


def by_processor(processor: Any, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The processor's own batch of conversations, padded as in training."""
    processor.tokenizer.pad_token = processor.tokenizer.pad_token or processor.tokenizer.eos_token
    found = [conversation(example) for example in examples]
    images = [pictures for _, pictures in found]
    if takes_suffix(processor):
        text = [
            "<image>" * len(pictures) + one["prompt"].replace("<image>", "")
            for one, pictures in zip(examples, images, strict=True)
        ]
        suffix = [one["response"] for one in examples]
        return dict(
            processor(text=text, images=images, suffix=suffix, return_tensors="pt", padding=True, padding_side="right")
        )
    texts = [processor.apply_chat_template(messages, tokenize=False) for messages, _ in found]
    bos = processor.tokenizer.bos_token
    options = {"add_special_tokens": False} if bos and texts[0].startswith(bos) else {}
    return dict(
        processor(text=texts, images=images, return_tensors="pt", padding=True, padding_side="right", **options)
    )


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    attended = ours["attention_mask"].bool()
    assert torch.equal(ours["attention_mask"], theirs["attention_mask"])
    for name, values in ours.items():
        if name in ("input_ids", "cross_attention_mask"):
            # What stands at padding is read by nobody.
            assert torch.equal(values[attended], theirs[name][attended]), name
        elif name != "labels":
            assert torch.equal(values, theirs[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_is_the_processors_and_its_loss_that_of_transformers(name: str, tmp_path: Path) -> None:
    one = tiny(name)
    rows = pictures_in_text.make(one.inputs)
    batch = batch_of(rows, ROWS)
    assert_same(batch, by_processor(one.inputs.processor, ROWS))
    answers = [one.inputs.text_tokenizer.decode(row[row != IGNORED]) for row in batch["labels"]]
    assert [answer.strip() for answer in answers] == ["red<|endoftext|>", "blue and green<|endoftext|>"]
    measured = make_objective("vision_language", ObjectiveInputs()).measure(one.model, batch).losses["loss"]
    labels = torch.full_like(batch["labels"], IGNORED)
    labels[:, 1:] = batch["labels"][:, :-1]
    with torch.no_grad():
        theirs = one.model(**{key: value for key, value in batch.items() if key != "labels"}, labels=labels).loss
    assert math.isclose(float(measured.detach()) / int((labels != IGNORED).sum()), float(theirs), rel_tol=1e-5)

    one.inputs.processor.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    restored = [own_processor(family_of(name), one.inputs.model, tokenizer, schema.Image(), str(tmp_path))]
    needs_torchvision = type(one.inputs.processor).__name__ == "PixtralProcessor"
    if one.inputs.processor.video_settings is None and not needs_torchvision:
        restored.append(AutoProcessor.from_pretrained(tmp_path, backend="pil"))
    elif is_torchvision_available():
        restored.append(AutoProcessor.from_pretrained(tmp_path))
    for processor in restored:
        assert type(processor).__name__ == type(one.inputs.processor).__name__
        assert_same(batch, by_processor(processor, ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_model_answers_with_a_cache_as_without(name: str) -> None:
    """Generation from the processor's prompt: greedy tokens equal those of one pass over the whole row each."""
    one = tiny(name)
    inputs = prompt_inputs(one.inputs.processor, "Colour?", [noise(20, 30, 1)])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        cached, whole = (one.model.generate(**inputs, use_cache=cache, **options) for cache in (True, False))
    assert cached.shape[1] > inputs["input_ids"].shape[1]
    assert torch.equal(cached, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_planned(name: str, tmp_path: Path) -> None:
    """With the cost of a row, and with the first row of its files made by its processor."""
    recipe = parse_recipe(recipe_fields(name, write_data(tmp_path), 2))
    found = prepare(recipe, World(size=1, gpu=False)).architecture
    assert found.flops_per_row is not None
    assert found.flops_per_row > 6 * 256 * found.vocabulary * found.hidden_size
    assert found.kept_32 is not None


def spans(processor: Any, messages: list[dict[str, Any]], pictures: list[Any]) -> list[str]:
    found, _ = conversation({"messages": messages, "images": pictures})
    (row,) = written(chat_of(processor), {}, found)
    return [row.text[span.first : span.last] for span in row.spans]


CONVERSATION = [
    {"role": "user", "content": [{"type": "text", "text": "Left:"}, {"type": "image"}]},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "<image> And this?"},
    {"role": "assistant", "content": [{"type": "text", "text": "blue"}]},
]


@pytest.fixture(scope="module")
def gemma() -> Any:
    return tiny_inputs("gemma3")


def test_every_answer_of_a_conversation_is_learned_with_its_end(gemma: Any) -> None:
    end = gemma.text_tokenizer.eos_token
    pictures = [noise(8, 8, seed) for seed in range(2)]
    assert spans(gemma.processor, CONVERSATION, pictures) == [f" red{end}", f" blue{end}"]
    row = pictures_in_text.make(gemma).row({"messages": CONVERSATION, "images": pictures}, GENERATOR)
    ids, labels = row["input_ids"][0], row["labels"][0]
    learned = gemma.text_tokenizer.decode(labels[labels != IGNORED])
    assert learned == f" red{end} blue{end}"
    assert len(row["pixel_values"]) == 2
    # Shifted: each target is the next token.
    at = np.flatnonzero(labels[:-1] != IGNORED)
    assert (labels[at] == ids[at + 1]).all()


# ChatML as Qwen2-VL documents it: each message between two tokens, a picture between two others.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Idefics 3 reads lists of parts alone, and ends a turn with a token of its own.
PARTS_ALONE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}<image>{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


@pytest.mark.parametrize(
    ("name", "template", "end", "space"),
    [("qwen2_vl", CHATML, "<|im_end|>", ""), ("idefics3", PARTS_ALONE, "<end_of_utterance>", " ")],
)
def test_answers_end_with_the_token_of_the_processors_template(name: str, template: str, end: str, space: str) -> None:
    inputs = tiny_inputs(name)
    tokenizer, processor = inputs.processor.tokenizer, inputs.processor
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    processor.chat_template = template
    pictures = [noise(24, 24, seed) for seed in range(2)]
    assert spans(processor, CONVERSATION, pictures) == [f"{space}red{end}", f"{space}blue{end}"]
    assert picture_answer_ends(processor) == [tokenizer.convert_tokens_to_ids(end)]
    row = pictures_in_text.make(inputs).row({"messages": CONVERSATION, "images": pictures}, GENERATOR)
    labels = row["labels"][0]
    assert tokenizer.decode(labels[labels != IGNORED]) == f"{space}red{end}{space}blue{end}"
    assert_same(
        {key: torch.from_numpy(value) for key, value in row.items()},
        by_processor(processor, [{"messages": CONVERSATION, "images": pictures}]),
    )


def test_pictures_are_read_by_their_columns(tmp_path: Path, gemma: Any) -> None:
    """A list of pictures beside messages in ShareGPT's form, and a row that lacks a picture, which is left out."""

    def encoded(seed: int) -> dict[str, Any]:
        buffer = io.BytesIO()
        noise(8, 8, seed).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": f"{seed}.png"}

    shared = [{"from": "human", "value": "Both: <image><image>"}, {"from": "gpt", "value": "red"}]
    rows = [{"images": [encoded(2 * row), encoded(2 * row + 1)], "conversations": shared} for row in range(3)]
    rows.append({"images": [encoded(9)], "conversations": shared})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    source = schema.Source(path=str(tmp_path / "rows.parquet"))
    data = gemma.data.model_copy(update={"train": [source], "on_error": "skip"})
    shares = {"global_batch": 3, "streams": 1, "seed": 0, "dp_rank": 0, "dp_size": 1}
    loader = TrainLoader(replace(gemma, data=data, training=True), objective="vision_language", **shares)
    try:
        (batch,) = next(loader).micro_batches
    finally:
        loader.close()
    assert batch["pixel_values"].shape == (6, 3, 16, 16)
    assert len(batch["input_ids"]) == 3
    assert loader.stats()["sources"][0]["tokens"] == int(batch["attention_mask"].sum())


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (
            {"messages": CONVERSATION, "images": [noise(8, 8, 0)]},
            "more or fewer pictures than places for them: 1 and 2",
        ),
        ({"prompt": "Hm?", "response": "red"}, "no picture"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}, CONVERSATION[1]]}, "not 'audio'"),
        ({"messages": [{"content": "Hm?"}, CONVERSATION[1]], "images": [noise(8, 8, 0)]}, "needs a role"),
        ({"messages": CONVERSATION[:1], "images": [noise(8, 8, 0)]}, "no turn of the assistant"),
        ({"messages": [CONVERSATION[0], {"role": "assistant", "content": ""}]}, "turn of the assistant is empty"),
        ({"image": noise(8, 8, 0), "prompt": "<start_of_image> twice", "response": "red"}, "Processor refuses a row"),
    ],
)
def test_a_row_of_which_nothing_can_be_learned_is_refused(gemma: Any, example: dict[str, Any], message: str) -> None:
    with pytest.raises(UnusableRowError, match=message):
        pictures_in_text.make(gemma).row(example, GENERATOR)


def test_a_long_answer_is_cut_and_a_picture_never(gemma: Any) -> None:
    example = {"image": noise(8, 8, 0), "prompt": "Hm?", "response": "x" * 40}
    rows = pictures_in_text.make(replace(gemma, data=gemma.data.model_copy(update={"sequence_length": 50})))
    row = rows.row(example, GENERATOR)
    assert row["input_ids"].shape == row["labels"].shape == row["token_type_ids"].shape == (1, 50)
    assert rows.num_cut > 0
    assert (row["labels"][0] != IGNORED).any()
    assert row["labels"][0, -1] == IGNORED
    short = pictures_in_text.make(replace(gemma, data=gemma.data.model_copy(update={"sequence_length": 8})))
    with pytest.raises(UnusableRowError, match=r"reach beyond data.sequence_length"):
        short.row(example, GENERATOR)


def test_a_blind_model_is_given_black_pictures(gemma: Any) -> None:
    blind = pictures_in_text.make(replace(gemma, data=gemma.data.model_copy(update={"drop_inputs": True})))
    seen, unseen = (rows.row(ROWS[0], GENERATOR) for rows in (pictures_in_text.make(gemma), blind))
    assert np.unique(seen["pixel_values"]).size > 1
    assert np.unique(unseen["pixel_values"]).size == 1
    assert np.array_equal(seen["input_ids"], unseen["input_ids"])


def test_augmentation_is_for_training_alone_and_repeats_with_the_generator(gemma: Any) -> None:
    image = schema.Image(min_scale=0.5, rotate=20.0, flip=True)
    moving, still = (pictures_in_text.make(replace(gemma, image=image, training=on)) for on in (True, False))

    def pixels(rows: Any, seed: int) -> Any:
        return rows.row(ROWS[0], np.random.default_rng(seed))["pixel_values"]

    assert np.array_equal(pixels(moving, 1), pixels(moving, 1))
    assert not np.array_equal(pixels(moving, 1), pixels(moving, 2))
    assert np.array_equal(pixels(still, 1), pixels(still, 2))


def test_the_recipe_changes_the_processor() -> None:
    inputs = tiny_inputs("gemma3", {"mean": [0.1, 0.2, 0.3], "options": {"do_convert_rgb": False}})
    assert list(inputs.processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert inputs.processor.image_processor.do_convert_rgb is False


@pytest.mark.parametrize(
    ("family", "message"), [("mistral4", "knows of none for mistral4"), ("kosmos-2", "knows of none")]
)
def test_a_family_without_a_processor_is_refused_without_blaming_transformers(family: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        processor_name(family)
    with pytest.raises(DataError, match="does not prepare qformer_tokenizer"):
        processor_class("InstructBlipProcessor")
