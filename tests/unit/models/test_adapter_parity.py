"""Adapters against peft itself: the same outputs, gradients and merged weights, for each variant and for experts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from shardyard.errors import ModelError
from shardyard.models.adapters.adapters import attach, fully_trained, num_trainable
from shardyard.models.adapters.merging import merged
from shardyard.models.adapters.saved import CONFIG, WEIGHTS, save_adapter
from shardyard.models.adapters.servers import left_out_by_vllm, local_base
from shardyard.models.adapters.targets import chosen, described
from shardyard.models.frozen import AdapterOff
from shardyard.models.vocabulary import resize
from shardyard.recipe.loading.load import dump_recipe, load_recipe
from shardyard.recipe.schema import Adapter
from support.tiny import tiny_recipe, write_corpus

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 24},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "mixtral": {"intermediate_size": 24, **EXPERTS},
    "qwen3_moe": {"moe_intermediate_size": 24, "head_dim": 8, **EXPERTS},
    "gpt_oss": {"intermediate_size": 24, "head_dim": 8, **EXPERTS},
    "granitemoe": {"intermediate_size": 24, **EXPERTS},
    "jetmoe": {"intermediate_size": 24, "kv_channels": 8, **EXPERTS},
}
FAMILIES["mamba"] = FAMILIES["falcon_mamba"] = {"state_size": 4, "intermediate_size": 32}
FAMILIES["mamba2"] = {"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4}
FAMILIES["phi"] = {"intermediate_size": 24}
FAMILIES["gemma"] = {"intermediate_size": 24, "head_dim": 8}
MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss", "granitemoe", "jetmoe")
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "pissa": {"init": "pissa"},
    "dora-rslora": {"dora": True, "rslora": True},
}


def plain_model(family: str) -> Any:
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **SMALL | FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def adapted(family: str, adapter: Adapter, *, trained: bool = True) -> Any:
    model = plain_model(family)
    attach(model, adapter, objective="causal_lm", seed=1)
    if trained:
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def in_peft(family: str, adapter: Adapter, values: dict[str, Tensor]) -> Any:
    """The same adapter, set up by peft's documented interface, with the values of `values`."""
    from peft import LoraConfig, get_peft_model

    base = plain_model(family)
    targets = chosen(base, adapter)
    settings = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        init_lora_weights=True if adapter.init == "kaiming" else adapter.init,
        target_modules=sorted({target.name for target in targets if not target.stacked}),
        target_parameters=[target.name for target in targets if target.stacked] or None,
        fan_in_fan_out=family == "gpt2",
    )
    model = get_peft_model(base, settings).eval()
    own = {name.removeprefix("base_model.model."): p for name, p in model.named_parameters() if ".lora_" in name}
    assert own.keys() == {name for name in values if ".lora_" in name}
    for name, parameter in own.items():
        parameter.data.copy_(values[name])
    return model


def tokens() -> Tensor:
    return torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(0))


CASES = [*((family, variant) for family in ("llama", "gpt2") for variant in VARIANTS)]
CASES += [(family, variant) for family in MIXTURES for variant in ("lora", "rslora")]


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_outputs_gradients_and_merged_weights_are_those_of_peft(family: str, variant: str) -> None:
    adapter = Adapter(rank=3, alpha=5.0, **VARIANTS[variant])
    model = adapted(family, adapter)
    theirs = in_peft(family, adapter, model.state_dict())
    outputs = [one(input_ids=tokens(), labels=tokens()) for one in (model, theirs)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=1e-6, atol=1e-6)
    for output in outputs:
        output.loss.backward()
    other = {name.removeprefix("base_model.model."): p.grad for name, p in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, other[name], rtol=1e-5, atol=1e-7)
    ours = merged(model.state_dict(), adapter, plain_model(family))
    whole = theirs.merge_and_unload().state_dict()
    assert ours.keys() == whole.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-5, atol=1e-5, msg=lambda text, at=name: f"{at}: {text}")


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_are_adapted_by_default_and_routers_are_not(family: str) -> None:
    model = plain_model(family)
    adapter = Adapter(rank=2)
    targets = chosen(model, adapter)
    stacked = {target.weight for target in targets if target.stacked}
    assert stacked == {name for name, p in model.named_parameters() if ".experts." in name and p.dim() == 3} | (
        {name for name, p in model.named_parameters() if p.dim() == 3} if family == "jetmoe" else set()
    )
    assert not [target.name for target in targets if "router" in target.name or target.name.endswith(".gate")]
    expected = num_trainable(model, adapter, "causal_lm")
    before = model(input_ids=tokens()).logits
    attach(model, adapter, objective="causal_lm", seed=1)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    assert torch.equal(model(input_ids=tokens()).logits, before)


@pytest.mark.parametrize("family", ["mamba", "mamba2", "falcon_mamba"])
def test_what_the_kernels_of_state_space_layers_read_is_left_out(family: str) -> None:
    """On a GPU these weights go into a fused kernel; peft refuses out_proj with a ValueError."""
    model = adapted(family, Adapter(rank=2))
    assert {target.kind for target in chosen(plain_model(family), Adapter())} == {"in_proj"}
    assert "out_proj.weight" in described(plain_model(family), Adapter())[1]
    assert torch.isfinite(model(input_ids=tokens()).logits).all()
    with pytest.raises(ModelError, match="read the weights of out_proj without calling these layers"):
        chosen(plain_model(family), Adapter(targets=["in_proj", "out_proj"]))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16"])
def test_pissa_begins_with_the_pretrained_model_and_exports_it(family: str, init: Any) -> None:
    adapter = Adapter(rank=3, init=init)
    plain, model = plain_model(family), adapted(family, adapter, trained=False)
    torch.testing.assert_close(model(input_ids=tokens()).logits, plain(input_ids=tokens()).logits, rtol=1e-4, atol=1e-4)
    whole = merged(model.state_dict(), adapter, plain)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(whole[name], tensor, rtol=1e-5, atol=1e-5)
    # Each weight is left without its largest singular values.
    name = chosen(plain, adapter)[0].name
    left = torch.linalg.svdvals(model.get_submodule(name).base_layer.weight)
    assert torch.allclose(left[0], torch.linalg.svdvals(plain.get_submodule(name).weight)[3], rtol=1e-3)


def test_an_adapter_switched_off_is_the_pretrained_model_in_a_mixture() -> None:
    model = adapted("mixtral", Adapter(rank=2))
    assert torch.equal(AdapterOff(model)(input_ids=tokens()).logits, plain_model("mixtral")(input_ids=tokens()).logits)
    assert not torch.allclose(model(input_ids=tokens()).logits, AdapterOff(model)(input_ids=tokens()).logits, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("llama", {"dora": True, "rslora": True}),
        ("gpt2", {"init": "pissa", "rslora": True}),
        ("llama", {"init": "pissa"}),
        ("llama", {"modules_to_save": ["model.norm.weight"], "targets": ["q_proj"]}),
        ("qwen3_moe", {}),
        ("gpt_oss", {"targets": ["experts.down_proj", "v_proj"]}),
    ],
)
def test_peft_loads_what_is_saved_and_training_continues_from_it(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    from peft import PeftModel

    adapter, plain = Adapter(rank=3, alpha=5.0, **settings), plain_model(family)
    model = adapted(family, adapter)
    expected = model(input_ids=tokens()).logits
    save_adapter(
        tmp_path,
        weights=model.state_dict(),
        adapter=adapter,
        model=plain,
        trained=adapter.modules_to_save,
        base="the base",
        start=plain.state_dict(),
    )
    theirs = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path).eval()
    torch.testing.assert_close(theirs(input_ids=tokens()).logits, expected, rtol=1e-4, atol=1e-4)
    change: dict[str, Any] = {"pretrained": str(tmp_path)}
    if adapter.init != "kaiming":  # a plain adapter of twice the rank
        change |= {"init": "kaiming", "rank": 6, "alpha": 5.0 * 2 ** (0.5 if adapter.rslora else 1)}
    continued = adapted(family, adapter.model_copy(update=change), trained=False)
    torch.testing.assert_close(continued(input_ids=tokens()).logits, expected, rtol=1e-4, atol=1e-4)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(ModelError, match=r"has no readable adapter_config\.json"):
        adapted(family, adapter.model_copy(update=change))


@pytest.mark.parametrize(
    ("family", "tied", "modules", "rows"),
    [
        ("llama", True, ["model.embed_tokens.*"], 61),
        ("llama", True, ["lm_head.weight"], 66),  # another name of the same weight
        ("llama", False, ["*embed_tokens*", "lm_head.*"], 66),
        ("gpt2", True, ["transformer.wte.weight"], 64),
        ("gemma", True, ["model.embed_tokens.*"], 66),  # scales its embeddings
        ("phi", False, ["lm_head.*", "model.embed_tokens.*"], 64),  # its head has a bias
        ("llama", True, [], 66),
    ],
)
def test_peft_loads_embeddings_that_are_tied_resized_and_trained_in_full(
    family: str, tied: bool, modules: list[str], rows: int, tmp_path: Path
) -> None:
    """peft gives each module of modules_to_save its own copy: a tied head must come with its embedding."""
    from peft import AutoPeftModelForCausalLM, PeftModel

    config = AutoConfig.for_model(family, **SMALL | FAMILIES[family], tie_word_embeddings=tied)
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    resize(model, rows, seed=1)
    plain = copy.deepcopy(model)
    adapter = Adapter(rank=3, modules_to_save=modules)
    attach(model, adapter, objective="causal_lm", seed=1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    expected = model(input_ids=tokens()).logits
    trained = [name for name, _ in fully_trained(plain, adapter, "causal_lm")]
    assert bool(trained) == bool(modules)
    saved = tmp_path / "adapter"
    saved.mkdir()
    save_adapter(
        saved,
        weights=model.state_dict(),
        adapter=adapter,
        model=plain,
        trained=trained,
        base=str(tmp_path / "base"),
    )
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(rows)
    for loaded in (
        PeftModel.from_pretrained(base, saved),
        AutoPeftModelForCausalLM.from_pretrained(saved) if rows == 61 or not modules else None,
    ):
        if loaded is not None:
            found = loaded.eval()(input_ids=tokens()).logits
            torch.testing.assert_close(found[..., :61], expected[..., :61], rtol=1e-4, atol=1e-4)
    continued = copy.deepcopy(plain)
    attach(continued, adapter.model_copy(update={"pretrained": str(saved)}), objective="causal_lm", seed=2)
    torch.testing.assert_close(continued(input_ids=tokens()).logits, expected, rtol=1e-4, atol=1e-4)
    whole = merged(model.state_dict(), adapter, plain)
    plain.load_state_dict(whole)
    torch.testing.assert_close(plain(input_ids=tokens()).logits, expected, rtol=1e-4, atol=1e-4)


def test_copies_of_a_tied_weight_that_differ_are_not_continued(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def tied() -> Any:
        config = AutoConfig.for_model("llama", **SMALL | FAMILIES["llama"], tie_word_embeddings=True)
        torch.manual_seed(3)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)

    adapter, model = Adapter(rank=3, modules_to_save=["lm_head.*"]), tied()
    attach(model, adapter, objective="causal_lm", seed=1)
    trained = ["model.embed_tokens.weight"]
    save_adapter(tmp_path, weights=model.state_dict(), adapter=adapter, model=tied(), trained=trained, base="base")
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["base_model.model.lm_head.weight"] += 1
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match=r"differ, and are one tensor in this model; set model\.config\.tie_word"):
        attach(tied(), adapter.model_copy(update={"pretrained": str(tmp_path)}), objective="causal_lm", seed=1)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "model.embed_tokens"])
def test_embeddings_and_heads_have_no_adapter_and_the_way_out_is_named(target: str) -> None:
    with pytest.raises(ModelError, match=rf"{target} is an embedding, a head, or trained in full.*modules_to_save"):
        chosen(plain_model("llama"), Adapter(targets=["q_proj", target]))


def test_what_vllm_does_not_load_is_told(tmp_path: Path) -> None:
    def told(family: str = "llama", **settings: Any) -> list[str]:
        adapter, plain = Adapter(**settings), plain_model(family)
        model = plain_model(family)
        attach(model, adapter, objective="causal_lm", seed=1)
        trained = [name for name, _ in fully_trained(plain, adapter, "causal_lm")]
        save_adapter(
            tmp_path, weights=model.state_dict(), adapter=adapter, model=plain, trained=trained, base=str(tmp_path)
        )
        return left_out_by_vllm(tmp_path)

    assert told() == told(rslora=True, targets=["q_proj"]) == []
    assert told(rank=24) == ["its rank 24 needs `--max-lora-rank 32`"]
    assert told(rank=600, targets=["q_proj"]) == ["its rank 600 is above vLLM's largest, 512"]
    assert told(dora=True, modules_to_save=["lm_head.*"]) == [
        "vLLM has no DoRA",
        "vLLM loads no modules that are trained in full (lm_head)",
    ]
    (experts,) = told("mixtral")
    assert experts.startswith("adapters of stacked experts")
    assert local_base(tmp_path) == str(tmp_path)


def test_an_adapter_that_peft_wrote_is_continued_if_the_recipe_says_what_it_is(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    def written(name: str, **settings: Any) -> str:
        base = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
        torch.manual_seed(1)
        get_peft_model(plain_model("llama"), LoraConfig(**base | settings)).save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    fitting = Adapter(rank=4, alpha=8.0, targets=["q_proj", "v_proj"], pretrained=written("right"))
    torch.manual_seed(1)
    theirs = get_peft_model(
        plain_model("llama"),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    ).eval()
    found = adapted("llama", fitting, trained=False)(input_ids=tokens()).logits
    torch.testing.assert_close(found, theirs(input_ids=tokens()).logits, rtol=1e-5, atol=1e-5)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"rank": 8}, "has other settings; set rank: 4"),
        ({"targets": []}, "adapts other weights than model.adapter.targets: it lacks model.layers.0"),
        ({"targets": ["q_proj"]}, "it has .*v_proj.* besides; set targets to what it adapts"),
        ({"dora": True}, "set dora: false"),
        ({"pretrained": written("rows", bias="lora_only")}, "uses bias"),
        ({"pretrained": written("parts", rank_pattern={"v_proj": 2})}, "uses rank_pattern"),
        ({"pretrained": written("pissa", init_lora_weights="pissa")}, "uses init_lora_weights: pissa"),
    ]
    for change, message in refused:
        with pytest.raises(ModelError, match=message):
            num_trainable(plain_model("llama"), fitting.model_copy(update=change), "causal_lm")


@pytest.mark.parametrize(
    ("settings", "field"), [({"dropout": 0.1}, "dropout"), ({"dora": True}, "dora"), ({"init": "pissa"}, "init")]
)
def test_what_stacked_experts_cannot_have_is_refused_with_the_way_out(settings: Any, field: str) -> None:
    model = plain_model("qwen3_moe")
    with pytest.raises(ModelError, match=rf"model.adapter.{field} works on linear layers") as refused:
        chosen(model, Adapter(**settings))
    advised = str(refused.value).rpartition("['")[2].removesuffix("'].")
    targets = chosen(model, Adapter(**settings, targets=[advised]))
    assert {target.kind for target in targets} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_a_run_of_an_earlier_version_continues_with_the_layers_that_it_adapted(tmp_path: Path) -> None:
    """Before stacked experts could have adapters, its resolved.yaml had no field `rslora`."""

    def resumed(family: str, **adapter: Any) -> Adapter:
        recipe = tiny_recipe(tmp_path / "corpus.jsonl", family="mixtral" if family == "mixtral" else "llama")
        fields = YAML(typ="safe", pure=True).load(dump_recipe(recipe))
        fields["model"] |= {"pretrained": str(tmp_path), "adapter": adapter}
        path = tmp_path / "resolved.yaml"
        with path.open("w") as file:
            YAML().dump(fields, file)
        found = load_recipe(str(path)).recipe.model.adapter
        assert found is not None
        return found

    write_corpus(tmp_path).rename(tmp_path / "corpus.jsonl")
    earlier = resumed("mixtral", rank=4, targets=[])
    kinds = {target.kind for target in chosen(plain_model("mixtral"), earlier)}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert resumed("mixtral", rank=4, targets=["q_proj"]).targets == ["q_proj"]
    assert resumed("mixtral", rank=4, targets=[], rslora=False).targets == []
    assert resumed("llama", rank=4, targets=[]).targets == []


def test_targets_are_names_or_regular_expressions_and_described_with_what_is_left_out() -> None:
    model = plain_model("mixtral")

    def names(*targets: str) -> list[str]:
        return [target.name for target in chosen(model, Adapter(targets=list(targets)))]

    assert names(r".*layers\.1\..*[qv]_proj") == [f"model.layers.1.self_attn.{part}_proj" for part in "qv"]
    assert names("experts") == [f"model.layers.{n}.mlp.experts.{p}_proj" for n in "01" for p in ("gate_up", "down")]
    assert names("down_proj", "q_proj")[-1] == "model.layers.1.mlp.experts.down_proj"
    adapted_text, left = described(model, Adapter(targets=["q_proj", "experts.down_proj"]))
    assert adapted_text == "2 q_proj, 2 experts.down_proj"
    assert left.startswith("2 experts.gate_up_proj, 2 ")
    assert left.endswith("of the body's matrices)")
    assert described(plain_model("llama"), Adapter())[1] == ""
    with pytest.raises(ModelError, match=r"no linear layer is called 'experts.dwn_proj'; did you mean 'experts.down_p"):
        names("experts.dwn_proj")
    with pytest.raises(
        ModelError, match=r"no whole name of a linear layer matches 'model.layers.\\d.attn.q_proj'; did"
    ):
        names(r"model.layers.\d.attn.q_proj")
