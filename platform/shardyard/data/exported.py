"""The tokenizer that leaves with a model: it makes of a text what the model was trained on."""

from __future__ import annotations

import copy

from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from shardyard.data.chat import add_chat_template
from shardyard.data.stream.packing import separators
from shardyard.objectives.registry import objective_spec

_PROBE = "a"


def exported_tokenizer(
    tokenizer: PreTrainedTokenizerFast, objective: str, *, segments: bool = False
) -> PreTrainedTokenizerFast:
    """A copy of a run's tokenizer for sampling and for `final/`.

    Documents of packed rows begin with a separator, and texts of an encoder–decoder end with one. A tokenizer whose own
    call does not add it gets a post-processor that does, so that `pipeline` gives the model the same tokens as
    training. Without the separator the model would see a text that begins as no document does; with an end token the
    prompt would be over. A chat objective gets the chat template of training instead.

    Args:
        segments: the model tells the second text of a pair from the first; its tokenizer then says which is which.
    """
    copied = copy.deepcopy(tokenizer)
    spec = objective_spec(objective)
    if spec.chat:
        add_chat_template(copied)
    elif spec.rows == "packed":
        head, _ = separators(copied)
        _surround(copied, head, [], replace=True)
    elif spec.row_shape in _ENDED and copied.eos_token_id is not None:
        _surround(copied, [], [copied.eos_token_id], replace=False)
    if segments and "token_type_ids" not in copied.model_input_names:
        names = ["input_ids", "token_type_ids", *copied.model_input_names[1:]]
        copied.model_input_names = copied.init_kwargs["model_input_names"] = names
    return copied


# Rows whose texts end with the end token.
_ENDED = ("text_pair", "speech", "image_and_text", "sound_and_text")


def _surround(tokenizer: PreTrainedTokenizerFast, head: list[int], tail: list[int], *, replace: bool) -> None:
    """Make the tokenizer's call put `head` and `tail` around a text.

    Args:
        replace: also where it puts other tokens there.
    """
    plain = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    made = tokenizer(_PROBE)["input_ids"]
    if made == [*head, *plain, *tail] or (made != plain and not replace):
        return
    names = [str(token) for token in tokenizer.convert_ids_to_tokens([*head, *tail])]
    first, last = names[: len(head)], names[len(head) :]
    around = [*(f"{name}:0" for name in first), "$A:0", *(f"{name}:0" for name in last)]
    template = processors.TemplateProcessing(
        single=around,
        pair=[*around, *(part.replace(":0", ":1").replace("$A", "$B") for part in around)],
        special_tokens=list(zip(names, [*head, *tail], strict=True)),
    )
    backend = tokenizer.backend_tokenizer
    # What does not add tokens, such as the offsets of a byte-level tokenizer, stays.
    kept = [backend.post_processor] if backend.post_processor is not None and made == plain else []
    backend.post_processor = processors.Sequence([*kept, template])
    if first:
        tokenizer.init_kwargs["documents_start_with"] = first[0]  # tells the export to GGUF what to take off again
