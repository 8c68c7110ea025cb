"""Padding and end tokens for a tokenizer that has none, where rows or the model need them."""

from __future__ import annotations

from typing import Any

from shardyard.errors import DataError
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.families import config_value

OWN_TOKEN = "<|padding|>"

# Families of transformers that count positions from the padding token, find the length of a text by it, or lengthen
# rows with it themselves; and those whose `labels` are padded with it in the decoder of the exported model.
_NEED_PADDING = frozenset(
    [
        *(
            "canary",
            "clap",
            "cohere_asr",
            "flaubert",
            "fsmt",
            "gemma4",
            "gemma4_unified",
            "led",
            "m2m_100",
            "moonshine",
        ),
        *("moonshine_streaming", "nllb-moe", "seamless_m4t", "seamless_m4t_v2", "speech-encoder-decoder"),
        *("speech_to_text", "speecht5", "xlm"),
    ]
)


def with_padding(tokenizer: Any, objective: str, family: str) -> Any:
    """The tokenizer, with the tokens that rows of this objective or a model of this family need and that it lacks.

    Classifiers of texts pad with the end token, as is usual for decoders, which have no other: the vocabulary and with
    it pretrained weights stay as they are. Models that could then not tell padding from the end of a text get a token
    of their own, one more than the tokenizer had. Encoder–decoders end a text, and their classifiers read that token;
    where the tokenizer separates texts instead, the separator is the end token.

    Raises:
        DataError: the family pads with the first token whatever the tokenizer says, and this is another token.
    """
    is_text = objective_spec(objective).row_shape == "text"
    has_decoder = bool(config_value(family, {}, "is_encoder_decoder"))
    reads_end = is_text and has_decoder
    if has_decoder and tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token
    if family == "prophetnet" and tokenizer.pad_token_id != 0:
        raise DataError(
            "prophetnet writes text only if the padding token has id 0; choose such a tokenizer, such as "
            "wordpiece-docs-4k, or list pad_token first among the special_tokens of its spec."
        )
    if tokenizer.pad_token_id is None:
        if family in _NEED_PADDING or reads_end:
            tokenizer.add_special_tokens({"pad_token": OWN_TOKEN})
        elif is_text and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
