"""Chat templates written from the documented formats of models, and conversations of every kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from shardyard.data.tokenizers.tokenizer import load_tokenizer

FOLDER = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Format:
    """A chat format: its tokens, those that end an answer, and what it cannot show.

    `refuses` are conversations that the template refuses. `thinks` says whether it shows reasoning, and `keeps`
    whether it shows earlier turns unchanged.
    """

    ends: tuple[str, ...]
    tokens: tuple[str, ...]
    bos: str | None = None
    eos: str = "<|endoftext|>"
    refuses: frozenset[str] = frozenset()
    thinks: bool = False
    keeps: bool = True


_IM = ("<|im_start|>", "<|im_end|>")
_CALLS = frozenset({"tools", "null content"})
_STRICT = frozenset({"assistant first"})
_DEEPSEEK = (
    *("<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"),
    *("<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"),
    *("<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
)
_DEEPSEEK_ENDS = {"bos": "<｜begin▁of▁sentence｜>", "eos": "<｜end▁of▁sentence｜>"}

FORMATS: Mapping[str, Format] = {
    "chatml": Format(("<|im_end|>",), _IM, refuses=_CALLS),
    "command_r": Format(
        ("<|END_OF_TURN_TOKEN|>",),
        ("<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        refuses=_CALLS,
    ),
    "deepseek_r1": Format(
        ("<｜end▁of▁sentence｜>",), _DEEPSEEK, **_DEEPSEEK_ENDS, refuses=_CALLS, thinks=True, keeps=False
    ),
    "deepseek_v3": Format(("<｜end▁of▁sentence｜>",), _DEEPSEEK, **_DEEPSEEK_ENDS),
    "gemma": Format(
        ("<end_of_turn>",),
        ("<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        refuses=_CALLS | _STRICT | {"system"},
    ),
    "gemma3": Format(
        ("<end_of_turn>",), ("<start_of_turn>", "<end_of_turn>"), bos="<bos>", eos="<eos>", refuses=_CALLS | _STRICT
    ),
    "glm4": Format(
        ("<|user|>", "<|observation|>"),
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        thinks=True,
        keeps=False,
    ),
    "gpt_oss": Format(
        ("<|return|>", "<|call|>"),
        ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>"),
        eos="<|return|>",
        thinks=True,
        keeps=False,
    ),
    "granite": Format(
        ("<|end_of_text|>",), ("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"), eos="<|end_of_text|>"
    ),
    "lfm2": Format(
        ("<|im_end|>",),
        (*_IM, "<|tool_call_start|>", "<|tool_call_end|>", "<|tool_response_start|>", "<|tool_response_end|>"),
        bos="<|startoftext|>",
    ),
    "llama2": Format(("</s>",), (), bos="<s>", eos="</s>", refuses=_CALLS | _STRICT),
    "llama3": Format(
        ("<|eot_id|>",),
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
    ),
    "mistral_v1": Format(("</s>",), (), bos="<s>", eos="</s>", refuses=_CALLS | _STRICT | {"system"}),
    "mistral_v3": Format(
        ("</s>",),
        *(
            ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
            *("<s>", "</s>", _STRICT),
        ),
        keeps=False,
    ),
    "nemotron3": Format(("<|im_end|>",), _IM, thinks=True, keeps=False),
    "phi3": Format(("<|end|>",), ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), refuses=_CALLS),
    "phi4": Format(("<|im_end|>",), (*_IM, "<|im_sep|>"), refuses=_CALLS),
    "qwen2_5": Format(("<|im_end|>",), _IM),
    "qwen3": Format(("<|im_end|>",), _IM, thinks=True, keeps=False),
    "smollm2": Format(("<|im_end|>",), _IM, refuses=_CALLS),
    "zephyr": Format(("</s>",), ("<|system|>", "<|user|>", "<|assistant|>"), bos="<s>", eos="</s>", refuses=_CALLS),
}

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def call(city: str) -> dict[str, Any]:
    function = {"name": "weather", "arguments": f'{{"city": "{city}"}}'}
    return {"id": "call00001", "type": "function", "function": function}


def result(text: Any) -> dict[str, Any]:
    return {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": text}


CONVERSATIONS: Mapping[str, Mapping[str, Any]] = {
    "single turn": {"messages": [user("What is red?"), answer("Red is a colour.")]},
    "several turns": {
        "messages": [user("One?"), answer("First."), user("Two?"), answer("Second."), user("Three?"), answer("Third.")]
    },
    "system": {
        "messages": [system("Be kind."), user("Hello?"), answer("Good day."), user("And?"), answer("Good night.")]
    },
    "tools": {
        "messages": [
            user("Weather in Oslo?"),
            answer("", tool_calls=[call("Oslo")]),
            result("3 degrees"),
            answer("Three degrees."),
        ],
        "tools": [TOOL],
    },
    "null content": {
        "messages": [
            user("Weather in Rome?"),
            {"role": "assistant", "content": None, "tool_calls": [call("Rome")], "weight": None, "name": None},
            {**result("9 degrees"), "tool_calls": None},
            answer("Nine degrees.", tool_calls=None),
            user("Thanks?"),
            answer("Gladly."),
        ],
        "tools": [TOOL],
    },
    "reasoning": {"messages": [user("Two and two?"), answer("Four.", reasoning_content="Count on fingers.")]},
    "earlier reasoning": {
        "messages": [
            user("Three and one?"),
            answer("Four, too.", reasoning_content="Add them up."),
            user("Sure about it?"),
            answer("Quite sure.", reasoning_content="Checked it twice."),
        ]
    },
    "empty answer": {"messages": [user("Say nothing."), answer("")]},
    "empty question": {"messages": [user(""), answer("You said nothing.")]},
    "assistant first": {"messages": [answer("Welcome."), user("Hi there?"), answer("Nice to meet you.")]},
    "parts": {
        "messages": [
            user([{"type": "text", "text": "Line one,\nline two?", "image_url": None}]),
            answer([{"type": "text", "text": "Both read."}]),
        ]
    },
    "weights": {
        "messages": [
            user("Bad one?"),
            answer("A bad answer.", weight=0),
            user("Good one?"),
            answer("A good answer.", weight=1),
        ]
    },
}


def chat_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the tokens and the template of a format."""
    form = FORMATS[name]
    tokenizer = load_tokenizer("bytes")
    special = {"eos_token": form.eos, "additional_special_tokens": list(form.tokens)}
    tokenizer.add_special_tokens({**special, **({"bos_token": form.bos} if form.bos else {})})
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


def spans_of(tokenizer: PreTrainedTokenizerFast, encoded: Any) -> list[tuple[str, str]]:
    """The text before each run of trained tokens, and the text of the run."""
    runs, start = list[tuple[int, int]](), None
    for index, trained in enumerate([*encoded.is_answer, False]):
        if trained and start is None:
            start = index
        elif not trained and start is not None:
            runs.append((start, index))
            start = None
    return [(tokenizer.decode(encoded.ids[:first]), tokenizer.decode(encoded.ids[first:last])) for first, last in runs]


def answers_of(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of the messages that are trained."""
    return [at for at, one in enumerate(messages) if one["role"] == "assistant" and one.get("weight") != 0]
