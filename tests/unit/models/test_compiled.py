"""Compilation by block, with torch's partitioner of passes but without the generation of code, which takes a minute."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, LlamaConfig

from shardyard.errors import ModelError
from shardyard.models import compiled
from shardyard.models.checkpointing import checkpoint_activations
from shardyard.models.compiled import cache_folder, compile_blocks, use_cache
from shardyard.recipe.schema import Model

pytestmark = pytest.mark.slow
IDS = torch.arange(64).view(2, 32) % 60


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Counts of compilations, which begin at zero."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    torch._dynamo.reset()
    counters.clear()
    yield counters["stats"]
    torch._dynamo.reset()


def build(layers: int = 2, *, compile_it: bool = True, checkpointing: str = "none", varying: bool = False) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=64,
        use_cache=False,
    )
    settings = Model.model_validate({"family": "llama", "activation_checkpointing": checkpointing})
    model = AutoModelForCausalLM.from_config(config)
    checkpoint_activations(settings, model)
    model.train()
    if compile_it:
        assert compile_blocks(model, settings, varying=varying) == layers
    return model


def trained(model: Any) -> tuple[Any, int]:
    """Gradients of a pass, and the bytes that autograd stores for it beside the weights."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    stored: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            stored[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.model(IDS).last_hidden_state.square().sum()
    loss.backward()
    return [parameter.grad for parameter in model.model.parameters()], sum(stored.values())


def test_equal_layers_are_compiled_once(graphs: Any) -> None:
    for layers in (2, 4):
        torch._dynamo.reset()
        before = graphs["unique_graphs"]
        trained(build(layers))
        assert graphs["unique_graphs"] - before == 1


def test_gradients_are_those_of_the_plain_model_and_each_mode_stores_less() -> None:
    expected, _ = trained(build(compile_it=False))
    stored = {}
    for mode in ("none", "selective", "full"):
        found, stored[mode] = trained(build(checkpointing=mode))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # What a policy of products keeps is known only within the compiled code: outside, all would be computed again.
    assert stored["none"] > 1.1 * stored["selective"] > 1.5 * stored["full"], stored


def test_other_shapes_are_compiled_a_fixed_number_of_times(graphs: Any) -> None:
    model = build()
    trained(model)
    model.eval()
    for rows, length in ((2, 17), (3, 9), (5, 40), (4, 23)):
        with torch.no_grad():
            model(torch.ones(rows, length, dtype=torch.int64))
    assert graphs["unique_graphs"] <= 3, "one for training, one or two for evaluation"


def test_rows_of_several_lengths_share_their_code(graphs: Any) -> None:
    model = build(varying=True)
    for length in (31, 17, 24, 9):
        model.model(IDS[:, :length]).last_hidden_state.sum().backward()
    assert graphs["unique_graphs"] <= 2, "one for each length"


def test_at_stage_3_a_block_without_a_gradient_of_its_input_is_refused() -> None:
    model = build(compile_it=False)
    model.model.embed_tokens.weight.requires_grad_(False)
    compile_blocks(model, Model.model_validate({"family": "llama"}), varying=False, gathered=True)
    with pytest.raises(ModelError, match=r"set zero\.stage to 2"):
        model(IDS)


def test_a_text_is_generated_without_compiling(graphs: Any) -> None:
    model = build().eval()
    model.generate(IDS[:1, :4], max_new_tokens=6, do_sample=False, use_cache=True)
    assert graphs["unique_graphs"] == 0


def test_code_is_kept_for_this_torch_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (compiled.FOLDER_VARIABLE, compiled.THREADS_VARIABLE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = use_cache(ranks_here=4, cores=8)
    assert folder.is_relative_to(tmp_path / "shardyard" / "compiled")
    assert torch.__version__ in folder.name
    assert os.environ[compiled.FOLDER_VARIABLE] == str(folder)
    assert os.environ[compiled.THREADS_VARIABLE] == "2"


def test_a_home_that_cannot_be_written_leads_to_the_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(compiled.FOLDER_VARIABLE, "")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder().is_relative_to(tmp_path / f"shardyard-compiled-{os.getuid()}")
    monkeypatch.setattr(compiled, "_is_writable", lambda folder: False)
    assert cache_folder().parent == tmp_path
    monkeypatch.setenv(compiled.FOLDER_VARIABLE, "/given")
    assert cache_folder() == Path("/given")
