"""GradientTotal: gradients of a script's backward passes, weighted and summed as its optimizer steps consume them.

A step may consume several backward passes (accumulation), each a mean over a batch of another size. So the gradient of
each is taken apart: what was accumulated before is set aside while a backward pass runs, and added to it afterwards by
the addition that torch would have done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed

from tvgrad.integrations.measuring.ranks import averaged, ranks
from tvgrad.record.batch_items import BatchItems
from tvgrad.record.batch_weights import some_coordinates
from tvgrad.record.changed import factor_of, narrowest
from tvgrad.record.count_ratios import CountRatios
from tvgrad.record.number_range import NumberRange
from tvgrad.record.weighing import Weighing
from tvgrad.vectors.algebra import add_scaled, combination
from tvgrad.vectors.parameters import Weights, dense, norm

FEW = 4096
"""About so many coordinates tell by which factor a gradient was multiplied."""
ROUNDED = 1e-5
"""So near are factors that are the same, found from gradients in float32."""


class GradientTotal:
    """The weighted sum of an epoch's gradients, in float64.

    Attributes:
        parameters: name -> parameter.
        steps: optimizer steps that were added.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], weighing: Weighing, counter: int) -> None:
        """Start at nothing.

        Args:
            parameters: name -> parameter, of the model.
            weighing: how gradients add up.
            counter: which count of a batch is its weight.
        """
        self.parameters = parameters
        self._weighing = weighing
        self._counter = counter
        self._aside: dict[str, torch.Tensor] = {}
        self._accumulated: torch.Tensor | None = None
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.steps = 0
        self._sum: Weights = {}
        self._weight = 0.0
        self._norms = 0.0
        self._ratios = CountRatios(self._counter)
        self._batches_a_step: Counter[int] = Counter()
        self._sizes, self._factors = NumberRange(), NumberRange()  # counts of batches; factors of steps
        self._forget_step()

    def before_backward(self) -> None:
        """A backward pass begins: what was accumulated is set aside."""
        grads = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if self._passes and not any(map(reaches, grads.values())):
            self._forget_step()  # the script has dropped what was accumulated
        if self._passes == 1 and self._weighing is Weighing.MEAN:
            self._add_pass(grads, self._first)
        self._aside = grads
        for name in grads:
            self.parameters[name].grad = None

    def after_backward(self, batch: int, items: BatchItems | None, scale: float) -> bool:
        """A backward pass has ended.

        Args:
            batch: the number of the batch that it went through.
            items: of that batch; None where batches are not known.
            scale: the loss scale that its gradient carries.

        Returns:
            Whether it reached the model's parameters.
        """
        fresh = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if fresh:
            self._passes += 1
            self._scale = scale
            self._items[batch] = 1.0 if items is None else items.counts[self._counter]
            if items is not None:
                self._ratios.add(items.counts)
                self._sizes.add(items.counts[self._counter])
            if self._passes == 1:
                self._first = (self._items[batch], scale)
            elif self._weighing is Weighing.MEAN:
                self._add_pass(fresh, (self._items[batch], scale))
        for name, grad in self._aside.items():
            parameter = self.parameters[name]
            parameter.grad = grad if parameter.grad is None else grad.add_(parameter.grad)
        self._aside = {}
        if fresh and self._weighing is Weighing.MEAN:
            self._accumulated = self._few(1.0)
        return bool(fresh)

    def end_step(self, scale: float = 1.0) -> Weights:
        """An optimizer step consumes the gradients.

        Args:
            scale: the loss scale that they carry still.

        Returns:
            Name -> gradient that it consumes, without the loss scale: see `consumed_gradients`.
        """
        grads = consumed_gradients(self.parameters, scale)
        self._norms += self._commit(grads, self._factor(scale))
        self.steps += 1
        return grads

    def flush(self) -> None:
        """The epoch is over: gradients that no step has consumed yet count too."""
        if self._passes and any(batch not in self._done for batch in self._items):
            self._norms += self._commit(consumed_gradients(self.parameters, self._scale))

    def share(self) -> None:
        """Add what the other processes of the training have summed."""
        count = ranks()
        if count == 1:
            return
        self._sum = {name: one.mul_(count) for name, one in averaged(self._sum, self.parameters).items()}
        device = next(iter(self.parameters.values())).device
        both = torch.tensor([self._weight, self._norms], dtype=torch.float64, device=device)
        distributed.all_reduce(both)
        self._weight, self._norms = both.tolist()
        found: list[Any] = [None] * count
        distributed.all_gather_object(found, (self._ratios.ranges, self._sizes, self._factors))
        ranges, sizes, factors = zip(*found, strict=True)
        self._ratios.join(ranges)
        self._sizes.join(sizes)
        self._factors.join(factors)
        if self._weighing is Weighing.SUM:  # the wrapper takes the mean of what each process has added
            self._sum = {name: one.div_(count) for name, one in self._sum.items()}

    def mean(self) -> Weights:
        """Divide by the weight.

        Returns:
            Name -> float64 gradient of the full batch, zero where there was none.
        """
        factor = 1.0 if self._weighing is Weighing.SUM else 1.0 / (self._weight or 1.0)
        if self._weighing is Weighing.MEAN:
            factor *= self.batches_a_step
        return {
            name: self._sum[name] * factor if name in self._sum else torch.zeros(p.shape, dtype=torch.float64)
            for name, p in self.parameters.items()
        }

    @property
    def batches_a_step(self) -> int:
        """How many batches most steps accumulate."""
        return max(self._batches_a_step.items(), key=lambda one: (one[1], one[0]), default=(1, 0))[0]

    def facts(self) -> dict[str, Any]:
        """Describe the sum.

        Returns:
            weight; steps; batches_a_step; mean_norm, the weighted mean of the norms of what was summed; unlike,
            the counters that weigh the batches otherwise; even, whether all batches weigh the same; refactored, whether
            the script multiplied what it had accumulated by other factors in some steps than in others.
        """
        return {
            "weight": self._weight,
            "steps": self.steps,
            "batches_a_step": self.batches_a_step,
            "mean_norm": self._norms / (self._weight or 1.0),
            "unlike": self._ratios.unlike,
            "even": self._sizes.all_within(0.0),
            "refactored": self.batches_a_step > 1 and not self._factors.all_within(ROUNDED),
        }

    def _factor(self, scale: float) -> float:
        """By what the script has multiplied the gradients since the last backward pass."""
        if self._accumulated is None:
            return 1.0
        factor = factor_of(self._few(scale), self._accumulated / self._scale, narrowest(self.parameters.values()))
        self._factors.add(factor)
        return factor

    def _few(self, scale: float) -> torch.Tensor:
        """Some coordinates of the present gradients."""
        grads = [torch.zeros(p.shape) if p.grad is None else dense(p.grad) for p in self.parameters.values()]
        return some_coordinates(grads, FEW) / scale

    def _commit(self, grads: Weights, factor_of_step: float = 1.0) -> float:
        """Add a step; its norm, times its weight."""
        weight = sum(self._items.values())
        parts, factor = self._parts, factor_of_step
        if self._weighing is not Weighing.MEAN:
            parts, factor = grads, weight if self._weighing is Weighing.STEP else 1.0
        elif not parts:
            parts, factor = grads, weight
        for name, part in parts.items():
            _add(self._sum, name, part, factor)
        self._weight += weight
        self._batches_a_step[len(self._items)] += 1
        done = set(self._items)
        self._forget_step()
        self._done.update(done)
        return weight * norm(grads)

    def _add_pass(self, grads: Mapping[str, torch.Tensor], weight_and_scale: tuple[float, float]) -> None:
        weight, scale = weight_and_scale
        for name, grad in grads.items():
            _add(self._parts, name, dense(grad), weight / scale)

    def _forget_step(self) -> None:
        self._passes = 0
        self._scale = 1.0
        self._accumulated = None
        self._first = (1.0, 1.0)
        self._items: dict[int, float] = {}
        self._parts: Weights = {}
        self._done: set[int] = set()


def reaches(grad: torch.Tensor) -> bool:
    """Tell whether a gradient is there: scripts set it to zero where they do not take it away.

    Args:
        grad: a parameter's gradient.

    Returns:
        Whether any element is not zero.
    """
    return bool((grad.coalesce().values() if grad.is_sparse else grad).any())


def consumed_gradients(parameters: Mapping[str, torch.nn.Parameter], scale: float) -> Weights:
    """List the gradients that an optimizer step consumes.

    Args:
        parameters: name -> parameter.
        scale: the loss scale that the gradients carry still.

    Returns:
        Name -> dense gradient without the loss scale: the parameter's own where that is 1, else new and in float64.
    """
    held = {name: dense(p.grad) for name, p in parameters.items() if p.grad is not None}
    return held if scale == 1 else {name: grad.double() / scale for name, grad in held.items()}


def _add(total: Weights, name: str, gradient: torch.Tensor, factor: float) -> None:
    """Add a multiple of a gradient to a float64 sum, without a float64 copy of it."""
    if name in total:
        add_scaled({name: total[name]}, {name: gradient}, factor)
    else:
        total |= combination((factor, {name: gradient}))


def wide(grad: torch.Tensor) -> torch.Tensor:
    """Make a gradient dense and wide enough to be summed.

    Args:
        grad: a parameter's gradient.

    Returns:
        It in float64.
    """
    return (grad.to_dense() if grad.is_sparse else grad).double()
