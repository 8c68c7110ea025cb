"""Modules from outside (`model.module`): how they are made, called, counted, saved, and what is refused."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from torch import Tensor, distributed, nn

from shardyard import plugins
from shardyard.engine.components import make_components
from shardyard.errors import ModelError, UsageError
from shardyard.models.build import architecture_config, construct, module_skeleton
from shardyard.models.export.export import export_model
from shardyard.models.outside import OutputError, OutsideModel, load_module_weights, read_config
from shardyard.models.size.measure import measure_recipe
from shardyard.planning.plan import World, make_plan
from shardyard.recipe.code import refuse_code
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.rules import check
from shardyard.recipe.schema import Model, Recipe
from support.docs.pages import REPOSITORY, blocks_of
from support.images import CLASSES, SIZE, image_fields, write_images
from support.tiny import tiny_recipe

BLOCKS = list(blocks_of("docs/extending.md", (REPOSITORY / "docs/extending.md").read_text(encoding="utf-8")))
OTHERS = """
from types import SimpleNamespace

import torch
from torch import nn


class Masked(nn.Module):
    def __init__(self, config, vocab_size):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab_size, config.width), nn.Linear(config.width, vocab_size)

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.head(self.embed(input_ids) * attention_mask[..., None]), extra=1)


def sequential(vocab_size, width=4):
    return nn.Sequential(nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size))


class Looks(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        assert float(self.weight.detach().sum()) < 100


class Returns(nn.Linear):
    def __init__(self, what):
        super().__init__(2, 2)
        self.what = what

    def forward(self, input_ids):
        return {"tuple": (1,), "mapping": {"hidden": torch.zeros(1)}}[self.what]


def conv(num_labels, width=4):
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_labels)
    )


def nothing(): return nn.Identity()
def number(): return 1
def lazy(): return nn.LazyLinear(2)
def fails(): raise ValueError("no such width")
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the page's file and others."""
    for block in BLOCKS:
        if block.mark == "recurrent.py":
            (tmp_path / block.mark).write_text(block.text, encoding="utf-8")
    (tmp_path / "others.py").write_text(OTHERS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def model_of(module: str, **config: Any) -> Model:
    return Model(module=module, config=config)


def made(model: Model, vocabulary: int | None = 11) -> Any:
    config = architecture_config(model, vocabulary=vocabulary, special_tokens={"eos_token_id": 3})
    return construct(model, config)


def recipe_of_page(**sections: Any) -> Recipe:
    (text,) = (block.text for block in BLOCKS if block.language == "yaml" and "module: recurrent.py" in block.text)
    fields = YAML(typ="safe").load(text)
    for name, section in sections.items():
        fields[name] = fields.get(name, {}) | section
    return parse_recipe(fields)


def test_a_family_need_not_be_named_beside_a_module() -> None:
    recipe = recipe_of_page()
    assert (recipe.model.family, recipe.model.label) == ("module", "RecurrentLM")
    assert parse_recipe(recipe.model_dump()) == recipe
    assert check(recipe) == []


def test_the_constructor_gets_the_recipe_s_fields_and_facts_that_it_asks_for() -> None:
    model = made(model_of("recurrent.py:RecurrentLM", width=8, layers=1))
    assert isinstance(model, OutsideModel)
    assert model.module.embed.weight.shape == (11, 8)
    assert model.config.arguments == {"vocab_size": 11, "width": 8, "layers": 1}
    assert made(model_of("others.py:Masked", width=8)).module.head.weight.shape == (11, 8)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (model_of("recurrent.py:RecurrentLM", widht=8), "takes no argument 'widht'; did you mean 'width'?"),
        (model_of("others.py:Returns"), "needs the argument(s) what; add them there"),
        (Model(module="recurrent.py:RecurrentLM", dropout=0.1), "model.dropout: recurrent.py:RecurrentLM takes no"),
        (model_of("others.py:nothing"), "has no parameters, so there is nothing to train"),
        (model_of("others.py:number"), "gives no torch.nn.Module but int"),
        (model_of("others.py:lazy"), "has lazy layers"),
        (model_of("others.py:fails"), "cannot be made: ValueError: no such width"),
        (Model(module="others.py:sequential", activation_checkpointing=True), "has no nn.ModuleList"),
        (model_of("bigram"), "no installed package brings a model 'bigram'"),
    ],
)
def test_what_cannot_be_made_says_why(model: Model, expected: str) -> None:
    with pytest.raises(ModelError) as caught:
        made(model)
    assert expected in str(caught.value)


def test_a_package_brings_one_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("recurrent", "recurrent.py:RecurrentLM", "shardyard.models")
    monkeypatch.setattr(plugins, "_entry_points", lambda group: (point,) if group == "shardyard.models" else ())
    assert made(model_of("recurrent", width=8)).module.embed.weight.shape == (11, 8)
    assert [path for path, _ in check(recipe_of_page(model={"module": "recurrent"}))] == []
    refuse_code(recipe_of_page(model={"module": "recurrent"}), "theirs")
    with pytest.raises(UsageError, match="theirs names its own code"):
        refuse_code(recipe_of_page(), "theirs")


def test_names_that_lead_nowhere_say_so() -> None:
    for module, expected in (
        ("recurrent.py:Recurrent", r"recurrent.py has no 'Recurrent'; did you mean 'RecurrentLM'\?"),
        ("absent.py:Any", "there is no file 'absent.py'"),
        ("no_such_package:Any", "there is no module 'no_such_package' here"),
    ):
        with pytest.raises(UsageError, match=expected):
            made(model_of(module))


def test_forward_gets_what_it_takes_and_what_it_returns_has_names() -> None:
    ids = torch.ones((2, 3), dtype=torch.long)
    plain = made(model_of("others.py:sequential"))
    assert plain(input_ids=ids, use_cache=False, position_ids=ids).logits.shape == (2, 3, 11)
    with pytest.raises(ModelError, match="takes no attention_mask, which the rows of this objective have"):
        plain(input_ids=ids, attention_mask=ids)
    masked = made(model_of("others.py:Masked", width=4))(input_ids=ids, attention_mask=ids)
    assert (masked.logits.shape, masked.extra) == ((2, 3, 11), 1)
    with pytest.raises(ModelError, match="returned tuple; return the logits as a tensor, or a mapping"):
        made(model_of("others.py:Returns", what="tuple"))(input_ids=ids)
    with pytest.raises(OutputError, match="returned hidden, and the objective reads 'logits'"):
        _ = made(model_of("others.py:Returns", what="mapping"))(input_ids=ids).logits


def test_it_is_counted_and_its_row_costs_what_a_pass_of_shapes_says() -> None:
    recipe = recipe_of_page(model={"module": "recurrent.py:RecurrentLM", "config": {"width": 48, "layers": 3}})
    found = measure_recipe(recipe, make_components(recipe).config)
    block = 2 * 48 + 2 * 48 * 3 * 48 + 2 * 3 * 48
    assert (found.family, found.parameters) == ("RecurrentLM", 257 * 48 + 3 * block)
    assert found.largest_block_parameters == block
    assert found.logits_per_row == 64 * 257
    assert found.flops_per_row is not None
    assert found.flops_per_row >= 3 * 2 * 64 * 48 * 257, "the head alone"
    less = recipe_of_page(model={"module": "recurrent.py:RecurrentLM", "activation_checkpointing": True})
    more = recipe_of_page(model={"module": "recurrent.py:RecurrentLM"})
    here = World(1, gpu=False)
    plans = [make_plan(one, measure_recipe(one, make_components(one).config), here) for one in (less, more)]
    assert plans[0].memory.activations_bytes < plans[1].memory.activations_bytes


def test_it_may_read_images(place: Path) -> None:
    model = {"module": "others.py:conv", "config": {"num_labels": CLASSES, "num_channels": 1}}
    recipe = parse_recipe(image_fields(write_images(place), "image_classification", model) | {"image": {"size": SIZE}})
    assert check(recipe) == []
    components = make_components(recipe)
    found = measure_recipe(recipe, components.config)
    assert found.parameters == 4 * 9 + 4 + 4 * CLASSES + CLASSES
    assert found.logits_per_row == CLASSES
    built: Any = construct(recipe.model, components.config)
    assert built(pixel_values=torch.zeros(2, 1, SIZE, SIZE)).logits.shape == (2, CLASSES)


def test_a_plan_refuses_what_it_cannot_count_and_documents_that_would_mix() -> None:
    recipe = recipe_of_page(model={"module": "others.py:Looks", "config": {}})
    with pytest.raises(ModelError, match=r"cannot be made of shapes alone.*must not look at values"):
        measure_recipe(recipe, make_components(recipe).config)
    recipe = recipe_of_page(data={"isolate_documents": True})
    with pytest.raises(ModelError, match=r"takes no position_ids.*set data.isolate_documents to false"):
        measure_recipe(recipe, make_components(recipe).config)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"model": {"family": "gpt2"}}, [("model", "family")]),
        ({"model": {"module": None, "family": "module"}}, [("model", "family")]),
        ({"model": {"module": "absent.py:Any"}}, [("model", "module")]),
        ({"model": {"module": "absent"}}, [("model", "module")]),
        ({"model": {"attention": "sdpa"}}, [("model", "attention")]),
        ({"model": {"adapter": {"rank": 2}}}, [("model", "adapter"), ("model", "adapter")]),
        ({"model": {"pretrained": "nowhere/at-all"}}, [("model", "pretrained")]),
    ],
)
def test_fields_that_do_not_go_with_a_module_are_problems_of_the_recipe(
    sections: dict[str, Any], expected: list[tuple[str, ...]]
) -> None:
    assert [path for path, _ in check(recipe_of_page(**sections))] == expected


def test_weights_are_saved_by_the_module_s_own_names_and_loaded_again(place: Path) -> None:
    model = model_of("recurrent.py:RecurrentLM", width=8)
    trained = made(model)
    scaled = {name: 2 * tensor for name, tensor in trained.state_dict().items()}
    config = trained.config
    skeleton = module_skeleton(model, config)
    export_model(place / "final", config=config, weights=scaled, tokenizer=None, card="", module=skeleton)
    stored = load_file(place / "final" / "model.safetensors")
    assert stored.keys() == dict(trained.module.named_parameters()).keys(), "a tied weight stands there once"
    found = read_config(place / "final")
    assert found is not None
    assert (found.dtype, found.arguments["width"]) == (torch.float32, 8)
    assert json.loads((place / "final" / "config.json").read_text())["module"] == "recurrent.py:RecurrentLM"
    again: Any = construct(model, found)
    assert load_module_weights(again, place / "final") == ([], [])
    assert again.module.head.weight is again.module.embed.weight
    assert torch.equal(again.module.head.weight, 2 * trained.module.head.weight)
    with pytest.raises(ModelError, match=r"do not fit the module: missing \['embed.weight'\]"):
        export_model(
            place / "other",
            config=config,
            weights={name: tensor for name, tensor in scaled.items() if "embed" not in name},
            tokenizer=None,
            card="",
            module=skeleton,
        )


def test_it_continues_tokens_until_the_end_of_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(model_of("others.py:sequential", width=2))
    embed, head = model.module
    with torch.no_grad():
        # The next token is the one before plus one.
        embed.weight.copy_(torch.stack([torch.arange(11.0), torch.ones(11)], dim=1))
        head.weight.copy_(torch.stack([2 * torch.arange(11.0), -(torch.arange(11.0) ** 2)], dim=1))
        head.bias.copy_(2 * torch.arange(11.0))
    ids = torch.tensor([[0]])
    assert model.generate(input_ids=ids, max_new_tokens=9).tolist() == [[0, 1, 2, 3]], "3 is the end"
    torch.manual_seed(0)
    assert model.generate(input_ids=ids, max_new_tokens=4, do_sample=True, temperature=0.01).tolist() == [[0, 1, 2, 3]]
    others = iter([1.0] * 5 + [0.0])
    passes: list[float] = []

    def goes_on(flag: Tensor, **_: object) -> None:
        passes.append(float(flag))
        flag.fill_(max(float(flag), next(others)))

    monkeypatch.setattr(distributed, "all_reduce", goes_on)
    together = model.generate(input_ids=ids, max_new_tokens=9, synced_gpus=True)
    assert together.tolist() == [[0, 1, 2, 3]]
    assert passes == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], "two more passes, until the other ranks are done"


def test_blocks_are_computed_anew_with_the_same_gradients() -> None:
    ids = torch.arange(12).reshape(2, 6) % 11
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        fields = {"module": "recurrent.py:RecurrentLM", "activation_checkpointing": checkpointed}
        model = made(Model.model_validate(fields))
        assert isinstance(model.module.blocks[0], nn.Module)
        model(input_ids=ids).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_tiny_recipes_take_a_module() -> None:
    recipe = tiny_recipe(Path("corpus.jsonl"), model={"module": "recurrent.py:RecurrentLM", "family": "module"})
    assert recipe.model.label == "RecurrentLM"
