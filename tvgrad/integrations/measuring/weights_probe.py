"""WeightsProbe: finds out how a script's batches are weighted in its mean, by giving it a batch whole and in two parts.

The script gets its first batch, then two unequal parts of it, then the whole and the first part in turn. Of what kind
the loss is (a mean over samples, over tokens, a sum) follows from the gradients of its backward passes: only the right
weights make the whole of the parts.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tvgrad.integrations.measuring.gradient_total import reaches, wide
from tvgrad.integrations.measuring.pass_options import BatchWeights, Weighing
from tvgrad.integrations.script.batch_items import COUNTERS, DEPTH, BatchItems, items_of, tensors_of
from tvgrad.numerics.floats import unit_roundoff

PARTS = 3
"""The whole and its two parts."""
ENOUGH = 4
"""Batches whose gradients are compared: those and the whole again."""
TWICE = 3
"""Batches that must follow with the script's own noise: two of them are the same."""
MOST = 512
"""Batches after which the script is told that the loader has no more."""
COORDINATES = 2_000_000
"""About so many coordinates of a gradient are compared."""


class Parts:
    """What a pass over a loader returns in a probe: a batch, two parts of it, then the whole and the first part.

    Steps that accumulate several batches differ in what they hold then.
    """

    def __init__(self) -> None:
        """Start before the first batch."""
        self._given = 0
        self._whole: Any = None
        self._pieces: tuple[Any, Any] | None = None

    def __call__(self, fetch: Callable[[], Any]) -> Any:
        """Return the next batch.

        Args:
            fetch: fetches the loader's own.

        Returns:
            The batch that the script is to have.

        Raises:
            StopIteration: it has had enough of them.
        """
        if self._given == 0:
            self._whole = fetch()
            self._pieces = split(self._whole)
        elif self._given >= MOST:
            raise StopIteration
        place, self._given = self._given, self._given + 1
        first, second = self._pieces or (self._whole, self._whole)
        given = [self._whole, first, second][place] if place < PARTS else [first, self._whole][place % 2]
        return copy.deepcopy(given)  # scripts may change a batch in place


def split(batch: Any) -> tuple[Any, Any] | None:
    """Cut a batch into two unequal parts, the rows with the fewest tokens first.

    Args:
        batch: what a loader returned.

    Returns:
        Both parts, or None where it cannot be cut.
    """
    tensors = tensors_of(batch)
    samples = items_of(batch, tokens=False).samples
    if samples < 2:
        return None
    matrix = next((one for one in reversed(tensors) if one.ndim >= 2 and not one.is_floating_point()), None)
    order = torch.arange(samples)
    if matrix is not None and len(matrix) == samples:
        order = ((matrix != -100) & (matrix != 0)).reshape(samples, -1).sum(1).cpu().argsort(stable=True)
    cut = max(1, samples // 3)
    try:
        return _rows(batch, order[:cut], samples), _rows(batch, order[cut:], samples)
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


class WeightsProbe:
    """Collects the gradients of batches and says how they are weighted.

    Attributes:
        parameters: name -> parameter.
        steps: optimizer steps taken.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Start before the first backward pass.

        Args:
            parameters: name -> parameter, of the model.
        """
        self.parameters = parameters
        self.steps = 0
        self._stride = max(1, sum(p.numel() for p in parameters.values()) // COORDINATES)
        self._found: list[Evidence] = []
        self._noisy_from: int | None = None
        self._aside: dict[str, torch.Tensor] = {}

    @property
    def compared(self) -> bool:
        """Whether enough was seen to find the weights out: from here on the script may have its noise."""
        if self._noisy_from is None and self.steps >= 2 and len(self._closed()) >= ENOUGH:
            self._noisy_from = self.steps
        return self._noisy_from is not None

    @property
    def ready(self) -> bool:
        """Whether enough was seen."""
        return self.compared and len(self._noisy()) >= TWICE

    def before_backward(self) -> None:
        """A backward pass begins: what was accumulated is set aside."""
        grads = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if not any(map(reaches, grads.values())):  # the script has dropped what was accumulated
            self._found = [one for one in self._found if one.step < self.steps]
        self._aside = grads
        for name in grads:
            self.parameters[name].grad = None

    def after_backward(self, batch: int, items: BatchItems | None, scale: float) -> bool:
        """A backward pass has ended.

        Args:
            batch: the number of the batch that it went through.
            items: of that batch.
            scale: the loss scale that its gradient carries.

        Returns:
            Whether it reached the model's parameters.
        """
        fresh = any(p.grad is not None for p in self.parameters.values())
        if fresh and items is not None:
            parts = [
                torch.zeros(p.shape) if p.grad is None else wide(p.grad).cpu() / scale for p in self.parameters.values()
            ]
            gradient = torch.cat([part.reshape(-1)[:: self._stride].double() for part in parts])
            last = self._found[-1] if self._found else None
            if last is not None and (last.batch, last.step) == (batch, self.steps):
                last.gradient += gradient
            else:
                self._found.append(Evidence(batch, self.steps, items.counts, gradient))
        for name, grad in self._aside.items():
            parameter = self.parameters[name]
            parameter.grad = grad if parameter.grad is None else grad.add_(parameter.grad)
        self._aside = {}
        return fresh

    def end_step(self) -> None:
        """An optimizer step consumes the gradients."""
        self.steps += 1

    def weights(self, dtype: torch.dtype) -> BatchWeights:
        """Compare the whole with its parts.

        Args:
            dtype: the narrowest format in which the script computes.

        Returns:
            The weights, confirmed or not.
        """
        noisy = self._noisy()
        before = [one for one in self._closed() if self._noisy_from is None or one.step < self._noisy_from]
        found = weights_of(before, dtype)
        if len(noisy) < TWICE:
            return found
        apart = _distance_of_repeats(noisy, found.weighing, found.counter)
        return replace(found, noise=apart > _rounding(noisy[0], torch.float32))

    def _closed(self) -> list[Evidence]:
        return [one for one in self._found if one.step < self.steps]

    def _noisy(self) -> list[Evidence]:
        return [] if self._noisy_from is None else [one for one in self._closed() if one.step >= self._noisy_from]


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
    for weighing, counter in itertools.product(Weighing, range(len(COUNTERS))):  # by samples before by tokens
        apart = _distance(found, weighing, counter)
        if apart <= rounding:
            return BatchWeights(weighing, counter, confirmed=True)
        best = min(best, apart)
    if best == math.inf:
        return BatchWeights(reason="the gradient of its first batch is zero or not finite")
    return BatchWeights(
        reason=f"a batch's gradient is no weighted mean of those of its parts (off by {best:.1g} of its size at "
        "best), as with batch normalisation, a loss over pairs, or noise that is no dropout layer's"
    )


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
    return max(apart, _distance_of_repeats(found, weighing, counter))


def _distance_of_repeats(found: Sequence[Evidence], weighing: Weighing, counter: int) -> float:
    """The largest relative distance of a batch's gradient from what it was when the script had the batch first."""
    first: dict[tuple[float, ...], torch.Tensor] = {}
    worst = 0.0
    for one in found:
        gradient = _summed(found, one, weighing, counter)
        before = first.setdefault(one.counts, gradient)
        worst = max(worst, float((gradient - before).norm()) / (float(before.norm()) or 1.0))
    return worst


def _summed(found: Sequence[Evidence], one: Evidence, weighing: Weighing, counter: int) -> torch.Tensor:
    """The sum over the batch's items, if the weighing is right."""
    of_step = sum(other.counts[counter] for other in found if other.step == one.step)
    factor = {Weighing.MEAN: one.counts[counter], Weighing.STEP: of_step, Weighing.SUM: 1.0}
    return one.gradient * factor[weighing]
