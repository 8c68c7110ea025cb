"""The processor of LLaVA for rows in plain format (`data/formats/image_answers.py`), to use the trained model with."""

from __future__ import annotations

import copy
from typing import Any

from transformers import LlavaProcessor

from shardyard.data.formats.inputs import FormatInputs
from shardyard.recipe.image_tokens import has_class_token

_IMAGE = "<image>"
# The text of a row: the picture, a line break and the question, then the answer and the end token.
_TEMPLATE = (
    "{{- bos_token if bos_token else '' }}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' %} ASSISTANT: "
    "{%- if message['content'] is string %} {{ message['content'] }}"
    "{%- else %} {% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif -%}"
    "{{ eos_token }}"
    "{%- else %}USER: "
    "{%- if message['content'] is string %} {{ message['content'] }}"
    "{%- else %} {% for part in message['content'] -%}"
    "{%- if part['type'] == 'image' %}<image>{{ '\\n' }}{% else %}{{ part['text'] }}{% endif -%}"
    "{%- endfor %}{% endif -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %} ASSISTANT:{% endif -%}"
)


def plain_processor(inputs: FormatInputs, image_processor: Any) -> Any | None:
    """LLaVA's processor with the tokenizer and a name for the model's image token; None if the token has another place.

    It makes the rows of training of a question with its answer, up to the rounding of pixels.
    """
    config, tokenizer = inputs.model, copy.deepcopy(inputs.text_tokenizer)
    if _IMAGE not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"extra_special_tokens": [_IMAGE]}, replace_extra_special_tokens=False)
    if tokenizer.convert_tokens_to_ids(_IMAGE) != config.image_token_id:
        return None
    patch = config.vision_config.patch_size
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch if isinstance(patch, int) else patch[0],
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(has_class_token(config.vision_config.model_type)),
        chat_template=_TEMPLATE,
        image_token=_IMAGE,
    )
