"""Conversations with pictures follow the settings and the code of conversations of text."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.data.chat import add_chat_template
from shardyard.data.formats import pictures_in_text
from shardyard.data.formats.conversations import make as make_text
from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.multimodal.conversation import picture_answer_ends, prepare_processor
from shardyard.data.stream.held_out import held_out_rows
from shardyard.errors import DataError, UnusableRowError
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.rules import check
from shardyard.recipe.schema import Chat, Source
from support.chat.cases import CONVERSATIONS, TOOL, answer, system, user
from support.objectives.picture_families import noise, tiny_inputs
from support.objectives.vision_language import recipe_fields as question_fields
from support.objectives.vision_language import write_data

# Tools, calls, reasoning of the last turn alone, and marks: whatever a template may do.
_CONTENT = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content or [] %}"
    "{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endif %}"
)
_CALLS = (
    "{% for c in m.tool_calls or [] %}<tool_call>{{ {'name': c.function.name, 'arguments': c.function.arguments} "
    "| tojson }}</tool_call>{% endfor %}"
)
_THOUGHT = "{% if m.reasoning_content and loop.index0 > ns.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
TEMPLATE = (
    "{{ style }}{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}" + _THOUGHT + _CONTENT + _CALLS + "<|im_end|>{% else %}" + _CONTENT + "<|im_end|>"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = TEMPLATE.replace(_CONTENT + _CALLS, "{% generation %}" + _CONTENT + _CALLS).replace(
    "<|im_end|>{% else %}", "<|im_end|>{% endgeneration %}{% else %}"
)
GENERATOR = np.random.default_rng(0)
PICTURE = noise(24, 24, 0)


@pytest.fixture(scope="module")
def qwen() -> FormatInputs:
    inputs = tiny_inputs("qwen2_vl", sequence_length=1024)
    inputs.processor.tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return replace(inputs, tokenizer=inputs.processor.tokenizer)


def with_chat(inputs: FormatInputs, **chat: Any) -> FormatInputs:
    return replace(inputs, chat=Chat(**{"template": TEMPLATE, **chat}))


def targets(inputs: FormatInputs, rows: Any) -> list[tuple[str, list[float]]]:
    """The trained text of each row, and the weights of its tokens."""
    found = []
    for row in rows:
        labels = row["labels"].reshape(-1)
        learned = labels != -100
        weights = row["target_weights"].reshape(-1)[learned].tolist() if "target_weights" in row else []
        found.append((inputs.text_tokenizer.decode(labels[learned]), weights))
    return found


def read(inputs: FormatInputs, example: Any) -> list[tuple[str, list[float]]]:
    return targets(inputs, pictures_in_text.make(inputs).rows_of({**example, "images": [PICTURE]}, GENERATOR))


@pytest.mark.parametrize("loss_on", [None, "last", "marked"])
@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_answers_beside_a_picture_are_those_of_the_same_text(qwen: FormatInputs, kind: str, loss_on: Any) -> None:
    inputs = with_chat(qwen, loss_on=loss_on, template=MARKED if loss_on == "marked" else TEMPLATE)
    example = CONVERSATIONS[kind]
    if kind.startswith("empty"):
        with pytest.raises(UnusableRowError, match="is empty"):
            read(inputs, example)
        return
    text = make_text(replace(inputs, processor=None))
    expected = targets(inputs, text.rows_of(example, GENERATOR))
    assert read(inputs, example) == expected
    assert all(trained for trained, _ in expected)


def test_each_row_of_rewritten_history_has_the_pictures_shown_in_it(qwen: FormatInputs) -> None:
    talk = [
        user("One <image>?"),
        answer("First.", reasoning_content="why"),
        user("Two <image><image>?"),
        answer("Second.", reasoning_content="so", weight=0.5),
    ]
    made = pictures_in_text.make(with_chat(qwen))
    rows = made.rows_of({"messages": talk, "images": [noise(24, 24, seed) for seed in range(3)]}, GENERATOR)
    assert targets(qwen, rows) == [
        ("<think>why</think>First.<|im_end|>", []),
        ("<think>so</think>Second.<|im_end|>", [0.5] * len("<think>so</think>Second.") + [0.5]),
    ]
    assert [len(row["image_grid_thw"]) for row in rows] == [1, 3]
    batch = made.collate(rows)
    assert batch["target_weights"].shape == batch["labels"].shape
    assert set(batch["target_weights"][0, : rows[0]["labels"].size].tolist()) == {1.0}


def test_the_template_of_the_recipe_leaves_with_the_processor(qwen: FormatInputs, tmp_path: Path) -> None:
    inputs = with_chat(qwen, template_kwargs={"style": "Be brief."})
    notes = prepare_processor(inputs.processor, inputs.chat)
    assert notes is not None
    assert "shows an answer otherwise once the conversation goes on" in notes.in_words()
    inputs.processor.save_pretrained(tmp_path)
    saved = (tmp_path / "chat_template.jinja").read_text(encoding="utf-8")
    tokenizer = inputs.text_tokenizer
    add_chat_template(tokenizer, saved)
    shown = tokenizer.apply_chat_template([user("a?")], tokenize=False, add_generation_prompt=True)
    assert shown == "Be brief.<|im_start|>user\na?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in picture_answer_ends(inputs.processor)


def test_pictures_within_messages_of_each_form(qwen: FormatInputs, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "picture.png")
    content = base64.b64encode((tmp_path / "picture.png").read_bytes()).decode()
    forms: list[dict[str, Any]] = [
        {"type": "image", "image": PICTURE},
        {"type": "image", "path": str(tmp_path / "picture.png")},
        {"type": "image", "image": f"file://{tmp_path}/picture.png"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{content}"}},
        {"type": "input_image", "image_url": f"data:image/png;base64,{content}"},
    ]
    made = pictures_in_text.make(with_chat(qwen))

    def row(form: dict[str, Any]) -> Any:
        return made.row({"messages": [user([form, {"type": "text", "text": "a?"}]), answer("A.")]}, GENERATOR)

    first, *others = map(row, forms)
    for other in others:
        assert all(np.array_equal(first[name], other[name]) for name in first)
    with pytest.raises(UnusableRowError, match="a picture is on the web; download it"):
        row({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}})
    with pytest.raises(UnusableRowError, match="a data URL that is not base64"):
        row({"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}})


def test_bad_rows_with_pictures_are_skipped_and_repaired_by_policy(qwen: FormatInputs, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "picture.png")
    talks = {
        "good": [user("a?"), answer("A.")],
        "assistant first": [answer("Welcome."), user("b?"), answer("B.")],
        "not alternating": [user("c"), user("c?"), answer("C.")],
        "system": [system("Be kind."), user("d?"), answer("D.")],
        "empty turn": [user("e?"), answer(""), user("e again?"), answer("E.")],
        "no answer": [user("f?")],
    }
    strict = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + TEMPLATE
    )
    path = tmp_path / "rows.jsonl"
    rows = [{"image": str(tmp_path / "picture.png"), "messages": talk, "tools": [TOOL]} for talk in talks.values()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for on_error in ("skip", "repair"):
        data = {"train": [Source(path=str(path))], "validation": [Source(path=str(path))], "on_error": on_error}
        inputs = replace(with_chat(qwen, template=strict), data=qwen.data.model_copy(update=data))
        held = held_out_rows(inputs, 99, 0, objective="vision_language")
        assert held.left_out is not None
        assert all("weather" in qwen.text_tokenizer.decode(row["input_ids"][0]) for row in held.rows)
        found[on_error] = ({text for text, _ in targets(qwen, held.rows)}, held.num_left_out, held.left_out["repaired"])
    assert found["skip"] == ({"A.<|im_end|>"}, 5, 0)
    assert found["repair"] == ({f"{letter}.<|im_end|>" for letter in "ABCDE"}, 1, 4)


def test_settings_of_conversations_that_change_nothing_are_refused(tmp_path: Path) -> None:
    plain = question_fields(write_data(tmp_path)) | {"chat": {"loss_on": "last"}}
    findings = dict(check(parse_recipe(plain)))
    assert "has no chat template; set image.processor: model" in findings[("chat",)]
    assert ("chat",) not in dict(check(parse_recipe({**plain, "image": {**plain["image"], "processor": "model"}})))
    inputs = replace(tiny_inputs("paligemma"), chat=Chat(loss_on="last"))
    with pytest.raises(DataError, match="PaliGemma reads a question and an answer, no conversations"):
        pictures_in_text.make(inputs)
