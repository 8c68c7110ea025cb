"""Every tensor that a rank allocates, seen at each operation of torch: bytes that are alive, and their peak.

torch's CPU allocator keeps no statistics, and resident memory counts freed pages and misses short peaks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# A snapshot is taken again once the peak has grown by this share.
_GROWTH = 0.005


class Allocations(TorchDispatchMode):
    """Counts the storages of one kind of device while it is entered.

    What an operation allocates and frees within itself is not seen, nor is what another thread allocates, except the
    threads of a backward pass.

    live: bytes that are alive now. peak: the most since `restart`.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._device = device
        # By address of the storage: its bytes, and the reference that tells when it is freed.
        self._sizes: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        # Those that an all-gather has filled.
        self._gathered = set[int]()
        self._from = 0
        self._at_peak: Callable[[], object] | None = None

    def restart(self) -> None:
        """Forget the peak."""
        self.peak = self.live

    def at_peak(self, least: int, call: Callable[[], object]) -> None:
        """Call a function whenever the peak exceeds `least` bytes, and again when it has grown noticeably since."""
        self._from, self._at_peak = least, call

    def bytes_of(self, tensors: Iterable[Tensor], seen: set[int]) -> int:
        """Bytes of the storages of some tensors on the device, each counted once; `seen` is extended by them."""
        total = 0
        for tensor in tensors:
            if tensor.device.type != self._device:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                total += storage.nbytes()
        return total

    def gathered_outside(self, seen: set[int]) -> int:
        """Bytes that an all-gather has filled, in storages outside of `seen`, which is extended by them."""
        keys = self._gathered - seen
        seen |= keys
        return self.bytes_in(keys)

    def keys_outside(self, seen: set[int]) -> set[int]:
        """The addresses of storages that are alive and not in `seen`."""
        return self._sizes.keys() - seen

    def bytes_in(self, keys: set[int]) -> int:
        """Bytes that are alive of the storages with these addresses."""
        return sum(self._sizes[key][0] for key in keys if key in self._sizes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.device.type == self._device]
        # Views of a storage that no operation has returned: a copy within a collective of gloo, or a batch.
        new = not any(returned.alias_info is not None for returned in func._schema.returns)
        for tensor in tensors:
            self._count(tensor, new=new)
        if "allgather" in func._schema.name:
            self._gathered |= {tensor.untyped_storage()._cdata for tensor in tensors}
        return out

    def _count(self, tensor: Tensor, *, new: bool) -> None:
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse tensors and the like have none
            return
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known is not None:
            if known[0] == size:
                return
            self.live -= known[0]
            reference = known[1]
        elif not new:
            return
        else:
            reference = weakref.ref(storage, lambda _: self._freed(key))
        self._sizes[key] = (size, reference)
        self.live += size
        if self.live > self.peak:
            self.peak = self.live
            if self._at_peak is not None and self.peak > self._from:
                self._from = int(self.peak * (1 + _GROWTH))
                self._at_peak()

    def _freed(self, key: int) -> None:
        size, _ = self._sizes.pop(key, (0, None))
        self._gathered.discard(key)
        self.live -= size
