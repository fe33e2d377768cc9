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
OF_ELEMENTS = (
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
)
"""Losses whose mean is over all elements."""
FEW = 64
"""So many values of targets that weigh otherwise are told, by which batches that hold them can be looked for."""


class ClassWeights:
    """What the losses of a backward pass have divided by.

    Attributes:
        apart: values of targets that they ignored, or that weigh otherwise than most.
        watched: whether every backward pass so far had a mean of torch's, whose divisor is known.
    """

    def __init__(self) -> None:
        """Start before the first loss."""
        self.apart, self.watched = set[int](), True
        self._seen: dict[bool, float] = {}  # whether the losses were means -> what they divided by, or would have

    def install(self, guard: Callable[[Callable[[], None]], None]) -> None:
        """Watch torch's losses.

        Args:
            guard: runs a function so that its errors are told.
        """
        for name in (*LOSSES, *OF_ELEMENTS):
            setattr(torch.nn.functional, name, self._watched(getattr(torch.nn.functional, name), guard))

    @property
    def facts(self) -> dict[str, Any]:
        """Plain values: apart, in order, and watched."""
        return {"apart": sorted(self.apart), "watched": self.watched}

    def counted(self, items: BatchItems | None) -> BatchItems | None:
        """Add to what a batch holds what its loss has divided by, when a backward pass has gone through it.

        Args:
            items: of the batch; None where batches are not known.

        Returns:
            The same, with the class weights of its targets where its loss has some.
        """
        seen, self._seen = self._seen, {}
        if items is None:
            return None
        self.watched &= True in seen
        if not seen:
            return items
        counts = list(items.counts)
        counts[CLASS_WEIGHTS] = seen.get(True, seen.get(False, 0.0))
        return replace(items, counts=tuple(counts))

    def _watched(self, original: Callable[..., Any], guard: Callable[[Callable[[], None]], None]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def loss(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if not torch.compiler.is_compiling() and getattr(result, "requires_grad", False):
                guard(lambda: self._note(signature.bind(*args, **kwargs).arguments, result))
            return result

        return loss

    @torch.no_grad()
    def _note(self, given: dict[str, Any], result: torch.Tensor) -> None:
        """Count a loss in those backward passes that go through it."""
        mean = given.get("reduction", "mean") == "mean" and given.get("reduce") is not False
        try:
            total = self._divisor(given)
        except RuntimeError:  # inside a transform of torch.func, where numbers cannot be read
            return

        def count(gradient: torch.Tensor) -> None:  # noqa: ARG001
            self._seen[mean] = self._seen.get(mean, 0.0) + total

        result.register_hook(count)

    def _divisor(self, given: dict[str, Any]) -> float:
        weight, target = given.get("weight"), given["target"]
        if target.is_floating_point():  # of a cross-entropy probabilities, a mean over samples
            return float(target.numel())
        ignored = given.get("ignore_index", -100)
        used = target[target != ignored]
        if used.numel() < target.numel():
            self.apart.add(ignored)
        if weight is None:
            return float(used.numel())
        if len(self.apart) < FEW:
            others = (weight != weight.mode().values).nonzero().flatten().tolist()
            self.apart.update(others[:FEW])
        return float(weight[used].double().sum())
