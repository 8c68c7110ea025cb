"""Where the weights of a model go for inference: on one device if it holds them, else wherever there is room."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shardyard.engine.inference import load, spread
from shardyard.engine.inference.load import load_trained
from shardyard.engine.inference.spread import Spread, is_spread, spread_of, spread_weights
from shardyard.models.build import construct
from shardyard.models.export.export import export_model
from shardyard.recipe.loading.load import dump_recipe
from shardyard.tracking.run.folder import RunFolder
from support.tiny import tiny_recipe, write_corpus

GIB = 1 << 30


@pytest.mark.parametrize(
    ("weights", "devices", "host", "where"),
    [
        (50, [80, 80], 500, None),
        (50, [], 80, None),
        (64, [80], 500, None),
        (100, [80, 80], 500, "do not fit one device (80.0 GiB free): they lie on the devices of this host"),
        (150, [80, 80], 500, "they lie on the devices of this host and its memory"),
        (150, [80], 500, "they lie on its device and its memory"),
        (600, [80, 80], 500, "they lie on the devices of this host, its memory and files, which is slow"),
        (100, [], 80, "the memory of this host (80.0 GiB free): they lie on its memory and files, which is slow"),
    ],
)
def test_weights_lie_where_there_is_room(weights: int, devices: list[int], host: int, where: str | None) -> None:
    found = spread_weights(weights * GIB, [free * GIB for free in devices], host * GIB)
    if where is None:
        assert found is None
    else:
        assert found is not None
        assert found.text.endswith(where)
        assert found.text.startswith(f"the weights ({weights}.0 GiB)")
        assert found.max_memory == {name: int(0.8 * free * GIB) for name, free in [*enumerate(devices), ("cpu", host)]}


@pytest.mark.slow
def test_a_model_in_several_places_gives_the_same_loss_and_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of it in memory, the rest in its files, as accelerate divides it among devices."""
    recipe = tiny_recipe(write_corpus(tmp_path), family="llama", model={"logits_chunk": 16})
    folder = RunFolder.create(tmp_path, "tiny", dump_recipe(recipe), dump_recipe(recipe))
    components = load.make_components(recipe)
    torch.manual_seed(3)
    model = construct(recipe.model, components.config)
    export_model(
        folder.final,
        config=components.config,
        weights=model.state_dict(),
        tokenizer=components.exported_tokenizer(recipe),
        card="",
    )
    told: list[str] = []
    whole = load_trained(folder, report=told.append)
    assert (told, is_spread(whole.model)) == ([], False)

    def half(path: Path, device: torch.device) -> Spread | None:
        found = spread_of(path, device)
        assert found is None, "there is room"
        size = sum(parameter.nbytes for parameter in model.parameters())
        return spread_weights(size, [], int(0.7 * size))

    monkeypatch.setattr(load, "spread_of", half)
    parts = load_trained(folder, report=told.append)
    assert told[0].endswith("they lie on its memory and files, which is slow")
    assert {parameter.device.type for parameter in parts.model.parameters()} == {"cpu", "meta"}
    losses = [trained.evaluate(rows=8)["loss"] for trained in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    prompts = ["the model", "a batch of tokens"]
    texts = [one.sample(prompts, max_new_tokens=8, temperature=0.0, seed=0) for one in (whole, parts)]
    assert texts[0] == texts[1]


def test_devices_are_asked_for_their_free_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Accelerator:
        def device_count(self) -> int:
            return 2

        def available_memory(self, index: int) -> int:
            return (index + 1) * 1000

    monkeypatch.setattr(spread, "get_accelerator", Accelerator)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(bytes(700))
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(bytes(200))
    found = spread_of(tmp_path, torch.device("cuda"))
    assert found is not None
    assert (found.max_memory[0], found.max_memory[1]) == (800, 1600)
    assert found.text == "the weights (900 B) do not fit one device (1000 B free): they lie on the devices of this host"
