"""decision: between counters that weighed the batch that was looked at alike, and weigh those of a pass otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from tvgrad.record.batch_items import COUNTERS
from tvgrad.record.weighing import BatchWeights

Pass = TypeVar("Pass")


def decided(
    weights: BatchWeights,
    first: Pass,
    unlike_of: Callable[[Pass], Sequence[int]],
    probed: Callable[[tuple[int, ...]], BatchWeights],
    passed: Callable[[BatchWeights], Pass],
) -> tuple[BatchWeights, Pass]:
    """Decide by which counter batches are weighted, from a batch that tells them apart.

    Args:
        weights: how batches are weighted, by the batch that was looked at.
        first: a pass, weighted by `weights.used`.
        unlike_of: the counters that weigh the batches of a pass otherwise.
        probed: the weights by a batch that tells counters from the first of them, where there is one.
        passed: makes a pass with other weights.

    Returns:
        The weights, not confirmed where no batch told; the pass, another one where the weights are others.
    """
    unlike = [one for one in weights.fitting if one in unlike_of(first)]
    if not weights.confirmed or not unlike:
        return weights, first
    found = probed((weights.used, *unlike))
    told = found.confirmed and found.weighing is weights.weighing
    right = [one for one in weights.fitting if told and one in found.fitting]
    if right and not set(right) & set(unlike):
        return weights.by(right), first
    weights_of_first = weights.by([one for one in weights.fitting if one not in unlike])
    if right and set(right) <= set(unlike):
        others = weights.by(right)
        again = passed(others)
        if not set(right) & set(unlike_of(again)):
            return others, again
    names = " and ".join(COUNTERS[one] for one in (weights_of_first.counter, unlike[0]))
    reason = f"{names} weigh its batches differently, and no batch told which of them its loss goes by"
    return replace(weights_of_first, confirmed=False, reason=reason), first
