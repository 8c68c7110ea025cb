"""What DeepSpeed leaves in files: found short where it says nothing, and written into checkpoints as tensors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shardyard.engine.offload import quirks
from shardyard.engine.offload.folder import SwapFolder
from shardyard.errors import HardwareError

COUNT = 1000


class Swapper:
    """Writes as DeepSpeed does: as much as there is room for, without a word."""

    def __init__(self, folder: Path) -> None:
        self.room = 10**6
        names = ("0_1", "exp_avg-0_1", "exp_avg_sq-0_1")
        self.values = {folder / f"{name}.tensor.swp": torch.full((COUNT,), 1.0 + at) for at, name in enumerate(names)}
        self.gradient = SimpleNamespace(path=str(folder / "gradient.swp"), length=COUNT)
        tensors = [
            SimpleNamespace(swap_path=str(path), compute_tensor=SimpleNamespace(ds_id=name))
            for path, name in zip(self.values, names, strict=True)
        ]
        info = SimpleNamespace(
            numel=lambda: COUNT,
            get_swap_paths=lambda: list(map(str, self.values)),
            swapped_gradients={0: self.gradient},
            tensors=tensors,
        )
        self.swap_params_info = {"0_1": info}

    def swap_out_optimizer_state(self, parameter: Tensor, async_swap: bool = False) -> None:
        for path, value in [*self.values.items(), (Path(self.gradient.path), torch.zeros(COUNT))]:
            # Files are longer than their tensors, by what aligns them.
            path.write_bytes((value.numpy().tobytes() + bytes(96))[: self.room])


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    folder = SwapFolder(tmp_path)
    swapped, kept = nn.Parameter(torch.empty(0)), nn.Parameter(torch.ones(3))
    swapped.ds_id, kept.ds_id = "0_1", "2_2"  # type: ignore[attr-defined]
    states: dict[int, Any] = {
        0: {"step": 7, "exp_avg": torch.empty(0), "exp_avg_sq": torch.empty(0)},
        1: {"step": 7, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)},
    }
    optimizer = SimpleNamespace(
        swap_optimizer=True,
        optimizer_swapper=Swapper(folder.path),
        state_dict=lambda: {
            "fp32_flat_groups": [swapped, kept],
            "optimizer_state_dict": {"state": states, "param_groups": []},
        },
        _swappable_optimizer_subgroup=lambda number: number == 0,
        parameters=[swapped, kept],
    )

    class Engine:
        pass

    made: Any = Engine()
    made.optimizer = optimizer
    quirks.keep_in_checkpoints(made, folder)
    yield made
    folder.close()


def test_a_full_disk_stops_a_run(engine: Any) -> None:
    swapper, parameter = engine.optimizer.optimizer_swapper, engine.optimizer.parameters[0]
    swapper.swap_out_optimizer_state(parameter=parameter)
    swapper.room = 4 * COUNT - 4
    with pytest.raises(HardwareError, match=r"is shorter than what was written: the disk of zero\.nvme_path is full"):
        swapper.swap_out_optimizer_state(parameter=parameter)


def test_a_gradient_that_was_cut_stops_a_run(engine: Any) -> None:
    swapper, parameter = engine.optimizer.optimizer_swapper, engine.optimizer.parameters[0]
    swapper.gradient.length = 2 * COUNT
    with pytest.raises(HardwareError, match=r"gradient\.swp is shorter"):
        swapper.swap_out_optimizer_state(parameter=parameter)


def test_checkpoints_hold_what_is_in_files(engine: Any, tmp_path: Path) -> None:
    engine.optimizer.optimizer_swapper.swap_out_optimizer_state(parameter=engine.optimizer.parameters[0])
    state = engine.optimizer.state_dict()
    torch.save(state, tmp_path / "state.pt")
    read = torch.load(tmp_path / "state.pt")
    assert torch.equal(read["fp32_flat_groups"][0], torch.full((COUNT,), 1.0))
    own = read["optimizer_state_dict"]["state"]
    assert torch.equal(own[0]["exp_avg"], torch.full((COUNT,), 2.0))
    assert torch.equal(own[0]["exp_avg_sq"], torch.full((COUNT,), 3.0))
    assert own[0]["step"] == 7
    assert torch.equal(own[1]["exp_avg"], torch.zeros(3)), "what is in memory stays as it is"
    assert engine.zero_nvme_offload_optimizer() is False, "DeepSpeed copies no files beside the checkpoint"


def test_files_go_with_the_run(engine: Any) -> None:
    path = engine.swap_folder.path
    assert path.is_dir()
    quirks.remove_files(engine)
    assert not path.exists()
