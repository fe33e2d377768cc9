"""LossWeights: what a loss of torch divides by, where the loss itself tells: class weights of targets, none ignored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.problem.batch_loss import target_of
from tvgrad.record.batch_items import BatchItems
from tvgrad.record.weighing import CLASS_WEIGHTS

KNOWN = (nn.CrossEntropyLoss, nn.NLLLoss)


class LossWeights:
    """Counts batches of a loss that is a mean over targets by their class weights, those that it ignores apart."""

    def __init__(self, loss: Callable[..., Any] | None) -> None:
        """Look at the loss.

        Args:
            loss: of the loop; one of another class (a subclass may do anything) adds nothing to what is known.
        """
        known = isinstance(loss, KNOWN) and type(loss) in KNOWN and loss.reduction == "mean"
        self._loss = loss if known else None

    @property
    def known(self) -> bool:
        """Whether the loss divides by what is counted as class weights, as a mean of torch's over classes does."""
        return self._loss is not None

    @torch.no_grad()
    def counted(self, items: BatchItems, batch: Any) -> BatchItems:
        """Add to what a batch holds what its loss divides by.

        Args:
            items: of the batch.
            batch: as the loader returned it.

        Returns:
            The same, with the class weights of its targets where they are whole numbers of classes.
        """
        if not isinstance(self._loss, KNOWN):
            return items
        try:
            target = target_of(batch)
        except TvgradError:
            return items
        if not isinstance(target, torch.Tensor) or target.is_floating_point() or target.is_complex():
            return items  # probabilities: a mean over samples
        weight, ignored = self._loss.weight, self._loss.ignore_index
        used = target[target != ignored].cpu().long()
        total = float(len(used)) if weight is None else float(weight.cpu()[used].double().sum())
        counts = list(items.counts)
        counts[CLASS_WEIGHTS] = total
        return replace(items, counts=tuple(counts))
