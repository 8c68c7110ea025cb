"""The operations on files are built without CUDA's toolkit, also where there is a GPU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from deepspeed.ops.op_builder import async_io
from deepspeed.ops.op_builder.builder import OpBuilder
from deepspeed.ops.op_builder.cpu import async_io as on_cpu
from deepspeed.ops.op_builder.pin_memory import PinMemoryBuilder

from shardyard.engine.offload.quirks import load_operations


def test_deepspeed_takes_what_was_loaded_instead_of_its_build_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    built, operations = [], ModuleType("async_io")
    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})
    monkeypatch.setattr(PinMemoryBuilder, "load", lambda self, verbose=False: None)

    def jit_load(builder: Any, verbose: bool) -> ModuleType:
        built.append(type(builder))
        OpBuilder._loaded_ops[builder.name] = operations
        return operations

    monkeypatch.setattr(OpBuilder, "jit_load", jit_load)
    load_operations()
    assert async_io.AsyncIOBuilder().load() is operations
    assert built == [on_cpu.AsyncIOBuilder]


def test_both_builds_are_of_the_same_sources() -> None:
    assert async_io.AsyncIOBuilder().sources() == on_cpu.AsyncIOBuilder().sources()
