"""A foreign run's files are read as tensors: whatever code they carry is refused, named, and never executed."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from shardyard.cli.main import app
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.tensor_files import ALLOWED, code_in, only_tensors, read_tensors
from shardyard.engine.inference.load import load_trained
from shardyard.errors import CheckpointError, ModelError
from shardyard.models.build import architecture_config, auto_class, construct, special_token_ids
from shardyard.models.pretrained import load_weights
from shardyard.recipe.loading.load import dump_recipe
from shardyard.tracking.run.folder import RunFolder
from support.forged import forge, with_code, write_first_manifest
from support.tiny import tiny_recipe, write_corpus


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A folder that is there as soon as foreign code has run."""
    return tmp_path / "code has run"


def test_code_is_refused_and_named(tmp_path: Path, trace: Path) -> None:
    path = tmp_path / "states.pt"
    path.write_bytes(with_code({"module": {}}, trace))
    assert code_in(path) == ["os.makedirs"]
    with pytest.raises(CheckpointError, match=r"states\.pt holds more than tensors.*os\.makedirs.*add --trust"):
        read_tensors(path)
    with only_tensors(trust=False), pytest.raises(CheckpointError, match="holds more than tensors"):
        torch.load(path, weights_only=False)
    assert not trace.exists()
    assert read_tensors(path, trust=True)["module"] == {}
    assert trace.exists()


def test_a_file_that_is_no_pickle_is_an_error_of_the_same_kind(tmp_path: Path) -> None:
    path = tmp_path / "states.pt"
    path.write_bytes(b"\x80\x02K\x01.")
    with pytest.raises(CheckpointError, match=r"states\.pt"):
        read_tensors(path)
    assert code_in(path) == []


def test_what_is_allowed_makes_nothing_but_itself() -> None:
    """No function, and no class that does something when it is made or its state is set."""
    for allowed in ALLOWED:
        assert isinstance(allowed, type)
        assert not {"__setstate__", "__del__"} & vars(allowed).keys()


def test_what_deepspeed_stores_is_read(tmp_path: Path) -> None:
    """Both kinds of loss scalers, which of the two fp16 has, the stage, where parameters lie in a flat buffer."""
    given = {"init_scale": 2.0**16, "scale_window": 1000, "min_scale": 1.0, "delayed_shift": 2}
    given["consecutive_hysteresis"] = False
    state = {
        "dynamic": CreateLossScaler(torch.half, 0, True, given),
        "static": CreateLossScaler(torch.float, 1.0, False, None),
        "stage": ZeroStageEnum(3),
        "address": fragment_address(numel=4, start=2),
        "shapes": OrderedDict(weight=torch.Size([2, 2])),
        "dtype": torch.float16,
        "step": torch.tensor(3),
    }
    torch.save(state, tmp_path / "states.pt")
    assert code_in(tmp_path / "states.pt") == []
    found = read_tensors(tmp_path / "states.pt")
    assert found.keys() == state.keys()
    assert [vars(found[name]) for name in ("dynamic", "static")] == [vars(state[n]) for n in ("dynamic", "static")]
    assert (found["stage"], found["address"], found["shapes"]) == (state["stage"], state["address"], state["shapes"])


@pytest.fixture(params=[0, 3])
def foreign(request: pytest.FixtureRequest, tmp_path: Path, trace: Path) -> RunFolder:
    """Somebody's run of this ZeRO stage, with a checkpoint that carries code."""
    recipe = tiny_recipe(write_corpus(tmp_path, 60))
    text = dump_recipe(recipe)
    folder = RunFolder.create(tmp_path / "runs", "tiny", text, text)
    checkpoint = files.committed_folder(folder.checkpoints, 5)
    (checkpoint / "engine").mkdir(parents=True)
    (checkpoint / "trainer.json").write_text("{}")
    write_first_manifest(checkpoint, step=5, world_size=1, zero_stage=request.param)
    tokenizer = load_tokenizer("bytes")
    ids = special_token_ids(tokenizer)
    config = architecture_config(recipe.model, vocabulary=len(tokenizer), special_tokens=ids)
    states: dict[str, Any] = {"module": construct(recipe.model, config, "causal_lm").state_dict()}
    names = ("zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    for name in names if request.param else ("mp_rank_00_model_states.pt",):
        forge(checkpoint, f"engine/{name}", with_code(states, trace))
    return folder


@pytest.mark.parametrize("command", [("sample", "RUN", "the"), ("eval", "RUN"), ("export", "RUN", "OUT")])
def test_no_command_executes_a_foreign_runs_code(
    foreign: RunFolder, trace: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    arguments = [{"RUN": str(foreign.path), "OUT": str(tmp_path / "out")}.get(word, word) for word in command]
    with pytest.raises(CheckpointError) as caught:
        typer.main.get_command(app).main(args=arguments, standalone_mode=False)
    assert "os.makedirs" in str(caught.value)
    assert "--trust" in str(caught.value)
    assert not trace.exists()
    assert not (tmp_path / "out").exists()


def test_a_foreign_final_model_is_read_as_tensors(tmp_path: Path, trace: Path) -> None:
    recipe = tiny_recipe(write_corpus(tmp_path, 20))
    text = dump_recipe(recipe)
    folder = RunFolder.create(tmp_path / "runs", "tiny", text, text)
    tokenizer = load_tokenizer("bytes")
    ids = special_token_ids(tokenizer)
    config = architecture_config(recipe.model, vocabulary=len(tokenizer), special_tokens=ids)
    config.save_pretrained(folder.final)
    tokenizer.save_pretrained(folder.final)
    weights = construct(recipe.model, config, "causal_lm").state_dict()
    (folder.final / "pytorch_model.bin").write_bytes(with_code(weights, trace))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin holds more than tensors.*os\.makedirs.*add --trust"):
        load_trained(folder)
    assert not trace.exists()
    assert load_trained(folder, trust=True).model.config.model_type == "gpt2"
    assert trace.exists()


def test_pretrained_weights_are_read_as_tensors(tmp_path: Path, trace: Path) -> None:
    recipe = tiny_recipe(tmp_path / "corpus.jsonl")
    config = architecture_config(recipe.model, vocabulary=257, special_tokens={})
    config.save_pretrained(tmp_path / "model")
    weights = construct(recipe.model, config, "causal_lm").state_dict()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(with_code(weights, trace))
    with pytest.raises(ModelError, match=r"holds more than tensors.*safetensors"):
        load_weights(auto_class("causal_lm"), str(tmp_path / "model"), config, seed=0)
    assert not trace.exists()
