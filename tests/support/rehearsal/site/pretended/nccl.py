"""The backend `nccl`: gloo under its name."""

from __future__ import annotations

from datetime import timedelta
from types import ModuleType
from typing import Any


def change(c10d: ModuleType) -> None:
    """Make `init_process_group("nccl")` work, with tensors in host memory."""

    class Options:
        """The NCCL options that torch sets."""

        _timeout = timedelta(minutes=10)

        def __setattr__(self, name: str, value: Any) -> None:
            self.__dict__[name] = value

    class ProcessGroupNCCL(c10d.ProcessGroupGloo):  # type: ignore[misc, name-defined]
        """Gloo that torch treats as NCCL; it keeps the timeout and ignores stream blocking."""

        def _add_ephemeral_timeout(self, timeout: timedelta) -> None:
            """torch gives collectives more time while it compiles; gloo's limit here is long enough."""

        def __init__(self, store: Any, rank: int, size: int, options: Options) -> None:
            super().__init__(store, rank, size, timeout=options._timeout)
            _ALIVE.append(self)

    ProcessGroupNCCL.Options = Options
    c10d.ProcessGroupNCCL = ProcessGroupNCCL
    c10d._NCCL_AVAILABLE = True
    c10d.default_pg_nccl_timeout = timedelta(minutes=10)
    c10d.Backend.backend_capability["nccl"] = ["cuda", "cpu"]


# torch later queries the type of a backend, which the C++ object alone does not keep.
_ALIVE: list[Any] = []
