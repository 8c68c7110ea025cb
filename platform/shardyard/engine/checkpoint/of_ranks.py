"""Whole weights and optimizer states, as one rank of a mesh keeps them: its part of split layers, and its experts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from shardyard.engine.checkpoint.elsewhere import States, Trained
from shardyard.engine.checkpoint.expert_weights import is_stacked, name_in_transformers, parallel_layers
from shardyard.engine.checkpoint.parts import cut
from shardyard.engine.mesh import Mesh
from shardyard.errors import CheckpointError
from shardyard.recipe.tensor_plans import split_dimension


class Sources:
    """Where a model's weights come from: their names in a model on one rank, whose experts are stacked otherwise."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = [name for name, _ in parallel_layers(model)]
        self._tensors: dict[str, Tensor] = dict(chain(model.named_parameters(), model.named_buffers()))
        self._renamed = name_in_transformers(self.layers, self._tensors)

    def name(self, name: str) -> str:
        """The name on one rank of the weight that has this name here."""
        if not is_stacked(name):
            return self._renamed(name)
        layer, _, part = name.rpartition(".")
        return f"{layer}.{'down_proj' if part == 'w2' else 'gate_up_proj'}"

    def names(self, names: Sequence[str]) -> list[str]:
        """The same for several, each once."""
        return list(dict.fromkeys(self.name(name) for name in names))

    def on_rank(self, stored: States, mesh: Mesh) -> States:
        """What this rank keeps of a whole checkpoint, by its own names.

        Raises:
            CheckpointError: a weight has another shape.
        """
        trained, kept = {}, {}
        for name, tensor in self._tensors.items():
            source = self.name(name)
            if source in stored.trained:
                trained[name] = _part(name, stored.trained[source], mesh)
                wanted = torch.Size(getattr(tensor, "ds_shape", tensor.shape))
                if trained[name].shape != wanted:
                    raise CheckpointError(
                        f"{name} has the shape {list(trained[name].shape)} in the checkpoint and {list(wanted)} in "
                        "this run; a run goes on with the model that it began with"
                    )
            elif source in stored.kept:
                kept[name] = stored.kept[source]
        return States(trained, kept, stored.counters, stored.loss_scaler)


def _part(name: str, whole: Trained, mesh: Mesh) -> Trained:
    """This rank's part of a parameter."""
    if is_stacked(name):
        if not name.endswith(".w2"):
            # Gate and up projections lie in one tensor.
            whole = _cut(whole, 1, int(name.endswith(".w3")), 2)
        return _cut(whole, 0, mesh.expert.index, mesh.expert.size)
    dim = split_dimension(name)
    return whole if dim is None else _cut(whole, dim, mesh.tensor.index, mesh.tensor.size)


def _cut(whole: Trained, dim: int, index: int, of: int) -> Trained:
    shape = list(whole.shape)
    shape[dim] //= of
    return whole.changed(shape, lambda values: cut(values, whole.shape, dim, index, of))
