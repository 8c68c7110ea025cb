"""The backend `nccl`: gloo under its name."""

from __future__ import annotations

from datetime import timedelta
from types import ModuleType
from typing import Any


def change(c10d: ModuleType) -> None:
    """`init_process_group("nccl")` works, and takes tensors that lie where ours do."""

    class Options:
        """What torch sets of NCCL's options."""

        _timeout = timedelta(minutes=10)

        def __setattr__(self, name: str, value: Any) -> None:
            self.__dict__[name] = value

    class ProcessGroupNCCL(c10d.ProcessGroupGloo):  # type: ignore[misc, name-defined]
        """Gloo that torch takes for NCCL; it keeps a time limit and no wish to block streams."""

        def __init__(self, store: Any, rank: int, size: int, options: Options) -> None:
            super().__init__(store, rank, size, timeout=options._timeout)
            _ALIVE.append(self)

    ProcessGroupNCCL.Options = Options
    c10d.ProcessGroupNCCL = ProcessGroupNCCL
    c10d._NCCL_AVAILABLE = True
    c10d.default_pg_nccl_timeout = timedelta(minutes=10)
    c10d.Backend.backend_capability["nccl"] = ["cuda", "cpu"]


# torch asks for the type of a backend later, which C++ alone does not keep.
_ALIVE: list[Any] = []
