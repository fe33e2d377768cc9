"""Count: is the loss of a batch the mean over its samples with the weights that `count` gives them?

A full-batch gradient is put together from chunks, each weighted by its count. A count that is wrong (class weights,
ignored tokens) makes another vector, and the values alone do not show it: with a head of zeros every sample has the
same loss. So gradients are compared, of a few samples that hold every class and masked targets, at theta_0 and at
perturbed weights, for several unequal groupings, and in float64 where the model can be cast.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from tvgrad.errors import TvgradError, UnsupportedModel
from tvgrad.numerics.precision import seeded
from tvgrad.problem.batch_loss import BatchLoss, target_of
from tvgrad.problem.samples import Batch, Samples, map_tensors

CLASSES = 16
"""At most so many classes, the rarest first, are looked for among the samples."""

SAMPLES = 24
SCANNED = 128
"""Samples of a data set without tensors whose targets are read."""

WIDEST = 30_000_000
"""Parameters up to which a float64 copy is made."""

PERTURBATION = 0.1
TOLERANCE = 5e-7
"""Of a float64 comparison: over the rounding of a count that was summed in float32."""

CLASS_WEIGHTED = (nn.CrossEntropyLoss, nn.NLLLoss)


def check_count(batch_loss: BatchLoss, samples: Samples, device: torch.device) -> None:
    """Compare gradients of a batch with their recombination from unequal groups.

    Args:
        batch_loss: model, loss and count, on `device`.
        samples: the data.
        device: where to run.

    Raises:
        UnsupportedModel: the count does not add up, or is not the weight of a batch in the mean.
    """
    classes = _classes(samples)
    _refuse_unweighed_classes(batch_loss, samples, classes)
    chosen = samples.subset(_chosen(classes, len(samples)))
    if len(chosen) < 2:
        return
    count = _Count(batch_loss, chosen, device)
    for grouping in _groupings(len(chosen)):
        count.check_sum(grouping)
    worst, checked = _compared(count, chosen, device)
    if not worst <= checked.tolerance:
        raise UnsupportedModel(
            f"the gradient of a batch is not the mean of the gradients of its parts weighted by "
            f"{'count' if batch_loss.count else 'samples'} (off by {worst:.2g} of their size): {_remedy(batch_loss)}"
        )


def _compared(count: _Count, chosen: Samples, device: torch.device) -> tuple[float, _Count]:
    """The largest deviation, in float64 where model, loss and forward can be cast, else in their own dtype."""
    attempts = [count]
    if sum(parameter.numel() for parameter in count.batch_loss.parameters()) <= WIDEST:
        with contextlib.suppress(RuntimeError, TypeError):  # a module that cannot be copied
            wide = copy.deepcopy(count.batch_loss).double()
            attempts.insert(0, _Count(wide, chosen.with_dtype(torch.float64), device))
    for attempt in attempts:
        with contextlib.suppress(RuntimeError, TypeError, ValueError, NotImplementedError):
            return attempt.deviation(), attempt
    return 0.0, count  # it has no gradient that could be wrong: whoever asks for one is told why


@dataclass(frozen=True)
class _Count:
    """One batch, and what its parts make of it."""

    batch_loss: BatchLoss
    samples: Samples
    device: torch.device
    read: dict[tuple[int, ...], Batch] = field(default_factory=dict)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some of the samples as one batch, read once: a data set may decode files."""
        key = tuple(indices)
        if key not in self.read:
            made = self.samples.subset(list(key))
            self.read[key] = map_tensors(made.batch(0, len(made)), lambda tensor: tensor.to(self.device))
        return self.read[key]

    @property
    def tolerance(self) -> float:
        dtype = next(p.dtype for p in self.batch_loss.model.parameters() if p.is_floating_point())
        return max(TOLERANCE, float(torch.finfo(dtype).eps ** 0.75))

    def check_sum(self, groups: Sequence[Sequence[int]]) -> None:
        """A count must add up: the weight of a batch is the sum of its parts'."""
        whole = self.batch_loss.weight(self.batch(range(len(self.samples))))
        total = sum(self.batch_loss.weight(self.batch(group)) for group in groups)
        if total == 0 or abs(whole - total) > 1e-6 * total:
            raise UnsupportedModel(
                f"count(batch) gives {whole:g} for a batch and {total:g} for its parts: a count must add up"
            )

    def deviation(self) -> float:
        """Largest deviation over groupings and weights, relative to the size of the parts' gradients."""
        worst = 0.0
        module = self.batch_loss
        for amount in (0.0, PERTURBATION):
            names = {name for name, p in module.named_parameters() if p.requires_grad}
            weights = _perturbed(module, amount)
            whole = self._gradient(range(len(self.samples)), weights, names)
            for groups in _groupings(len(self.samples)):
                total, size, mass = torch.zeros_like(whole), 0.0, 0.0
                for group in groups:
                    weight = module.weight(self.batch(group))
                    if weight == 0:  # its mean may be undefined (0/0); it contributes nothing
                        continue
                    part = self._gradient(group, weights, names)
                    total += weight * part
                    size += weight * float(part.norm())
                    mass += weight
                if size:
                    worst = max(worst, float((total / mass - whole).norm()) / (size / mass))
        return worst

    def _gradient(self, group: Sequence[int], weights: dict[str, torch.Tensor], names: set[str]) -> torch.Tensor:
        """The gradient and the value of one group's mean loss, as one float64 vector."""
        moved = {name: weight.detach().requires_grad_(name in names) for name, weight in weights.items()}
        with seeded(0, self.device), torch.enable_grad():
            found = torch.func.functional_call(
                self.batch_loss,
                moved,
                (self.batch(group),),
                {
                    "then": lambda value: (
                        value.detach(),
                        torch.autograd.grad(value, [moved[n] for n in sorted(names)], allow_unused=True),
                    )
                },
            )
        value, gradients = found
        parts = [
            torch.zeros(moved[n].numel()) if g is None else g for n, g in zip(sorted(names), gradients, strict=True)
        ]
        return torch.cat([value.reshape(1).double().cpu(), *(part.reshape(-1).double().cpu() for part in parts)])


def _perturbed(module: nn.Module, amount: float) -> dict[str, torch.Tensor]:
    """Weights and buffers of a module, the weights moved at random by a share of their size."""
    generator = torch.Generator().manual_seed(0)
    moved = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for name, weight in module.named_parameters():
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        size = float(weight.detach().double().square().mean().sqrt()) if weight.numel() else 0.0
        moved[name] = weight.detach() + amount * (size + 0.1) * noise if amount else weight.detach().clone()
    return moved


def _groupings(size: int) -> list[list[list[int]]]:
    """Unequal groups of positions; the samples are sorted by class, so that groups differ in their classes."""
    third = max(1, size // 3)
    return [
        [list(range(third)), list(range(third, size))],
        [[0], list(range(1, size))],
        [list(range(0, size, 3)), [i for i in range(size) if i % 3]],
        [list(range(size - 1)), [size - 1]],
    ]


def _classes(samples: Samples) -> torch.Tensor | None:
    """A number for each scanned sample that tells samples of different weight apart, or None; shape (positions, 2)."""
    positions = torch.arange(len(samples))
    if not samples.in_memory and len(samples) > SCANNED:
        positions = torch.linspace(0, len(samples) - 1, SCANNED).long()
    try:
        found = [target_of(batch) for batch in samples.subset(positions).chunks(4096)]
        targets = torch.cat([torch.as_tensor(target) for target in found])
    except (TvgradError, TypeError, ValueError, RuntimeError):
        return None
    if targets.is_floating_point() or targets.is_complex():
        keys = targets.flatten(1).double().nan_to_num().sum(1) if targets.ndim > 1 else targets.double().nan_to_num()
    elif targets.ndim > 1:  # tokens or pixels: how many are masked is what a weight would hang on
        keys = (targets.flatten(1) < 0).sum(1).double() + targets.flatten(1).double().mean(1) * 1e-6
    else:
        keys = targets.double()
    return torch.stack([positions.double(), keys], dim=1)


def _chosen(classes: torch.Tensor | None, size: int) -> list[int]:
    """Positions of a few samples from all over the data, every class among them, sorted by class."""
    spread = [index * (size - 1) // max(1, min(SAMPLES, size) - 1) for index in range(min(SAMPLES, size))]
    if classes is None:
        return sorted(set(spread))
    values, inverse, counts = classes[:, 1].unique(return_inverse=True, return_counts=True)
    wanted: dict[int, float] = {}
    if len(values) <= 4 * CLASSES:
        order = counts.argsort()[:CLASSES].tolist()
    else:  # many different values: the extremes and what lies between
        order = torch.linspace(0, len(values) - 1, CLASSES).long().tolist()
    for one in order:
        members = (inverse == one).nonzero().flatten()
        for member in members[: 2 if len(values) <= SAMPLES // 3 else 1].tolist():
            wanted[int(classes[member, 0])] = float(values[one])
    keys = {int(position): float(key) for position, key in classes.tolist()}
    for position in spread:
        if len(wanted) < SAMPLES:
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
