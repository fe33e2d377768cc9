"""WeightsProbe: finds out how a script's batches are weighted in its mean, by giving it a batch whole and in two parts.

The script gets a batch of samples from all over its data set, then two unequal parts of it, then the whole and the
first part in turn. Of what kind the loss is (a mean over samples, over tokens, a sum) follows from the gradients of its
backward passes: only the right weights make the whole of the parts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from tvgrad.integrations.measuring.gradient_total import GradientTotal, consumed_gradients, reaches, wide
from tvgrad.integrations.measuring.pass_options import PassOptions
from tvgrad.integrations.measuring.ranks import is_first, most_told
from tvgrad.integrations.measuring.talk import Talk
from tvgrad.record.batch_items import BatchItems
from tvgrad.record.batch_weights import PARTS, Evidence, repeats_differ, some_coordinates, split, weights_of
from tvgrad.record.changed import CHANGED, as_consumed, narrowest
from tvgrad.record.reread import reads_differ
from tvgrad.record.spread_batch import spread_batch
from tvgrad.record.telling import Telling
from tvgrad.record.weighing import BatchWeights, Weighing

ENOUGH = 4
"""Batches whose gradients are compared: those and the whole again."""
TWICE = 3
"""Batches that must follow with the script's own noise: two of them are the same."""
MOST = 512
"""Batches after which the script is told that the loader has no more."""


class Reread:
    """Whether samples that a probe's loaders read again are others.

    Attributes:
        differs: of any of them; None where that is not known.
        telling: what a loader's batch is to tell apart.
        told: how many counters one did.
        talk: what the processes tell one another.
    """

    def __init__(self, telling: Telling | None = None) -> None:
        """Start before the first loader.

        Args:
            telling: what a loader's batch is to tell apart.
        """
        self.telling, self.told, self.talk = telling or Telling(), 0.0, Talk()
        self.differs: bool | None = None

    def parts(self, loader: Any) -> Parts:
        """Make what a pass over a loader returns.

        Args:
            loader: that the pass goes over.

        Returns:
            It.
        """
        return Parts(loader, self)

    def look(self, loader: Any) -> None:
        """Read some of a loader's samples twice.

        Args:
            loader: it.
        """
        if not self.differs:
            found = reads_differ(loader)
            self.differs = self.differs if found is None else found


class Parts:
    """What a pass over a loader returns in a probe: a batch, two parts of it, then the whole and the first part.

    Steps that accumulate several batches differ in what they hold then. Where processes talk, those that are not the
    first take turns with it from then on.
    """

    def __init__(self, loader: Any, reread: Reread | None = None) -> None:
        """Start before the first batch.

        Args:
            loader: that the pass goes over.
            reread: looks whether its samples are the same when they are read again.
        """
        self._loader, self._reread = loader, reread or Reread()
        self._given = 0
        self._whole: Any = None
        self._pieces: tuple[Any, Any] | None = None
        self._uneven = False

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
            if self._reread.telling.wanted:
                self._whole, self._pieces, told = self._reread.telling.parts(self._loader, self._whole, fetch)
                self._reread.told = max(self._reread.told, told)
            else:
                self._whole = spread_batch(self._loader, self._whole)
                self._pieces = split(self._whole)
            self._reread.look(self._loader)
        elif self._given >= MOST:
            raise StopIteration
        place, self._given = self._given, self._given + 1
        first, second = self._pieces or (self._whole, self._whole)
        if place == PARTS and not self._reread.telling.wanted:
            self._uneven = not is_first() and self._reread.talk.of_fixed_shape
        self._reread.talk.next_batch()
        turn = (place + self._uneven) % 2  # a part where the first process has the whole, and the other way round
        given = [self._whole, first, second][place] if place < PARTS else [first, self._whole][turn]
        return copy.deepcopy(given)  # scripts may change a batch in place


class WeightsProbe:
    """Collects the gradients of batches and says how they are weighted.

    Attributes:
        parameters: name -> parameter.
        steps: optimizer steps taken.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], reread: Reread | None = None) -> None:
        """Start before the first backward pass.

        Args:
            parameters: name -> parameter, of the model.
            reread: what the loaders' samples were when they were read again.
        """
        self.parameters, self._reread = parameters, reread or Reread()
        self.steps = 0
        self._found: list[Evidence] = []
        self._noisy_from: int | None = None
        self._aside: dict[str, torch.Tensor] = {}
        self._changed = False

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
            parts = [torch.zeros(p.shape) if p.grad is None else wide(p.grad) / scale for p in self.parameters.values()]
            gradient = some_coordinates(parts)
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

    def end_step(self, scale: float = 1.0) -> None:
        """An optimizer step consumes the gradients, which the script may have changed since its backward passes.

        Args:
            scale: the loss scale that they carry still.
        """
        grads = consumed_gradients(self.parameters, scale)
        parts = [wide(grads[name]) if name in grads else torch.zeros(p.shape) for name, p in self.parameters.items()]
        dtype = narrowest(self.parameters.values())
        self._found, changed = as_consumed(self._found, self.steps, some_coordinates(parts), dtype)
        self._changed |= changed
        self.steps += 1

    def weights(self, dtype: torch.dtype) -> BatchWeights:
        """Compare the whole with its parts.

        Args:
            dtype: the narrowest format in which the script computes.

        Returns:
            The weights, confirmed or not; where counters were to be told apart, of the process that did it best.
        """
        noisy = self._noisy()
        before = [one for one in self._closed() if self._noisy_from is None or one.step < self._noisy_from]
        found = weights_of(before, dtype)
        alone = weights_of(before[:PARTS], dtype)
        if not found.confirmed and alone.confirmed and self._reread.talk.of_fixed_shape:
            found = replace(alone, shared=True)
        found = replace(found, redrawn=self._reread.differs)
        if self._changed:
            found = replace(found, confirmed=False, reason=CHANGED)
        if len(noisy) >= TWICE:
            found = replace(found, noise=repeats_differ(noisy, found))
        return most_told(found, self._reread.told) if self._reread.telling.wanted else found

    def _closed(self) -> list[Evidence]:
        return [one for one in self._found if one.step < self.steps]

    def _noisy(self) -> list[Evidence]:
        return [] if self._noisy_from is None else [one for one in self._closed() if one.step >= self._noisy_from]


def begun_total(
    plan: PassOptions, parameters: Mapping[str, torch.nn.Parameter], reread: Reread
) -> GradientTotal | WeightsProbe:
    """Make what takes the gradients of a pass.

    Args:
        plan: what the pass does.
        parameters: name -> parameter, of the model.
        reread: what the loaders' samples were when they were read again.

    Returns:
        It, before the first backward pass.
    """
    if plan.probe:
        return WeightsProbe(parameters, reread)
    return GradientTotal(parameters, Weighing(plan.weighing), plan.counter)
