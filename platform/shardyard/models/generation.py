"""The generation configuration of a model: the same for samples in training and for the exported model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from shardyard.models.outside import ModuleConfig
from shardyard.models.pretrained import place
from shardyard.models.quirks import keep_all_fields
from shardyard.recipe.schema import Model

# Tokens of Whisper.
_START, _NO_TIMES, _TASKS = "<|startoftranscript|>", "<|notimestamps|>", ("transcribe", "translate")

# Settings of a kept generation configuration that return more than a text, or search by code or packages that are not
# installed. The exported model keeps them.
_ONE_TEXT: dict[str, object] = {
    "return_dict_in_generate": False,
    "num_return_sequences": 1,
    "penalty_alpha": None,
    "dola_layers": None,
    "num_beam_groups": None,
    "diversity_penalty": None,
    "cache_implementation": None,
    "max_time": None,
}


def generation_config(
    section: Model,
    config: PreTrainedConfig,
    *,
    special_tokens: Mapping[str, int | None],
    ends: Iterable[int] = (),
) -> GenerationConfig | None:
    """How the model generates; None for a custom module, which has no such configuration.

    That of the pretrained weights is kept (end tokens, forced tokens, sampling); else it follows from the model's own
    configuration. It is used with a cache.

    Args:
        section: the recipe's section; names the pretrained weights.
        config: of the model to train.
        special_tokens: `bos_token_id`, `eos_token_id` and `pad_token_id` of the tokenizer.
        ends: further tokens that end a text, such as the end of a turn.
    """
    if isinstance(config, ModuleConfig):
        return None
    found = _kept(section) or GenerationConfig.from_model_config(config)
    eos = dict.fromkeys([*_ids(found.eos_token_id), *_ids(special_tokens.get("eos_token_id")), *ends])
    found.eos_token_id = _one_or_all(list(eos))
    if found.bos_token_id is None:
        found.bos_token_id = special_tokens.get("bos_token_id")
    if found.pad_token_id is None:
        pad = special_tokens.get("pad_token_id")
        found.pad_token_id = pad if pad is not None else next(iter(eos), None)
    if found.decoder_start_token_id is None:
        found.decoder_start_token_id = getattr(config, "decoder_start_token_id", None)
    # Training turns the cache off; a model that generates needs it.
    found.use_cache = True
    return found


def begin_texts(
    found: GenerationConfig,
    begins: Sequence[int],
    *,
    language: str | None,
    task: str | None,
    vocabulary: Mapping[str, int] | None = None,
) -> None:
    """Make a decoder begin its texts as in training.

    Args:
        begins: the start token and the tokens that follow it in every text; empty for the start token alone.
        language, task: of the recipe; Whisper's own `generate` turns them into tokens.
        vocabulary: added token → id, by which a configuration that names no tokens of Whisper gets them.
    """
    if begins:
        found.decoder_start_token_id = begins[0]
    # More tokens than one cannot be forced this way; Whisper's own `generate` knows its tokens.
    found.forced_bos_token_id = begins[1] if len(begins) == 2 else None
    if getattr(found, "lang_to_id", None) is not None:
        found.language, found.task = language or found.language, task or found.task
    elif vocabulary is not None and _START in vocabulary:
        _name_whispers_tokens(found, begins, vocabulary)


def _name_whispers_tokens(found: GenerationConfig, begins: Sequence[int], vocabulary: Mapping[str, int]) -> None:
    """What Whisper's own `generate` looks up, as far as training used it: it would guess a language otherwise, or
    leave it out."""
    keep_all_fields(found)
    codes = [code for code in vocabulary if code.startswith("<|") and code[2:-2] in LANGUAGES]
    languages = {code: vocabulary[code] for code in codes}
    tasks = {name: vocabulary[f"<|{name}|>"] for name in _TASKS if f"<|{name}|>" in vocabulary}
    spoken = next((code for code, token in languages.items() if token in begins), None)
    done = next((name for name, token in tasks.items() if token in begins), None)
    if vocabulary.get(_NO_TIMES) in begins:
        found.no_timestamps_token_id, found.return_timestamps = vocabulary[_NO_TIMES], False
    if spoken is not None:
        found.lang_to_id, found.is_multilingual, found.language = languages, True, spoken
    if done is not None:
        found.task_to_id, found.task = tasks, done


def adopt(model: Any, found: GenerationConfig | None) -> None:
    """Make a model generate by this configuration, if it generates at all."""
    if found is not None and getattr(model, "generation_config", None) is not None:
        model.generation_config = copy.deepcopy(found)


@contextmanager
def one_text(model: Any) -> Iterator[None]:
    """A context in which a model makes one text at a time, whatever else its generation configuration asks for."""
    config = getattr(model, "generation_config", None)
    if config is None:
        yield
        return
    model.generation_config = copy.deepcopy(config)
    for name, value in _ONE_TEXT.items():
        if getattr(config, name, None) is not None:
            setattr(model.generation_config, name, value)
    try:
        yield
    finally:
        model.generation_config = config


def write(folder: Path, found: GenerationConfig) -> None:
    """Write generation_config.json as it is. `save_pretrained` refuses combinations that published models have, such
    as a temperature without sampling."""
    found.to_json_file(folder / "generation_config.json", use_diff=True)


def _kept(section: Model) -> GenerationConfig | None:
    """The pretrained model's; where it has no such file, what its config.json says (as transformers reads BART's)."""
    if section.pretrained is None:
        return None
    where = place(section.pretrained)
    try:
        return GenerationConfig.from_pretrained(
            where["pretrained_model_name_or_path"], revision=where.get("revision", "main")
        )
    except OSError:
        stored, _ = PreTrainedConfig.get_config_dict(**where)
        return GenerationConfig.from_model_config(stored)


def _ids(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else list(ids) if isinstance(ids, list) else [ids]


def _one_or_all(ids: list[int]) -> int | list[int] | None:
    return ids if len(ids) > 1 else next(iter(ids), None)
