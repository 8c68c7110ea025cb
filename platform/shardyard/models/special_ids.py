"""Ids of special tokens, as the configuration of a family accepts them."""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

_POSITIONS_AFTER_PADDING = frozenset({"m2m_100", "nllb-moe", "seamless_m4t", "seamless_m4t_v2", "speech_to_text"})
_NAMES = ("bos_token_id", "eos_token_id", "pad_token_id")


def accepted_ids(defaults: PreTrainedConfig, text: Mapping[str, int | None]) -> dict[str, int | None]:
    """The tokenizer's fields, with an id in place of None where the family insists on one.

    A tokenizer without a token that begins a text (bos) begins it with the one that ended the text before.

    Args:
        defaults: a configuration of the family, or of its part that reads text; it is changed.
        text: `vocab_size` and the ids of the special tokens that the tokenizer has.
    """
    present = [
        value for name in ("eos_token_id", "bos_token_id", "pad_token_id") if (value := text.get(name)) is not None
    ]
    accepted = dict(text)
    for name in _NAMES:
        if name in text and text[name] is None and not _accepts_none(defaults, name):
            if present:
                accepted[name] = present[0]
            else:
                del accepted[name]
    return accepted


def make_room_for_padding(config: PreTrainedConfig) -> None:
    """Lengthen a table of positions that begins at the id of the padding token, if that id lies behind its end.

    Families whose own tokenizers pad with one of their first ids count the positions of tokens from there on.
    """
    if config.model_type not in _POSITIONS_AFTER_PADDING:
        return
    pad = getattr(config, "pad_token_id", None)
    for name in ("max_position_embeddings", "max_target_positions"):
        positions = getattr(config, name, None)
        if pad is not None and positions is not None and pad >= positions:
            setattr(config, name, positions + pad + 1)


def _accepts_none(defaults: PreTrainedConfig, name: str) -> bool:
    try:
        setattr(defaults, name, None)
    except StrictDataclassError:
        return False
    return True
