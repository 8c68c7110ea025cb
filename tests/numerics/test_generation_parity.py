"""An exported model generates as in training: samples, `generate` and pipelines agree, with a cache and without."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import pipeline

from shardyard.data.exported import exported_tokenizer
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.engine.components import make_components
from shardyard.engine.hooks.generate import generate
from shardyard.engine.inference.pictures import answer
from shardyard.models.build import architecture_config, construct, special_token_ids
from shardyard.models.export.export import export_model
from shardyard.models.generation import adopt, generation_config
from shardyard.models.initialise import initialise
from shardyard.objectives.decoding import decode
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.schema import Model
from support.objectives import picture_families, vision_language
from support.objectives.contrastive import image

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
START = 8  # Tokens that are read at once, before the cache is used.
PROMPT = "The function returns"
DECODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
PLAIN = {name: value for name, value in DECODER.items() if name not in ("num_key_value_heads", "head_dim")}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 16}
SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 128,
}

DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 128},
    "llama": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
    "mixtral": DECODER | EXPERTS,
    "qwen3_moe": DECODER | EXPERTS,
    # With tied embeddings, random weights of these two repeat one token.
    "gemma2": DECODER | {"tie_word_embeddings": False, "query_pre_attn_scalar": 16, "sliding_window": 16},
    "gemma3_text": DECODER | {"query_pre_attn_scalar": 16, "sliding_window": 16},
    "gpt_neox": PLAIN,
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
    },
    "bloom": {"tie_word_embeddings": False, "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "phi": PLAIN,
    "mamba": {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2},
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2},
    "bart": SEQ2SEQ,
}


def written(folder: Path, family: str, config: dict[str, Any], objective: str) -> tuple[Any, Any]:
    """A model of random weights as training holds it, exported to `folder`, and the tokenizer it samples with."""
    section = Model(family=family, config=config, dropout=0.0)
    trained_with = load_tokenizer("bytes")
    special = special_token_ids(trained_with)
    described = architecture_config(section, vocabulary=len(trained_with), special_tokens=special)
    model = construct(section, described, objective).eval()
    enliven(model)
    tokenizer = exported_tokenizer(trained_with, objective)
    found = generation_config(section, described, special_tokens=special)
    adopt(model, found)
    export_model(
        folder,
        config=described,
        weights=model.state_dict(),
        tokenizer=tokenizer,
        card="",
        objective=objective,
        generates=found,
    )
    return model, tokenizer


def enliven(model: Any) -> None:
    """Give a model random weights larger than the usual initial ones: else each position repeats the last token."""
    initialise(model, seed=5, gathered=lambda _: contextlib.nullcontext())
    random = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "norm" not in name:
                parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5, generator=random)


@pytest.mark.parametrize("family", DECODERS)
def test_samples_generate_and_pipelines_agree(tmp_path: Path, family: str) -> None:
    model, tokenizer = written(tmp_path / "final", family, DECODERS[family], "causal_lm")
    sampled = generate(model, tokenizer, PROMPT, max_new_tokens=12, device=CPU)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "final", dtype="auto").eval()
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "final")
    assert loaded.generation_config.use_cache
    given = read(PROMPT, return_tensors="pt")
    assert given["input_ids"][0].tolist() == [256, *PROMPT.encode()], "a text begins as documents begin in training"
    ids = loaded.generate(**given, max_new_tokens=12, do_sample=False)
    assert read.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True) == sampled
    piped = pipeline("text-generation", model=loaded, tokenizer=read, device="cpu")
    (made,) = piped(PROMPT, max_new_tokens=12, do_sample=False, return_full_text=False)
    assert made["generated_text"] == sampled
    assert len(set(ids[0, given["input_ids"].shape[1] :].tolist())) > 1, "a text of one token would prove little"
    check_cache(loaded, ids)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_an_encoder_decoder_answers_alike(tmp_path: Path, family: str) -> None:
    model, tokenizer = written(tmp_path / "final", family, ENCODER_DECODERS[family], "seq2seq")
    sampled = generate(model, tokenizer, PROMPT, max_new_tokens=12, device=CPU)
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "final", dtype="auto").eval()
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "final")
    given = read(PROMPT, return_tensors="pt")
    assert given["input_ids"][0].tolist() == [*PROMPT.encode(), 256], "a text ends as in training"
    ids = loaded.generate(**given, max_new_tokens=12, do_sample=False)
    assert read.decode(ids[0], skip_special_tokens=True) == sampled
    assert len(set(ids[0].tolist())) > 2
    without = loaded.generate(**given, max_new_tokens=12, do_sample=False, use_cache=False)
    assert torch.equal(ids, without)


def test_speech_is_written_alike(tmp_path: Path) -> None:
    config = SEQ2SEQ | {"max_source_positions": 50, "max_target_positions": 64}
    config.pop("max_position_embeddings")
    model, tokenizer = written(tmp_path / "final", "whisper", config, "speech_to_text")
    features = torch.randn(1, 80, 100, generator=torch.Generator().manual_seed(0))
    (sampled,) = decode(model, tokenizer, {"input_features": features}, max_tokens=12)
    loaded = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "final", dtype="auto").eval()
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "final")
    ids = loaded.generate(features, attention_mask=torch.ones(1, 100), max_new_tokens=12, do_sample=False)
    assert read.decode(ids[0], skip_special_tokens=True) == sampled


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3", "idefics3"])
def test_answers_about_pictures_agree(tmp_path: Path, family: str) -> None:
    fields = picture_families.recipe_fields(family, vision_language.write_data(tmp_path), steps=1)
    # With tied embeddings, random weights of Gemma repeat one token.
    fields["model"] |= {"config": {**fields["model"]["config"], "tie_word_embeddings": False}}
    recipe = parse_recipe(fields)
    components = make_components(recipe)
    model = construct(recipe.model, components.config, recipe.objective).eval()
    enliven(model)
    tokenizer = components.exported_tokenizer(recipe)
    found = components.generation(recipe, tokenizer)
    adopt(model, found)
    final = export_model(
        tmp_path / "final",
        config=components.config,
        weights=model.state_dict(),
        tokenizer=tokenizer,
        card="",
        objective=recipe.objective,
        processor=components.processor,
        generates=found,
    )
    picture = tmp_path / "red.png"
    picture.write_bytes(image("red", "left", 120))
    processor = components.format_inputs.processor or components.processor
    sampled = answer(model, processor, "Colour?", [picture], max_new_tokens=8, device=CPU)
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(final, dtype="auto").eval()
    # AutoProcessor reads the processors of video too only where torchvision is; ours is the same without that part.
    read = processor if family == "qwen2_vl" else transformers.AutoProcessor.from_pretrained(final, backend="pil")
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": "Colour?"}]
    given = read.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    fixed = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    cached, whole = (loaded.generate(**given, **fixed, use_cache=use) for use in (True, False))
    written = cached.sequences[0, given["input_ids"].shape[1] :]
    assert read.decode(written, skip_special_tokens=True) == sampled
    assert len(set(written.tolist())) > 1, "a text of one token would prove little"
    assert torch.equal(cached.sequences, whole.sequences)
    for one, other in zip(cached.logits, whole.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    piped = pipeline("image-text-to-text", model=loaded, processor=read, device="cpu")
    asked = [{"type": "image", "image": str(picture)}, {"type": "text", "text": "Colour?"}]
    (made,) = piped(
        text=[{"role": "user", "content": asked}],
        max_new_tokens=8,
        generate_kwargs={"do_sample": False},
        return_full_text=False,
    )
    assert made["generated_text"] == sampled


def check_cache(model: Any, ids: torch.Tensor) -> None:
    """Logits of each position are the same computed at once and token by token with a cache."""
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        recurrent = model.config.model_type == "mamba"
        named = "cache_params" if recurrent else "past_key_values"
        out = model(input_ids=ids[:, :START], use_cache=True)
        steps = [out.logits]
        for at in range(START, ids.shape[1]):
            mask = {} if recurrent else {"attention_mask": torch.ones_like(ids[:, : at + 1])}
            out = model(input_ids=ids[:, at : at + 1], use_cache=True, **mask, **{named: out[named]})
            steps.append(out.logits)
    scale = whole.abs().max()
    assert (whole - torch.cat(steps, 1)).abs().max() < 1e-5 * scale
