"""How many bytes of tensors a piece of work holds at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveTensors(TorchDispatchMode):
    """Counts the memory behind the tensors that operations return, as long as it is in use."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        self._live = {key: one for key, one in self._live.items() if not one[0].expired()}
        for storage in _storages(made):
            if storage._cdata not in given:  # a view of what there was before is no new memory
                self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, sum(size for _, size in self._live.values()))
        return made


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    for value in tree_leaves(values):
        if isinstance(value, torch.Tensor):
            yield value.untyped_storage()


def peak_bytes(work: Callable[[], object]) -> int:
    """Watch a piece of work.

    Args:
        work: what to do.

    Returns:
        The most bytes that tensors made by it held at one time, what it returns included. What an operation takes for
        itself, as a decomposition does, and the memory of NumPy are not seen.
    """
    with _LiveTensors() as watched:
        kept = work()
        del kept
    return watched.most
