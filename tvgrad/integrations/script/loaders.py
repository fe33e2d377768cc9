"""Loaders: watches torch's DataLoaders from outside and tells `Epochs` of batches, ends and dropped iterations."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

from torch.utils.data import dataloader

from tvgrad.integrations.script.epochs import CannotTell, Epochs
from tvgrad.integrations.script.iteration import Iteration
from tvgrad.record.batch_items import items_of, tensors_of
from tvgrad.record.draws import Draws

Guard = Callable[..., None]
Substitute = Callable[[Callable[[], Any]], Any]
"""Gets a function that fetches the next batch, and returns what the script is to have instead."""


class LoaderWatch:
    """Wraps what the iterators of DataLoaders do, without a change to what they return."""

    def __init__(
        self, epochs: Epochs, guard: Guard, tokens: bool = False, parts: Callable[[Any], Substitute] | None = None
    ) -> None:
        """Prepare to watch.

        Args:
            epochs: what is told.
            guard: runs a function where there is something to be watched still, so that no error reaches the script.
            tokens: count the tokens of batches too, and samples that are drawn twice.
            parts: makes, for each pass over a loader, what gives the script other batches than those fetched.
        """
        self._fetcher: int | None = None  # the thread that fetched the last batch
        self._tokens = tokens
        self._parts = parts
        self._substitutes: weakref.WeakKeyDictionary[Any, Substitute] = weakref.WeakKeyDictionary()
        self._epochs = epochs
        self._guard = guard
        self._passes: weakref.WeakKeyDictionary[Any, Iteration] = weakref.WeakKeyDictionary()
        self._draws: weakref.WeakKeyDictionary[Any, Draws] = weakref.WeakKeyDictionary()
        self._droppings: dict[int, weakref.ref[Any]] = {}
        self._loaders: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._count = 0

    def install(self) -> None:
        """Wrap the methods of torch's iterators."""
        base = dataloader._BaseDataLoaderIter
        begun, reset, fetched = base.__init__, base._reset, base.__next__
        drew: Callable[[Any], Any] = base._next_index
        watch = self

        @functools.wraps(begun)
        def __init__(iterator: Any, loader: Any) -> None:
            begun(iterator, loader)
            watch._guard(lambda: watch._begin(iterator, loader))

        @functools.wraps(reset)
        def _reset(iterator: Any, loader: Any, first_iter: bool = False) -> None:
            if not first_iter:  # workers are given the numbers of samples before the first batch comes
                watch._draws[iterator] = Draws()
            reset(iterator, loader, first_iter)
            if not first_iter:
                watch._guard(lambda: watch._begin(iterator, loader))

        @functools.wraps(fetched)
        def __next__(iterator: Any) -> Any:
            try:
                batch = watch._next(iterator, fetched)
            except StopIteration:
                watch._guard(lambda: watch._exhaust(iterator))
                raise
            watch._guard(lambda: watch._fetch(iterator, batch))
            return batch

        @functools.wraps(drew)
        def _next_index(iterator: Any) -> Any:
            drawn = drew(iterator)
            watch._guard(lambda: watch._draws.setdefault(iterator, Draws()).add(drawn))
            return drawn

        if self._tokens:
            setattr(base, "_next_index", _next_index)  # noqa: B010
        setattr(base, "__init__", __init__)  # noqa: B010 - mypy forbids a plain assignment to a method
        setattr(base, "_reset", _reset)  # noqa: B010
        setattr(base, "__next__", __next__)  # noqa: B010

    def require_own_thread(self) -> None:
        """Refuse batches that another thread fetches, where loaders tell epochs.

        Raises:
            CannotTell: one does.
        """
        if self._epochs.telling and self._fetcher is not None and self._fetcher != threading.get_ident():
            raise CannotTell("another thread fetches the batches ahead of the steps")

    def _next(self, iterator: Any, fetched: Callable[[Any], Any]) -> Any:
        substitute = self._substitutes.get(iterator)
        return fetched(iterator) if substitute is None else substitute(lambda: fetched(iterator))

    def _begin(self, iterator: Any, loader: Any) -> None:
        if loader not in self._loaders:
            self._count += 1
            self._loaders[loader] = self._count
        number = self._loaders[loader]
        self._epochs.begin(number)
        iteration = Iteration(number, _length(loader), data=_size_of_data(loader))
        iteration.draws = self._draws.setdefault(iterator, iteration.draws)
        self._passes[iterator] = iteration
        if self._parts is not None:
            self._substitutes[iterator] = self._parts(loader)
        key = id(iteration)

        def dropped(_: Any) -> None:
            self._droppings.pop(key, None)
            self._guard(lambda: self._epochs.drop(iteration), False)

        self._droppings[key] = weakref.ref(iterator, dropped)

    def _fetch(self, iterator: Any, batch: Any) -> None:
        iteration = self._passes.get(iterator)
        if iteration is None:
            return
        self._fetcher = threading.get_ident()
        tensors, items = tensors_of(batch), items_of(batch, self._tokens)
        if not tensors:
            self._epochs.fetch(iteration, 0, lambda: False)
            return
        held = weakref.ref(tensors[0])
        self._epochs.fetch(iteration, items.samples, lambda: held() is not None, items)

    def _exhaust(self, iterator: Any) -> None:
        iteration = self._passes.get(iterator)
        if iteration is not None and not iteration.exhausted:
            self._epochs.exhaust(iteration)


def _length(loader: Any) -> int | None:
    # len() of a DataLoader over an iterable data set leaves a mark in the loader, and a warning may follow from it
    if getattr(loader, "_dataset_kind", None) != dataloader._DatasetKind.Map:
        return None
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _size_of_data(loader: Any) -> int | None:
    if getattr(loader, "_dataset_kind", None) != dataloader._DatasetKind.Map:
        return None
    try:
        return len(loader.dataset)
    except (TypeError, NotImplementedError, AttributeError):
        return None
