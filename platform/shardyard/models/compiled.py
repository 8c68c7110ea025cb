"""torch.compile block by block: equal layers share one compilation, so the time to start does not grow with depth.

What is compiled is the forward pass of a block, with its activation checkpointing inside: the compiler then computes
again what the recipe says. Hooks of a block, such as those with which ZeRO-3 gathers its weights, stay outside, so
nothing interrupts the compiled code. As in torchtitan (Liang et al. 2024), which compiles each transformer block.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from shardyard.errors import ModelError
from shardyard.models.checkpointing import Function, checkpoint_function
from shardyard.models.outside import CHECKPOINT_FUNCTION, blocks_of
from shardyard.recipe.schema import Model

FOLDER_VARIABLE, THREADS_VARIABLE = "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"
# Compilations of one function: kinds of blocks, each in training and evaluation, with fixed and other shapes.
_MOST_COMPILATIONS = 64


def compiled_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model, which are compiled; empty if it has none."""
    return list(_outermost(model)) or list(blocks_of(model))


def compile_blocks(model: nn.Module, settings: Model, *, varying: bool, gathered: bool = False) -> int:
    """Compile every block of a model at its first call; returns how many there are. A model without repeated blocks is
    compiled as a whole.

    Args:
        settings: the recipe's section, for its activation checkpointing.
        varying: whether rows of training have several lengths: code is then compiled once for all of them, else once
            for each, which is faster. Evaluation has code for all lengths.
        gathered: whether ZeRO-3 gathers blocks, and reduces their gradients when that of their input is there.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_COMPILATIONS)
    blocks = compiled_blocks(model)
    for block in blocks:
        block.forward = _CompiledForward(block.forward, _take_checkpoint(block, settings), varying, gathered)
    if not blocks:
        model.compile(dynamic=varying)
    return len(blocks)


class _CompiledForward:
    """The forward pass of a block: compiled for training and for evaluation; as it is where a text is generated."""

    def __init__(self, plain: Function, recomputing: Function | None, varying: bool, gathered: bool) -> None:
        self._plain, self._gathered = plain, gathered
        trained = plain if recomputing is None else partial(recomputing, plain)
        # A fixed choice for each use, not torch's switch to dynamic shapes at the second one: which code a shape gets
        # would depend on what came before, and a run that is resumed would differ in its last bits.
        self._trained: Function = torch.compile(trained, dynamic=varying)
        self._evaluated: Function = torch.compile(plain, dynamic=True)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if any(isinstance(one, Cache) for one in (*inputs, *named.values())):
            return self._plain(*inputs, **named)  # a cache grows with each token, which would be compiled each time
        if not torch.is_grad_enabled():
            return self._evaluated(*inputs, **named)
        if self._gathered and not any(isinstance(one, Tensor) and one.requires_grad for one in inputs):
            raise ModelError(
                "model.compile at ZeRO stage 3 needs blocks whose input has a gradient, which those after frozen "
                "embeddings lack; set zero.stage to 2, or model.compile to false."
            )
        return self._trained(*inputs, **named)


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from _outermost(child)


def _take_checkpoint(block: nn.Module, settings: Model) -> Function | None:
    """The function that recomputes a block, if one does, which is taken from it."""
    if isinstance(block, GradientCheckpointingLayer) and block.gradient_checkpointing:
        block.gradient_checkpointing = False
        return checkpoint_function(settings)
    if CHECKPOINT_FUNCTION in vars(block):
        found: Function = vars(block)[CHECKPOINT_FUNCTION]
        setattr(block, CHECKPOINT_FUNCTION, _as_it_is)
        return found
    return None


def _as_it_is(function: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    return function(*inputs, **named)


def use_cache(*, ranks_here: int, cores: int) -> Path:
    """Set where torch keeps compiled code, and with how many processes a rank compiles; returns the folder.

    Ranks of a node share the folder: torch writes its files aside, renames them and takes locks. What a user set stays.

    Args:
        ranks_here: ranks of this node.
        cores: that all of them may use.
    """
    os.environ.setdefault(THREADS_VARIABLE, str(max(1, min(32, cores // ranks_here))))
    folder = cache_folder()
    os.environ[FOLDER_VARIABLE] = str(folder)
    return folder


def cache_folder() -> Path:
    """The folder of compiled code: TORCHINDUCTOR_CACHE_DIR, else one for this torch and machine in the user's cache;
    where that cannot be written, such as a home that is read-only, one of this user in the temporary folder."""
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given)
    version = f"torch-{torch.__version__}-{platform.python_version()}-{platform.machine()}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    for folder in (home / "shardyard" / "compiled" / version, _temporary() / version):
        if _is_writable(folder):
            return folder
    return Path(tempfile.mkdtemp(prefix="shardyard-compiled-"))


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"shardyard-compiled-{os.getuid()}"


def _is_writable(folder: Path) -> bool:
    """Whether the folder exists or can be made, is this user's own, as code in it is run, and takes a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid != os.getuid() or folder.parent.stat().st_uid != os.getuid():
            return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
