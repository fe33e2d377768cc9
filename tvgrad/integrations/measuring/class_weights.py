"""ClassWeights: the class weights of the targets over which a script's cross-entropy takes its mean.

`cross_entropy(..., weight=w)` divides by the sum of w over the targets that it does not ignore (of ones without w), so
that this sum weighs the batch.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from tvgrad.record.batch_items import BatchItems
from tvgrad.record.weighing import CLASS_WEIGHTS

LOSSES = ("cross_entropy", "nll_loss")
FEW = 64
"""So many values of targets that weigh otherwise are told, by which batches that hold them can be looked for."""


class ClassWeights:
    """What the losses since the last backward pass have divided by.

    Attributes:
        apart: values of targets that they ignored, or that weigh otherwise than most.
    """

    def __init__(self) -> None:
        """Start before the first loss."""
        self.apart = set[int]()
        self._seen: dict[bool, float] = {}  # whether the losses were means -> what they divided by, or would have
        self._last: tuple[BatchItems, BatchItems] | None = None

    def install(self, guard: Callable[[Callable[[], None]], None]) -> None:
        """Watch torch's losses with class weights.

        Args:
            guard: runs a function so that its errors are told.
        """
        for name in LOSSES:
            setattr(torch.nn.functional, name, self._watched(getattr(torch.nn.functional, name), guard))

    def counted(self, items: BatchItems) -> BatchItems:
        """Add to what a batch holds what its loss has divided by.

        Args:
            items: of the batch that a backward pass has gone through.

        Returns:
            The same, with the class weights of its targets where its loss has some.
        """
        seen, self._seen = self._seen, {}
        if seen:
            counts = list(items.counts)
            counts[CLASS_WEIGHTS] = seen.get(True, seen.get(False, 0.0))
            self._last = items, replace(items, counts=tuple(counts))
        # a second backward pass of the same loss has no forward pass of its own
        return self._last[1] if self._last is not None and self._last[0] is items else items

    def _watched(self, original: Callable[..., Any], guard: Callable[[Callable[[], None]], None]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def loss(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if not torch.compiler.is_compiling() and getattr(result, "requires_grad", False):
                guard(lambda: self._note(signature.bind(*args, **kwargs).arguments))
            return result

        return loss

    @torch.no_grad()
    def _note(self, given: dict[str, Any]) -> None:
        weight, target = given.get("weight"), given["target"]
        if target.is_floating_point():
            return
        ignored = given.get("ignore_index", -100)
        used = target[target != ignored]
        total = float(used.numel()) if weight is None else float(weight[used].double().sum())
        mean = given.get("reduction", "mean") == "mean" and given.get("reduce") is not False
        self._seen[mean] = self._seen.get(mean, 0.0) + total
        if used.numel() < target.numel():
            self.apart.add(ignored)
        if weight is not None and len(self.apart) < FEW:
            others = (weight != weight.mode().values).nonzero().flatten().tolist()
            self.apart.update(others[:FEW])
