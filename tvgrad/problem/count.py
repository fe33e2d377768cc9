"""Count: is the loss of a batch the mean over its samples with the weights that `count` gives them?

A full-batch gradient is put together from chunks, each weighted by its count. A count that is wrong (class weights,
ignored tokens) makes another vector, and the values alone do not show it: with a head of zeros every sample has the
same loss. So gradients are compared, of a few samples that hold every class and masked targets, at theta_0 and at
perturbed weights, for several unequal groupings, and in float64 where the model can be cast.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tvgrad.errors import TvgradError, UnsupportedModel
from tvgrad.numerics.floats import unit_roundoff
from tvgrad.numerics.precision import seeded
from tvgrad.problem.batch_loss import BatchLoss, target_of
from tvgrad.problem.perturbed import nearby, perturbed
from tvgrad.problem.samples import Batch, Samples
from tvgrad.problem.sketch import sketch

CLASSES = 16
"""At most so many classes, the rarest first, are looked for among the samples."""

SAMPLES = 24
SCANNED = 128
"""Samples of a data set without tensors whose targets are read."""

WIDEST = 30_000_000
"""Parameters up to which a float64 copy is made."""

FEWEST_CLASSES, FEWEST_SAMPLES = 3, 6
"""The same numbers for wider models whose samples are sequences: a few of them take as long as a step of training."""

LEAST_COMPARED = 1_000_000
"""Parameters of a wider model whose gradients are compared, from the last one backwards: a wrong weight of a batch
shows in every part of its gradient, and the others would take as long as the steps of a training."""

PERTURBATION = 0.1
TOLERANCE = 5e-7
"""Of a float64 comparison: over the rounding of a count that was summed in float32."""

FEWEST_DRAWN = 32
MOST_DRAWN = 256
"""Random samples that are compared at two chunk sizes: a sixteenth of the data between these."""

CLASS_WEIGHTED = (nn.CrossEntropyLoss, nn.NLLLoss)

Grouping = list[list[int]]
"""Groups of positions, each a batch."""


def check_count(batch_loss: BatchLoss, samples: Samples, device: torch.device) -> None:
    """Compare gradients of a batch with their recombination from unequal groups.

    Args:
        batch_loss: model, loss and count, on `device`.
        samples: the data.
        device: where to run.

    Raises:
        UnsupportedModel: the count does not add up, or is not the weight of a batch in the mean, or the gradient is
            not finite.
    """
    classes = _classes(batch_loss, samples)
    _refuse_unweighed_classes(batch_loss, samples, classes)
    few = _trained(batch_loss) > WIDEST and _sequences(samples)
    most = (FEWEST_CLASSES, FEWEST_SAMPLES) if few else (CLASSES, SAMPLES)
    chosen = samples.subset(_chosen(classes, len(samples), *most))
    if len(chosen) < 2:
        return
    count = _Count(batch_loss, chosen, device)
    for grouping in _groupings(len(chosen)):
        count.check_sum(grouping)
    whole = [[list(range(len(chosen)))]]
    worst = _compared(count, _groupings(len(chosen)), whole, amounts=(0.0, PERTURBATION))
    if math.isnan(worst) and math.isnan(_compared(count, whole, whole, amounts=(0.0, PERTURBATION))):
        raise UnsupportedModel(
            "the gradient of a batch is not finite at the pretrained weights, or next to them: look for a root, a "
            "logarithm or a quotient at 0, and for numbers that overflow, in model, loss and data"
        )
    if worst != 0:
        size = "that of a part is not finite" if math.isnan(worst) else f"off by {worst:.2g} of their size"
        raise UnsupportedModel(
            f"the gradient of a batch is not the mean of the gradients of its parts weighted by "
            f"{'count' if batch_loss.count else 'samples'} ({size}): {_remedy(batch_loss)}"
        )


def check_chunks(batch_loss: BatchLoss, samples: Samples, device: torch.device, chunk_size: int) -> None:
    """Compare the gradient of random samples at two chunk sizes, before one is used for all of the data.

    `check_count` has compared groups of a few samples; what shows in large batches only, or in samples that it did not
    choose, shows here.

    Args:
        batch_loss: model, loss and count, on `device`.
        samples: the data.
        device: where to run.
        chunk_size: samples that are evaluated at once.

    Raises:
        UnsupportedModel: the two gradients differ by more than rounding.
    """
    if len(samples) <= SAMPLES or chunk_size == 1:
        return  # all of them have been compared, or chunks are samples
    size = min(len(samples), max(FEWEST_DRAWN, min(MOST_DRAWN, len(samples) // 16)))
    drawn = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:size]
    larger = min(size, chunk_size)  # more may not fit the memory
    smaller = max(1, 2 * larger // 5)
    groups = [
        [list(range(start, min(start + step, size))) for start in range(0, size, step)] for step in (larger, smaller)
    ]
    count = _Count(batch_loss, samples.subset(drawn), device)
    if not any(batch_loss.weight(count.batch(group)) for group in groups[0]):
        return  # nothing but masked targets was drawn
    worst = _compared(count, groups[:1], groups[1:], amounts=(0.0,))
    if worst > 0:
        raise UnsupportedModel(
            f"the gradient of {size} random samples differs by {worst:.2g} of its size between chunks of {larger} and "
            f"of {smaller} samples, which is no rounding: either count is wrong, or the model takes statistics over "
            f"its batch, or its forward depends on the batch in another way; {_remedy(batch_loss)}"
        )


def _compared(count: _Count, left: Sequence[Grouping], right: Sequence[Grouping], amounts: Sequence[float]) -> float:
    """The largest deviation that rounding does not explain, in float64 where all parts can be cast."""
    attempts = [count]
    small = sum(parameter.numel() for parameter in count.batch_loss.parameters()) <= WIDEST
    if small and not count.batch_loss.spread:
        # A module that cannot be copied; of those that fully_shard has made PyTorch asserts it.
        with contextlib.suppress(RuntimeError, TypeError, AssertionError):
            wide = copy.deepcopy(count.batch_loss).double()
            attempts.insert(0, _Count(wide, count.samples.with_dtype(torch.float64), count.device, own=True))
    for attempt in attempts:
        with contextlib.suppress(RuntimeError, TypeError, ValueError, NotImplementedError):
            return max(attempt.deviation(left, right, amount) for amount in amounts)
    return 0.0  # it has no gradient that could be wrong: whoever asks for one is told why


@dataclass(frozen=True)
class _Mean:
    """The mean loss over groups of samples and its gradient, with the mean size of the groups' own."""

    value: float
    gradient: torch.Tensor  # flat, float64: the sketch of a large one
    value_size: float
    gradient_size: float
    dtype: torch.dtype  # of the loss

    def distance(self, other: _Mean) -> tuple[float, float]:
        """How far apart two values and two gradients are, relative to the larger of their parts."""
        value, gradient = abs(self.value - other.value), float((self.gradient - other.gradient).norm())
        return (
            value / max(self.value_size, other.value_size) if value else 0.0,
            gradient / max(self.gradient_size, other.gradient_size) if gradient else 0.0,
        )


@dataclass(frozen=True)
class _Count:
    """Some samples, and the mean gradient that groups of them make."""

    batch_loss: BatchLoss
    samples: Samples
    device: torch.device
    own: bool = False  # whether its weights may be moved
    read: dict[tuple[int, ...], Batch] = field(default_factory=dict)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some of the samples as one batch, read once: a data set may decode files."""
        key = tuple(indices)
        if key not in self.read:
            self.read[key] = self.samples.subset(list(key)).batch(0, len(key), self.device)
        return self.read[key]

    @property
    def compared(self) -> int:
        """Numbers in a gradient."""
        parameters = dict(self.batch_loss.named_parameters())
        return sum(parameters[name].numel() for name in _compared_names(self.batch_loss))

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.batch_loss.model.parameters() if p.is_floating_point())

    def check_sum(self, groups: Grouping) -> None:
        """A count must add up: the weight of a batch is the sum of its parts'."""
        whole = self.batch_loss.weight(self.batch(range(len(self.samples))))
        total = sum(self.batch_loss.weight(self.batch(group)) for group in groups)
        if total == 0 or abs(whole - total) > 1e-6 * total:
            raise UnsupportedModel(
                f"count(batch) gives {whole:g} for a batch and {total:g} for its parts: a count must add up"
            )

    def deviation(self, left: Sequence[Grouping], right: Sequence[Grouping], amount: float) -> float:
        """Largest distance between the means of two ways to group, 0 where rounding explains it."""
        weights = perturbed(self.batch_loss, amount, self.own)
        others = [self.mean(groups, weights) for groups in right]
        if amount and not all(bool(torch.isfinite(other.gradient).all()) for other in others):
            return 0.0  # a model need not have a loss there
        return max(self._unexplained(groups, weights, others) for groups in left)

    def _unexplained(self, groups: Grouping, weights: dict[str, torch.Tensor], others: Sequence[_Mean]) -> float:
        mean = self.mean(groups, weights)
        operations = self.compared + len(self.samples)
        # A dot product of n terms errs by about sqrt(n) u; a count may have been summed in float32.
        rounding = 8 * unit_roundoff(self.dtype) * operations**0.5
        tolerance = max(TOLERANCE, rounding, *(8 * unit_roundoff(one.dtype) for one in (mean, *others) if _half(one)))
        worst = 0.0
        moved: tuple[float, float] | None = None
        for other in others:
            distances = mean.distance(other)
            if all(distance <= tolerance for distance in distances):
                continue
            # What rounding does to this gradient is what a few roundings of the weights do: gates of a ReLU may open
            # or close, and of a loss that is fitted exactly nothing but rounding is left.
            moved = moved or self._sensitivity(mean, groups, weights)
            for distance, change in zip(distances, moved, strict=True):
                if not distance <= max(tolerance, 4 * change):
                    worst = max(worst, distance) if distance == distance else math.nan
        return worst

    def _sensitivity(self, mean: _Mean, groups: Grouping, weights: dict[str, torch.Tensor]) -> tuple[float, float]:
        """How far a mean moves when its weights move by a few units of rounding, up and down."""
        found = []
        for sign in (1, -1):
            found.append(mean.distance(self.mean(groups, nearby(weights, sign))))
        return max(one[0] for one in found), max(one[1] for one in found)

    def mean(self, groups: Grouping, weights: dict[str, torch.Tensor]) -> _Mean:
        """The mean over groups, each weighted by its count."""
        total, mass, sizes = None, 0.0, [0.0, 0.0]
        dtype = self.dtype
        for group in groups:
            weight = self.batch_loss.weight(self.batch(group))
            if weight == 0:  # its mean may be undefined (0/0); it contributes nothing
                continue
            part, dtype = self._gradient(group, weights)
            total = weight * part if total is None else total + weight * part
            sizes = [sizes[0] + weight * abs(float(part[0])), sizes[1] + weight * float(part[1:].norm())]
            mass += weight
        assert total is not None  # check_sum refuses samples without weight
        return _Mean(float(total[0]) / mass, total[1:] / mass, sizes[0] / mass, sizes[1] / mass, dtype)

    def _gradient(self, group: Sequence[int], weights: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.dtype]:
        """The value and the gradient of one group's mean loss, as one float64 vector, and the loss's dtype."""
        names = _compared_names(self.batch_loss)
        with seeded(0, self.device), torch.enable_grad():
            value, gradients = self.batch_loss.derivative(weights, names, self.batch(group))
        return torch.cat([value.reshape(-1).double().cpu(), sketch(gradients)]), value.dtype


def _compared_names(batch_loss: BatchLoss) -> list[str]:
    """The parameters whose gradients are compared: all trainable ones, or the last ones of a wide model."""
    trainable = {name: p.numel() for name, p in batch_loss.named_parameters() if p.requires_grad}
    if _trained(batch_loss) <= WIDEST:
        return sorted(trainable)
    kept, size = [], 0
    for name, numel in reversed(trainable.items()):
        kept.append(name)
        size += numel
        if size >= LEAST_COMPARED:
            break
    return sorted(kept)


def _trained(batch_loss: BatchLoss) -> int:
    return sum(parameter.numel() for parameter in batch_loss.parameters() if parameter.requires_grad)


def _sequences(samples: Samples) -> bool:
    """Whether a sample has a target for each of its tokens."""
    try:
        return torch.as_tensor(target_of(samples.batch(0, 1))).ndim > 1
    except (TvgradError, TypeError, ValueError, RuntimeError):
        return False


def _half(mean: _Mean) -> bool:
    return mean.dtype in {torch.bfloat16, torch.float16}


def _groupings(size: int) -> list[Grouping]:
    """Unequal groups of positions; the samples are sorted by class, so that groups differ in their classes."""
    third = max(1, size // 3)
    return [
        [list(range(third)), list(range(third, size))],
        [[0], list(range(1, size))],
        [list(range(0, size, 3)), [i for i in range(size) if i % 3]],
        [list(range(size - 1)), [size - 1]],
    ]


def _classes(batch_loss: BatchLoss, samples: Samples) -> torch.Tensor | None:
    """A number for each scanned sample that tells samples of different weight apart, or None; shape (positions, 2)."""
    positions = torch.arange(len(samples))  # on the CPU, whatever the data is on
    if not samples.in_memory and len(samples) > SCANNED:
        positions = torch.linspace(0, len(samples) - 1, SCANNED).long()
    try:
        found = [target_of(batch) for batch in samples.subset(positions).chunks(4096)]
        targets = torch.cat([torch.as_tensor(target).cpu() for target in found])
    except (TvgradError, TypeError, ValueError, RuntimeError):
        return None
    return torch.stack([positions.double(), _weight_keys(batch_loss.loss, targets)], dim=1)


def _weight_keys(loss: Any, targets: torch.Tensor) -> torch.Tensor:
    """A number for each target, different where the weight of its sample may be."""
    flat = targets.reshape(len(targets), -1)
    if targets.is_floating_point() or targets.is_complex():
        return flat.double().nan_to_num().sum(1)
    masked = (flat < 0) | (flat == getattr(loss, "ignore_index", -1))
    weight = getattr(loss, "weight", None)
    if isinstance(loss, CLASS_WEIGHTED) and weight is not None and int(flat.masked_fill(masked, 0).max()) < len(weight):
        weights: torch.Tensor = weight.detach().double().cpu()[flat.masked_fill(masked, 0).long()]
        return weights.masked_fill(masked, 0.0).sum(1)
    if targets.ndim > 1:  # tokens or pixels: how many are masked is what a weight would hang on
        return masked.sum(1).double() + flat.double().mean(1) * 1e-6
    return flat[:, 0].double()


def _chosen(classes: torch.Tensor | None, size: int, most_classes: int, most: int) -> list[int]:
    """Positions of a few samples from all over the data, every class among them, sorted by class."""
    spread = [index * (size - 1) // max(1, min(most, size) - 1) for index in range(min(most, size))]
    if classes is None:
        return sorted(set(spread))
    values, inverse, counts = classes[:, 1].unique(return_inverse=True, return_counts=True)
    wanted: dict[int, float] = {}
    if len(values) <= 4 * most_classes:
        order = counts.argsort()[:most_classes].tolist()
    else:  # many different values: the extremes and what lies between
        order = torch.linspace(0, len(values) - 1, most_classes).long().tolist()
    for one in order:
        members = (inverse == one).nonzero().flatten()
        for member in members[: 2 if len(values) <= most // 3 else 1].tolist():
            wanted[int(classes[member, 0])] = float(values[one])
    keys = {int(position): float(key) for position, key in classes.tolist()}
    for position in spread:
        if len(wanted) < most:
            wanted.setdefault(position, keys.get(position, 0.0))
    return sorted(wanted, key=lambda position: (wanted[position], position))


def _refuse_unweighed_classes(batch_loss: BatchLoss, samples: Samples, classes: torch.Tensor | None) -> None:
    """Class weights without a count, where not all data can be looked at: refused by name."""
    loss = batch_loss.loss
    weight = getattr(loss, "weight", None)
    uneven = isinstance(weight, torch.Tensor) and weight.numel() > 1 and bool((weight != weight.flatten()[0]).any())
    weighed = isinstance(loss, CLASS_WEIGHTED) and loss.reduction == "mean" and uneven and batch_loss.count is None
    if weighed and (classes is None or len(classes) < len(samples)):
        raise UnsupportedModel(f"{type(loss).__name__} has class weights and no count was given: {_remedy(batch_loss)}")


def _remedy(batch_loss: BatchLoss) -> str:
    loss = batch_loss.loss
    if isinstance(loss, CLASS_WEIGHTED) and loss.reduction == "mean":
        if loss.weight is not None:
            return (
                "pass count=lambda batch: weight[batch[1]].sum(), the class weights of the targets that are not "
                "ignored, as the weight of a batch in the mean"
            )
        return f"pass count=lambda batch: (batch[1] != {loss.ignore_index}).sum(), the targets that are not ignored"
    return (
        "pass count=, a function of the batch that gives its weight in the mean (unignored tokens, the sum of class "
        "weights), if it is one (reduction='mean'), or allow 'count'"
    )
