"""batch_weights: how the batches of a loss that is a mean are weighted in the mean over all data.

Of what kind the loss is (a mean over samples, over tokens, a sum) follows from the gradients of a batch and of its two
parts: only the right weights make the whole of the parts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tvgrad.numerics.floats import unit_roundoff
from tvgrad.record.batch_items import COUNTERS, DEPTH, TOKENS, items_of, tensors_of
from tvgrad.record.weighing import CLASS_WEIGHTS, BatchWeights, Weighing

PARTS = 3
"""The whole and its two parts."""
NAMED_FIRST = (*(one for one in range(len(COUNTERS)) if one != CLASS_WEIGHTS), CLASS_WEIGHTS)
"""Of counters that weigh alike, samples are named before tokens, and class weights last."""
COORDINATES = 2_000_000
"""About so many coordinates of a gradient are compared."""


@dataclass
class Evidence:
    """The gradient of one batch, as the script accumulated it.

    Attributes:
        batch: its number.
        step: the optimizer step that consumed it.
        counts: of the batch.
        gradient: some of its coordinates, float64.
    """

    batch: int
    step: int
    counts: tuple[float, ...]
    gradient: torch.Tensor


def some_coordinates(gradient: Iterable[torch.Tensor], about: int = COORDINATES) -> torch.Tensor:
    """Pick those coordinates of a gradient that are compared.

    Args:
        gradient: its tensors, in an order that is always the same.
        about: how many of them.

    Returns:
        About so many of them in one float64 vector on the CPU, or all where there are fewer.
    """
    parts = list(gradient)
    stride = max(1, sum(part.numel() for part in parts) // about)
    return torch.cat([part.reshape(-1)[::stride].double().cpu() for part in parts])


def split(batch: Any, order: Sequence[int] | None = None) -> tuple[Any, Any] | None:
    """Cut a batch into two unequal parts, the rows with the fewest tokens first.

    Args:
        batch: what a loader returned.
        order: of its rows, instead of that.

    Returns:
        Both parts, or None where it cannot be cut.
    """
    tensors = tensors_of(batch)
    samples = items_of(batch, tokens=False).samples
    if samples < 2:
        return None
    rows = torch.arange(samples) if order is None else torch.tensor(order)
    matrix = next((one for one in reversed(tensors) if one.ndim >= 2 and not one.is_floating_point()), None)
    if order is None and matrix is not None and len(matrix) == samples:
        rows = ((matrix != -100) & (matrix != 0)).reshape(samples, -1).sum(1).cpu().argsort(stable=True)
    cut = max(1, samples // 3)
    try:
        return _rows(batch, rows[:cut], samples), _rows(batch, rows[cut:], samples)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return None


def _rows(content: Any, rows: torch.Tensor, samples: int, depth: int = DEPTH) -> Any:
    """Some rows of everything in a batch that has a row for each sample."""
    if isinstance(content, torch.Tensor):
        per_sample = content.ndim > 0 and len(content) == samples
        return content[rows.to(content.device)] if per_sample else content
    if depth == 0 or isinstance(content, (str, bytes)):
        return content
    if isinstance(content, Mapping):
        made: Any = copy.copy(content)
        for key, value in content.items():
            made[key] = _rows(value, rows, samples, depth - 1)
        return made
    if isinstance(content, Sequence):
        if len(content) == samples and not tensors_of(content):
            return type(content)(content[row] for row in rows.tolist())  # type: ignore[call-arg]
        parts = [_rows(one, rows, samples, depth - 1) for one in content]
        return type(content)(*parts) if hasattr(content, "_fields") else type(content)(parts)  # type: ignore[call-arg]
    return content


def weights_of(found: Sequence[Evidence], dtype: torch.dtype) -> BatchWeights:
    """Find the weights under which the gradient of a batch is that of its two parts together.

    Args:
        found: gradients of a batch, of two parts of it, and perhaps of the batch again.
        dtype: the narrowest format in which they were computed.

    Returns:
        The weights; by the number of samples, unconfirmed, where none fit.
    """
    if len(found) < PARTS:
        return BatchWeights(reason="its first batch could not be given to it in two parts")
    whole, first, second = found[:PARTS]
    if whole.counts[0] != first.counts[0] + second.counts[0] or not first.counts[0]:
        return BatchWeights(reason="its first batch could not be cut into two parts")
    rounding, best = _rounding(whole, dtype), math.inf
    for weighing in Weighing:
        distances = {counter: _distance(found, weighing, counter) for counter in NAMED_FIRST}
        fitting = [counter for counter, apart in distances.items() if apart <= rounding]
        if fitting:
            others = () if weighing is Weighing.SUM else tuple(fitting[1:])
            likely = next((one for one in _likely(found) if one in others), None)
            return BatchWeights(weighing, fitting[0], confirmed=True, others=others, likely=likely)
        best = min(best, *distances.values())
    if best == math.inf:
        return BatchWeights(reason="the gradient of its first batch is zero or not finite")
    return BatchWeights(
        reason=f"a batch's gradient is no weighted mean of those of its parts (off by {best:.1g} of its size at "
        "best), as with class weights, batch normalisation, a loss over pairs, or noise that is no dropout layer's"
    )


def _likely(found: Sequence[Evidence]) -> tuple[int, ...]:
    """The counters that are right most often: what a loss of torch has divided by, or else tokens."""
    seen = any(one.counts[CLASS_WEIGHTS] != one.counts[0] for one in found)
    tokens = any(one.counts[TOKENS] != one.counts[0] for one in found)
    return (TOKENS,) if tokens and not seen else (CLASS_WEIGHTS,)


def _rounding(one: Evidence, dtype: torch.dtype) -> float:
    """What rounding explains, relative: as for a recipe, a sum of n terms errs by about sqrt(n) u."""
    terms = one.gradient.numel() + one.counts[0]
    return 8 * unit_roundoff(dtype) * (terms**0.5 if dtype.itemsize >= 4 else 1.0)


def _distance(found: Sequence[Evidence], weighing: Weighing, counter: int) -> float:
    """The largest relative distance between the whole and its parts, or the whole another time."""
    whole, first, second = (_summed(found, one, weighing, counter) for one in found[:PARTS])
    size = max(float(whole.norm()), float(first.norm()) + float(second.norm()))
    if not 0 < size < math.inf:
        return math.inf
    apart = float((whole - first - second).norm()) / size
    # The second part comes once; of a batch of two samples it has the counts of the first.
    return max(apart, _distance_of_repeats(found, weighing, counter, once=PARTS - 1))


def _distance_of_repeats(found: Sequence[Evidence], weighing: Weighing, counter: int, once: int | None = None) -> float:
    """The largest relative distance of a batch's gradient from what it was when the script had the batch first."""
    first: dict[tuple[float, ...], torch.Tensor] = {}
    worst = 0.0
    for place, one in enumerate(found):
        if place == once:
            continue
        gradient = _summed(found, one, weighing, counter)
        before = first.setdefault(one.counts, gradient)
        worst = max(worst, float((gradient - before).norm()) / (float(before.norm()) or 1.0))
    return worst


def _summed(found: Sequence[Evidence], one: Evidence, weighing: Weighing, counter: int) -> torch.Tensor:
    """The sum over the batch's items, if the weighing is right."""
    of_step = sum(other.counts[counter] for other in found if other.step == one.step)
    factor = {Weighing.MEAN: one.counts[counter], Weighing.STEP: of_step, Weighing.SUM: 1.0}
    return one.gradient * factor[weighing]


def repeats_differ(found: Sequence[Evidence], weights: BatchWeights) -> bool:
    """Tell whether the same batch has given another gradient another time.

    Args:
        found: gradients of batches, some of them the same.
        weights: how batches are weighted.

    Returns:
        Whether they are apart by more than rounding in float32.
    """
    return _distance_of_repeats(found, weights.weighing, weights.counter) > _rounding(found[0], torch.float32)
