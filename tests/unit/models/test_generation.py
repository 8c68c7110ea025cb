"""A model stops, samples and begins a text as in training: its generation configuration and its exported tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

from shardyard.data.answer_ends import answer_ends
from shardyard.data.exported import exported_tokenizer
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.engine.hooks.generate import generate
from shardyard.models.build import architecture_config, construct, special_token_ids
from shardyard.models.export.export import export_model
from shardyard.models.export.gguf import STARTS_WITH
from shardyard.models.generation import adopt, generation_config, write
from shardyard.objectives.decoding import decode
from shardyard.recipe.schema import Model
from support.pretrained import write_pretrained

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As GLM: nothing ends an answer but the token of the next role.
NEXT_ROLE = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
# As gpt-oss: the last answer ends with another token than an earlier one.
LAST_DIFFERS = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
)
REFUSES = "{{ raise_exception('only tools') }}"
EOS, BOS = 256, 257


def chat_tokenizer(template: str | None, *special: str) -> Any:
    tokenizer = load_tokenizer("bytes")
    tokenizer.add_tokens(list(special), special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "special", "ends"),
    [
        (CHATML, ("<|im_start|>", "<|im_end|>"), ["<|im_end|>"]),
        (NEXT_ROLE, ("<|user|>", "<|assistant|>"), ["<|user|>"]),
        (LAST_DIFFERS, ("<|start|>", "<|message|>", "<|end|>", "<|return|>"), ["<|return|>", "<|end|>"]),
        (CHATML, (), []),  # the tokenizer has no such tokens: the template writes them as text
        (REFUSES, (), []),
        (None, (), []),
    ],
)
def test_the_tokens_that_follow_an_answer_are_found(
    template: str | None, special: tuple[str, ...], ends: list[str]
) -> None:
    tokenizer = chat_tokenizer(template, *special)
    assert answer_ends(tokenizer) == [tokenizer.convert_tokens_to_ids(end) for end in ends]


def test_the_plain_template_ends_an_answer_with_the_end_of_text() -> None:
    assert answer_ends(exported_tokenizer(load_tokenizer("bytes"), "instruction")) == [EOS]


def pretrained(folder: Path, generation: dict[str, Any] | None) -> Model:
    write_pretrained(folder, "llama", vocabulary=300)
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return Model(family="llama", pretrained=str(folder))


def described(section: Model, tokenizer: Any) -> Any:
    return architecture_config(section, vocabulary=len(tokenizer), special_tokens=special_token_ids(tokenizer))


def test_the_pretrained_configuration_is_kept_and_the_turns_end_added(tmp_path: Path) -> None:
    kept = {"eos_token_id": [256, 258], "forced_bos_token_id": 3, "temperature": 0.6, "top_p": 0.9, "use_cache": False}
    section = pretrained(tmp_path / "base", kept)
    tokenizer = chat_tokenizer(CHATML, "<|im_start|>", "<|im_end|>", "<|more|>")
    config = described(section, tokenizer)
    plain = generation_config(section, config, special_tokens=special_token_ids(tokenizer))
    assert plain is not None
    assert plain.eos_token_id == [256, 258]
    found = generation_config(
        section, config, special_tokens=special_token_ids(tokenizer), ends=[259, *answer_ends(tokenizer)]
    )
    assert found is not None
    # A temperature without sampling, which transformers' own `save_pretrained` refuses, is published with some models.
    write(tmp_path, found)
    stored = json.loads((tmp_path / "generation_config.json").read_text())
    assert stored["eos_token_id"] == [256, 258, 259]
    assert (stored["forced_bos_token_id"], stored["temperature"], stored["top_p"]) == (3, 0.6, 0.9)
    assert stored["use_cache"] is True
    assert stored["pad_token_id"] == 256


def test_without_such_a_file_the_models_configuration_counts(tmp_path: Path) -> None:
    section = pretrained(tmp_path / "base", None)
    tokenizer = load_tokenizer("bytes")
    found = generation_config(section, described(section, tokenizer), special_tokens=special_token_ids(tokenizer))
    assert found is not None
    assert found.eos_token_id == [299, EOS], "its own, of the pretrained model's config.json, and the tokenizer's"
    scratch = Model(family="llama", config=dict(section.config))
    found = generation_config(scratch, described(scratch, tokenizer), special_tokens=special_token_ids(tokenizer))
    assert found is not None
    assert (found.eos_token_id, found.use_cache) == (EOS, True)


def test_an_answer_stops_at_the_turns_end_in_a_sample_an_export_and_a_pipeline(tmp_path: Path) -> None:
    tokenizer = exported_tokenizer(chat_tokenizer(CHATML, "<|im_start|>", "<|im_end|>"), "instruction")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    section = Model(family="phi", config={**sizes, "max_position_embeddings": 64})
    config = described(section, tokenizer)
    model = construct(section, config).eval()
    with torch.no_grad():
        model.lm_head.bias[tokenizer.convert_tokens_to_ids("<|im_end|>")] = 100.0  # it answers with nothing
    special = special_token_ids(tokenizer)
    assert generate_length(model, tokenizer) == 9, "the end of text alone does not stop it"
    found = generation_config(section, config, special_tokens=special, ends=answer_ends(tokenizer))
    adopt(model, found)
    assert generate_length(model, tokenizer) == 1
    assert generate(model, tokenizer, "say dog", max_new_tokens=9, device=torch.device("cpu"), chat=True) == ""
    arguments = {"weights": model.state_dict(), "tokenizer": tokenizer, "card": "", "objective": "instruction"}
    export_model(tmp_path / "final", config=described(section, tokenizer), generates=found, **arguments)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert loaded.config.dtype == torch.float32
    assert loaded.generation_config.use_cache
    assert loaded.config.use_cache
    assert generate_length(loaded, AutoTokenizer.from_pretrained(tmp_path / "final")) == 1
    piped = pipeline("text-generation", model=str(tmp_path / "final"), device="cpu")
    (made,) = piped([{"role": "user", "content": "say dog"}], max_new_tokens=9, do_sample=False)
    assert made["generated_text"][-1] == {"role": "assistant", "content": ""}


def generate_length(model: Any, tokenizer: Any) -> int:
    """Number of tokens of the answer to a message."""
    turns = [{"role": "user", "content": "say dog"}]
    given = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**given, max_new_tokens=9, do_sample=False, pad_token_id=EOS)
    return int(made.shape[1] - given["input_ids"].shape[1])


def test_a_text_begins_as_documents_begin(tmp_path: Path) -> None:
    ours = load_tokenizer("bytes")
    exported = exported_tokenizer(ours, "causal_lm")
    assert exported("ab")["input_ids"] == [EOS, 97, 98]
    assert exported("")["input_ids"] == [EOS]
    assert exported("ab", add_special_tokens=False)["input_ids"] == ours("ab")["input_ids"] == [97, 98]
    assert exported("a", "b")["input_ids"] == [EOS, 97, EOS, 98]
    exported.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())[STARTS_WITH] == "<|endoftext|>"
    again = exported_tokenizer(AutoTokenizer.from_pretrained(tmp_path), "causal_lm")
    assert again("ab")["input_ids"] == [EOS, 97, 98]
    # Chat templates write their own tokens.
    assert exported_tokenizer(ours, "instruction")("ab")["input_ids"] == [97, 98]


def test_an_end_token_does_not_end_the_prompt_of_a_decoder() -> None:
    tokenizer = load_tokenizer("bytes")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    around = processors.TemplateProcessing(
        single="<s> $A <|endoftext|>", pair=None, special_tokens=[("<s>", BOS), ("<|endoftext|>", EOS)]
    )
    tokenizer.backend_tokenizer.post_processor = around
    assert tokenizer("ab")["input_ids"] == [BOS, 97, 98, EOS]
    assert exported_tokenizer(tokenizer, "causal_lm")("ab")["input_ids"] == [BOS, 97, 98]
    # An encoder reads the whole text, with the tokens that its tokenizer puts around it.
    assert exported_tokenizer(tokenizer, "seq2seq")("ab")["input_ids"] == [BOS, 97, 98, EOS]
    assert exported_tokenizer(load_tokenizer("bytes"), "seq2seq")("ab")["input_ids"] == [97, 98, EOS]


def test_a_custom_module_has_no_such_configuration(tmp_path: Path) -> None:
    section = Model(module="support.objectives.outside:Any", config={})
    tokenizer = load_tokenizer("bytes")
    assert generation_config(section, described(section, tokenizer), special_tokens={}) is None
    adopt(object(), GenerationConfig())


@pytest.mark.parametrize(
    "kept",
    [
        {"return_dict_in_generate": True, "output_scores": True},
        {"num_return_sequences": 3, "do_sample": True},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"dola_layers": "high"},
        {"cache_implementation": "quantized"},
        {"stop_strings": ["never"]},
        {"max_time": 1e-9},
    ],
)
def test_a_sample_is_one_text_whatever_search_the_pretrained_configuration_asks_for(
    tmp_path: Path, kept: dict[str, Any]
) -> None:
    """A sample in training must not end the run; `final/` keeps the search for those who have what it needs."""
    section = pretrained(tmp_path / "base", kept)
    tokenizer = load_tokenizer("bytes")
    config = described(section, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(str(section.pretrained)).eval()
    found = generation_config(section, config, special_tokens=special_token_ids(tokenizer))
    adopt(model, found)
    text = generate(model, tokenizer, "ab", max_new_tokens=4, device=torch.device("cpu"))
    assert isinstance(text, str)
    tokenizer.pad_token = tokenizer.eos_token
    if "stop_strings" not in kept:
        assert len(decode(model, tokenizer, {"input_ids": torch.tensor([[97, 98], [99, 98]])}, max_tokens=4)) == 2
    assert all(getattr(model.generation_config, name) == value for name, value in kept.items())
