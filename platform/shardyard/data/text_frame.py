"""The special tokens around captions, translations and transcripts: those that the model's own tokenizer puts there."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from shardyard.errors import DataError
from shardyard.recipe.schema import Data

_PROBE = "a"


@dataclass(frozen=True)
class Frame:
    """Token ids before and after a text."""

    head: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.head) + len(self.tail)

    def around(self, ids: list[int], length: int) -> tuple[list[int], int]:
        """At most `length` tokens, cut at the end of the text, and the number of cut tokens."""
        room = max(0, length - self.num_tokens)
        return [*self.head, *ids[:room], *self.tail], max(0, len(ids) - room)


def text_frame(tokenizer: PreTrainedTokenizerFast, data: Data, *, target: bool = False, ends: bool = True) -> Frame:
    """What the tokenizer's own call puts around a text, with a language token where it has one.

    A tokenizer that adds nothing gets its end token after the text: without one, a decoder could not end. The exported
    tokenizer then adds it too (`data/exported.py`).

    Args:
        target: the text is the decoder's: tokenizers of several languages begin it with another token.
        ends: the text must end with the end token, also if the tokenizer adds others.

    Raises:
        DataError: the tokenizer has no token that ends a text.
    """
    own = Frame() if data.special_tokens == "end" else _own(tokenizer, target=target)
    end = tokenizer.eos_token_id
    if end in own.tail or (own.num_tokens and not ends):
        return own
    if end is None:
        raise DataError("the tokenizer has no eos token, so a decoder could not end a text; choose another.")
    return Frame(own.head, (*own.tail, end))


def _own(tokenizer: PreTrainedTokenizerFast, *, target: bool) -> Frame:
    plain = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    made = (tokenizer(text_target=_PROBE) if target else tokenizer(_PROBE))["input_ids"]
    for start in range(len(made) - len(plain) + 1):
        if made[start : start + len(plain)] == plain:
            return Frame(tuple(made[:start]), tuple(made[start + len(plain) :]))
    return Frame()


@dataclass(frozen=True)
class TargetFrame:
    """The decoder's side: its start token, and what surrounds the labels.

    `prompt` are the tokens after `start` that every text begins with, such as a language; a decoder that writes a text
    is given them.
    """

    start: int
    labels: Frame

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.labels.head


def target_frame(tokenizer: PreTrainedTokenizerFast, model: Any, data: Data) -> TargetFrame:
    """As transformers shifts labels: the decoder begins with `decoder_start_token_id`, and with the last label (the
    language) in families whose `shift_tokens_right` takes no start token. A start token is no label.

    Args:
        model: the model's configuration.

    Raises:
        DataError: neither the tokenizer nor the model's configuration has a token to start or to end with.
    """
    frame = text_frame(tokenizer, data, target=True)
    start = getattr(model, "decoder_start_token_id", None)
    if data.special_tokens == "tokenizer" and _starts_with_last(model):
        start = frame.tail[-1]
    if start is None:
        raise DataError(
            "the decoder has no token to start with: set model.config.decoder_start_token_id, or choose a "
            "tokenizer with a bos or pad token."
        )
    if frame.head[:1] == (start,):
        frame = Frame(frame.head[1:], frame.tail)
    return TargetFrame(start, frame)


def _starts_with_last(model: Any) -> bool:
    """Whether the family moves the last label to the beginning (mBART, PLBart), instead of a start token."""
    if not isinstance(model, PreTrainedConfig):
        return False
    # transformers keeps the modelling code of a configuration in the same package.
    package, _, name = type(model).__module__.rpartition(".configuration_")
    try:
        shift = getattr(import_module(f"{package}.modeling_{name}"), "shift_tokens_right", None)
    except ImportError:
        return False
    return shift is not None and "decoder_start_token_id" not in inspect.signature(shift).parameters


def set_languages(tokenizer: PreTrainedTokenizerFast, data: Data) -> None:
    """Make the tokenizer add the languages and the task of the recipe, in training and after export.

    Raises:
        DataError: the tokenizer has no such languages.
    """
    chosen = {"src_lang": data.source_language, "tgt_lang": data.target_language}
    prefix = getattr(tokenizer, "set_prefix_tokens", None)
    try:
        if prefix is not None and (data.target_language or data.task):
            prefix(language=data.target_language, task=data.task, predict_timestamps=False)
            return
        for name, language in chosen.items():
            if language is None:
                continue
            if not hasattr(tokenizer, name) or language not in tokenizer.get_vocab():
                raise DataError(
                    f"the tokenizer has no language {language!r}: give a language token of its own, such as en_XX of "
                    "mBART or eng_Latn of NLLB, or leave data.source_language and data.target_language out."
                )
            setattr(tokenizer, name, language)
    except (ValueError, KeyError) as error:
        raise DataError(f"the tokenizer refuses data.target_language or data.task: {error}") from error
