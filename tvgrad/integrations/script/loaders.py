"""Loaders: watches torch's DataLoaders from outside and tells `Epochs` of batches, ends and dropped iterations."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import dataloader

from tvgrad.integrations.script.epochs import Epochs, Iteration

Guard = Callable[..., None]
DEPTH = 4  # how deep in nested containers a batch's first tensor is looked for


class LoaderWatch:
    """Wraps what the iterators of DataLoaders do, without a change to what they return.

    Attributes:
        fetcher: the thread that fetched the last batch.
    """

    def __init__(self, epochs: Epochs, guard: Guard) -> None:
        """Prepare to watch.

        Args:
            epochs: what is told.
            guard: runs a function where there is something to be watched still, so that no error reaches the script.
        """
        self.fetcher: int | None = None
        self._epochs = epochs
        self._guard = guard
        self._passes: weakref.WeakKeyDictionary[Any, Iteration] = weakref.WeakKeyDictionary()
        self._droppings: dict[int, weakref.ref[Any]] = {}
        self._loaders: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._count = 0

    def install(self) -> None:
        """Wrap the methods of torch's iterators."""
        base = dataloader._BaseDataLoaderIter
        begun, reset, fetched = base.__init__, base._reset, base.__next__
        watch = self

        @functools.wraps(begun)
        def __init__(iterator: Any, loader: Any) -> None:
            begun(iterator, loader)
            watch._guard(lambda: watch._begin(iterator, loader))

        @functools.wraps(reset)
        def _reset(iterator: Any, loader: Any, first_iter: bool = False) -> None:
            reset(iterator, loader, first_iter)
            if not first_iter:
                watch._guard(lambda: watch._begin(iterator, loader))

        @functools.wraps(fetched)
        def __next__(iterator: Any) -> Any:
            try:
                batch = fetched(iterator)
            except StopIteration:
                watch._guard(lambda: watch._exhaust(iterator))
                raise
            watch._guard(lambda: watch._fetch(iterator, batch))
            return batch

        setattr(base, "__init__", __init__)  # noqa: B010 - mypy forbids a plain assignment to a method
        setattr(base, "_reset", _reset)  # noqa: B010
        setattr(base, "__next__", __next__)  # noqa: B010

    def _begin(self, iterator: Any, loader: Any) -> None:
        if loader not in self._loaders:
            self._count += 1
            self._loaders[loader] = self._count
        number = self._loaders[loader]
        self._epochs.begin(number)
        iteration = Iteration(number, _length(loader))
        self._passes[iterator] = iteration
        key = id(iteration)

        def dropped(_: Any) -> None:
            self._droppings.pop(key, None)
            self._guard(lambda: self._epochs.drop(iteration), False)

        self._droppings[key] = weakref.ref(iterator, dropped)

    def _fetch(self, iterator: Any, batch: Any) -> None:
        iteration = self._passes.get(iterator)
        if iteration is None:
            return
        self.fetcher = threading.get_ident()
        tensor = first_tensor(batch)
        if tensor is None:
            self._epochs.fetch(iteration, 0, lambda: False)
            return
        held = weakref.ref(tensor)
        self._epochs.fetch(iteration, len(tensor) if tensor.ndim else 1, lambda: held() is not None)

    def _exhaust(self, iterator: Any) -> None:
        iteration = self._passes.get(iterator)
        if iteration is not None and not iteration.exhausted:
            self._epochs.exhaust(iteration)


def first_tensor(batch: Any, depth: int = DEPTH) -> torch.Tensor | None:
    """Find a batch's first tensor, whose first dimension counts the samples.

    Args:
        batch: what a loader returned.
        depth: how deep containers are searched.

    Returns:
        The tensor, or None where there is none.
    """
    if isinstance(batch, torch.Tensor):
        return batch
    if depth == 0 or isinstance(batch, (str, bytes)):
        return None
    inside = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, Sequence) else ()
    for one in inside:
        found = first_tensor(one, depth - 1)
        if found is not None:
            return found
    return None


def _length(loader: Any) -> int | None:
    # len() of a DataLoader over an iterable data set leaves a mark in the loader, and a warning may follow from it
    if getattr(loader, "_dataset_kind", None) != dataloader._DatasetKind.Map:
        return None
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None
