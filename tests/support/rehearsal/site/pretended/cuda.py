"""torch.cuda: the simulated GPUs visible by CUDA_VISIBLE_DEVICES, with streams that are always in order."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import psutil
import torch

from pretended.driver import CAPABILITY, COUNT, MEMORY_BYTES, NAME

_CURRENT = threading.local()
_GENERATORS: dict[int, torch.Generator] = {}
_MOST = {"allocated": 0}
# Counts of uses of GPU-only features: streams, events, pinned copies.
USED: Counter[str] = Counter()


def device_count() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return COUNT
    chosen = [part.strip() for part in visible.split(",") if part.strip()]
    # As in CUDA: the list ends at the first device that does not exist.
    known = 0
    while known < len(chosen) and chosen[known].isdecimal() and int(chosen[known]) < COUNT:
        known += 1
    return known


def index_of(device: Any = None) -> int:
    if isinstance(device, str):
        device = torch.device(device)
    index = device.index if isinstance(device, torch.device) else device
    index = current_device() if index is None else int(index)
    if not 0 <= index < device_count():
        raise RuntimeError("CUDA error: invalid device ordinal")
    return index


def current_device() -> int:
    if device_count() == 0:
        raise RuntimeError("No CUDA GPUs are available")
    return int(getattr(_CURRENT, "index", 0))


def set_device(device: Any) -> None:
    _CURRENT.index = index_of(device)


def get_device_properties(device: Any = None) -> Any:
    index_of(device)
    major, minor = CAPABILITY
    return SimpleNamespace(
        name=NAME, major=major, minor=minor, total_memory=MEMORY_BYTES, multi_processor_count=132, gcnArchName=""
    )


def memory_allocated(device: Any = None) -> int:
    index_of(device)
    allocated = psutil.Process().memory_info().rss
    _MOST["allocated"] = max(_MOST["allocated"], allocated)
    return int(allocated)


def max_memory_allocated(device: Any = None) -> int:
    memory_allocated(device)
    return _MOST["allocated"]


def reset_peak_memory_stats(device: Any = None) -> None:
    index_of(device)
    _MOST["allocated"] = 0


def generator(device: Any = None) -> torch.Generator:
    return _GENERATORS.setdefault(index_of(device), torch.Generator())


def set_rng_state(state: torch.Tensor, device: Any = "cuda") -> None:
    generator(device).set_state(state)


def manual_seed_all(seed: int) -> None:
    for index in range(device_count()):
        generator(index).manual_seed(seed)


class Stream:
    """A stream; its work is done when the call returns."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        USED["streams"] += 1
        self.device_index = index_of(device)
        self.device = torch.device("cuda", self.device_index)
        self.cuda_stream = id(self)

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: Any = None) -> Any:
        event = event or Event()
        event.record(self)
        return event


class Event:
    """An event: a point in time."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.moment: float | None = None

    def record(self, stream: Any = None) -> None:
        USED["events"] += 1
        self.moment = time.perf_counter()

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Event) -> float:
        assert self.moment is not None, "an event that was never recorded"
        assert other.moment is not None, "an event that was never recorded"
        return (other.moment - self.moment) * 1000


@contextlib.contextmanager
def stream(one: Any) -> Any:
    USED["on a stream"] += 1
    yield one


class Device:
    """`with torch.cuda.device(1)`."""

    def __init__(self, device: Any) -> None:
        self.idx = index_of(device)
        self.prev_idx = 0

    def __enter__(self) -> None:
        self.prev_idx = getattr(_CURRENT, "index", 0)
        set_device(self.idx)

    def __exit__(self, *_: object) -> None:
        _CURRENT.index = self.prev_idx


def change() -> None:
    """Patch all of it into torch.cuda."""
    none: Any = lambda *args, **kwargs: None  # noqa: E731
    default: dict[int, Stream] = {}

    def default_stream(device: Any = None) -> Stream:
        if index_of(device) not in default:
            default[index_of(device)] = Stream(device)
        return default[index_of(device)]

    answers: dict[str, Any] = {
        "is_available": lambda: device_count() > 0,
        "device_count": device_count,
        "is_initialized": lambda: True,
        "init": none,
        "_lazy_init": none,
        "_lazy_call": lambda function, **_: function(),
        "current_device": current_device,
        "set_device": set_device,
        "device": Device,
        "get_device_name": lambda device=None: get_device_properties(device).name,
        "get_device_capability": lambda device=None: CAPABILITY if index_of(device) >= 0 else None,
        "get_device_properties": get_device_properties,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or CAPABILITY[0] >= 8,
        "memory_allocated": memory_allocated,
        "max_memory_allocated": max_memory_allocated,
        "memory_reserved": memory_allocated,
        "max_memory_reserved": max_memory_allocated,
        "memory_stats": lambda device=None: {"allocated_bytes.all.peak": max_memory_allocated(device)},
        "mem_get_info": lambda device=None: (MEMORY_BYTES - memory_allocated(device), MEMORY_BYTES),
        "reset_peak_memory_stats": reset_peak_memory_stats,
        "reset_max_memory_allocated": reset_peak_memory_stats,
        "empty_cache": none,
        "ipc_collect": none,
        "synchronize": none,
        "Stream": Stream,
        "Event": Event,
        "stream": stream,
        "set_stream": none,
        "current_stream": default_stream,
        "default_stream": default_stream,
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda device="cuda": generator(device).get_state(),
        "set_rng_state": set_rng_state,
        "manual_seed": lambda seed: generator().manual_seed(seed),
        "manual_seed_all": manual_seed_all,
        "initial_seed": lambda: generator().initial_seed(),
        "utilization": lambda device=None: 42 if index_of(device) >= 0 else 0,
        "device_memory_used": memory_allocated,
        "power_draw": lambda device=None: 250_000 if index_of(device) >= 0 else 0,
        # A driver that does not report it.
        "temperature": _untold,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = none
    torch.cuda.nccl.version = lambda: (2, 28, 9)
    torch.version.cuda = "13.0"


def _untold(device: Any = None) -> int:
    raise RuntimeError("Not Supported")
