"""SampleRows: gradients of every sample of a chunk, by the cheapest way that a model allows.

1. Layers: one backward pass over the sum of a chunk's losses, where parameters go into layers whose input and output
   gradient tell samples apart (`LayerTape`). Compared with two samples on their own in every pass over the data.
2. `torch.func.vmap` over samples, for the other parameters.
3. A loop over samples, for models that vmap cannot run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from tvgrad.numerics.autograd import gradients
from tvgrad.problem.layer_tape import LayerTape, MixedSamples
from tvgrad.problem.outputs import rows_of
from tvgrad.problem.samples import Batch, map_tensors, tensors_in
from tvgrad.vectors.parameters import Weights

Visit = Callable[[Weights], None]
Single = Callable[[int], Batch]
Run = Callable[[Mapping[str, torch.Tensor], Batch, Callable[[Any], Any]], Any]
"""Runs the model on a batch, and makes something of its loss or output while it still has the weights."""


class SampleRows:
    """Gradients by each sample at given weights, over one pass through the data.

    Attributes:
        compact: whether the last chunk's squares needed no tensor with a row for every sample.
    """

    def __init__(self, loss: Run, output: Run, weights: Weights) -> None:
        """Begin a pass.

        Args:
            loss: runs the model and its mean loss.
            output: runs the model alone.
            weights: where the gradients are taken.
        """
        self._loss, self._output, self._weights = loss, output, weights
        self._by_layers: bool | None = None
        self._by_vmap = True
        self.compact = False

    def visit(
        self,
        chunk: Batch,
        mass: torch.Tensor,
        single: Single,
        visit: Visit,
    ) -> None:
        """Compute the rows of a chunk.

        Args:
            chunk: samples, as one batch.
            mass: their weights in the mean, shape (samples,).
            single: a sample of the chunk as a batch of its own, by its number.
            visit: called with name -> tensor of shape (samples, *parameter): with all parameters, or with some at a
                time. They are gradients of each sample's loss, 0 for a sample without weight.
        """
        known: Weights | None = None
        if self._by_layers is None:
            known = self._checked(chunk, mass, single)
            self._by_layers = known is not None
        if known is not None:
            visit(known)
            free = set(self._weights) - set(known)
        else:
            free = self._visit_layers(chunk, mass, visit) if self._by_layers else set(self._weights)
        if free:
            visit(self._others(chunk, mass, single, None, free))

    def squares(
        self,
        chunk: Batch,
        mass: torch.Tensor,
        single: Single,
        cotangents: Callable[[torch.Tensor], Iterable[torch.Tensor]] | None = None,
    ) -> Weights:
        """Add up squares of the rows of a chunk, each sample by its weight.

        Args:
            chunk: samples, as one batch.
            mass: their weights in the mean, shape (samples,).
            single: a sample of the chunk as a batch of its own, by its number.
            cotangents: outputs -> tensors like them; the rows are then gradients of the product of each with the
                outputs, and the squares of all are added up.

        Returns:
            Name -> float64 tensor, shaped like the parameter.
        """
        sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in self._weights.items()}

        def add(parts: Weights) -> None:
            for name, part in parts.items():
                sums[name] += torch.tensordot(mass, part.double().square(), 1)

        if self._by_layers is None:
            self._by_layers = self._checked(chunk, mass, single) is not None
        if not self._by_layers:
            self.compact = False
            for cotangent in [None] if cotangents is None else self._factors(chunk, len(mass), cotangents):
                add(self._others(chunk, mass, single, cotangent, set(self._weights)))
            return sums
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in self._weights.items()}
        given: list[torch.Tensor] = []
        with LayerTape(leaves) as tape:

            def squared(made: Any) -> Weights:
                if cotangents is None:
                    # The gradient holds the weight of each sample in the sum, once too often in its square.
                    scalars, factor = [made * float(mass.sum())], torch.where(mass > 0, 1 / mass, 0.0)
                else:
                    outputs = rows_of(made, len(mass))
                    with torch.no_grad():
                        given.extend(cotangents(outputs.detach()))
                    scalars, factor = [(outputs * one).sum() for one in given], mass
                found: Weights = tape.squares(scalars, factor, leaves)
                return found

            by_layers: Weights = (self._loss if cotangents is None else self._output)(leaves, chunk, squared)
        sums |= by_layers
        free = set(tape.free)
        self.compact = tape.compact and not free
        if free:
            for cotangent in [None] if cotangents is None else given:
                add(self._others(chunk, mass, single, cotangent, free))
        return sums

    def _factors(
        self, chunk: Batch, count: int, cotangents: Callable[[torch.Tensor], Iterable[torch.Tensor]]
    ) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(cotangents(self._output(self._weights, chunk, lambda output: rows_of(output, count))))

    def _visit_layers(self, chunk: Batch, mass: torch.Tensor, visit: Visit) -> set[str]:
        """Rows of the parameters of layers; returns the names of the others."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in self._weights.items()}
        with LayerTape(leaves) as tape:

            def of_loss(loss: torch.Tensor) -> None:
                rows = tape.by_sample(loss * float(mass.sum()), len(mass), leaves)
                # The rows hold the weight of each sample in the sum.
                even = bool((mass == 1).all())
                visit(rows if even else {name: _unweighed(part, mass) for name, part in rows.items()})

            self._loss(leaves, chunk, of_loss)
        return set(tape.free)

    def _checked(self, chunk: Batch, mass: torch.Tensor, single: Single) -> Weights | None:
        """What layers give; None unless the first and the last sample give the same on their own."""
        found: Weights = {}
        try:
            self._visit_layers(chunk, mass, found.update)
        except (RuntimeError, MixedSamples):  # checkpointed activations, or a model that mixes samples' places
            return None
        counted = torch.nonzero(mass).flatten().tolist()
        for number in {counted[0], counted[-1]} if counted else ():
            alone = self._alone(single(number), None, list(self._weights))
            whole = float(torch.stack([part.double().norm() for part in alone.values()]).norm())
            for name, rows in found.items():
                eps = torch.finfo(rows.dtype).eps
                away = float((rows[number] - alone[name]).double().norm())
                if not away <= eps**0.5 * float(alone[name].double().norm()) + 100 * eps * whole:
                    return None
        return found

    def _others(
        self, chunk: Batch, mass: torch.Tensor, single: Single, cotangent: torch.Tensor | None, names: set[str]
    ) -> Weights:
        chosen = [name for name in self._weights if name in names]
        rows: Weights | None = None
        if self._by_vmap and all(part.ndim and len(part) == len(mass) for part in tensors_in(chunk)):
            try:
                rows = self._mapped(chunk, cotangent, chosen)
            except (RuntimeError, ValueError, TypeError):  # the loop raises what is wrong with the model itself
                self._by_vmap = False
        if rows is None:
            zero = {name: torch.zeros_like(self._weights[name]) for name in chosen}
            each = [
                self._alone(single(i), None if cotangent is None else cotangent[i : i + 1], chosen) if mass[i] else zero
                for i in range(len(mass))
            ]
            rows = {name: torch.stack([one[name] for one in each]) for name in chosen}
        # The loss of a sample without weight is 0/0.
        return rows if bool((mass > 0).all()) else {n: _unweighed(part, mass.sign()) for n, part in rows.items()}

    def _alone(self, batch: Batch, cotangent: torch.Tensor | None, names: Sequence[str]) -> Weights:
        """The gradient of one sample, by itself."""
        leaves = {name: self._weights[name].detach().requires_grad_() for name in names}

        def differentiate(scalar: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return gradients(scalar, tuple(leaves.values()))

        found = self._scalar({**self._weights, **leaves}, batch, cotangent, differentiate)
        return dict(zip(leaves, found, strict=True))

    def _scalar(
        self,
        weights: Mapping[str, torch.Tensor],
        batch: Batch,
        cotangent: torch.Tensor | None,
        then: Callable[[torch.Tensor], Any],
    ) -> Any:
        """The loss of one sample, or the product of its output with a cotangent."""
        if cotangent is None:
            return self._loss(weights, batch, then)
        return self._output(weights, batch, lambda output: then((rows_of(output, 1) * cotangent).sum()))

    def _mapped(self, chunk: Batch, cotangent: torch.Tensor | None, names: Sequence[str]) -> Weights:
        fixed = {name: tensor for name, tensor in self._weights.items() if name not in names}

        def scalar(moved: Weights, given: torch.Tensor | None, parts: list[torch.Tensor]) -> torch.Tensor:
            ahead = iter(parts)
            batch = map_tensors(chunk, lambda _: next(ahead).unsqueeze(0))
            found: torch.Tensor = self._scalar(
                fixed | moved, batch, None if given is None else given.unsqueeze(0), lambda value: value
            )
            return found

        over = (None, None if cotangent is None else 0, 0)
        moved = {name: self._weights[name].detach() for name in names}
        rows: Weights = torch.func.vmap(torch.func.grad(scalar), over)(moved, cotangent, tensors_in(chunk))
        return {name: part.detach() for name, part in rows.items()}


def _unweighed(rows: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Rows over their weights; zeros where that is 0."""
    by = mass.to(rows).reshape(-1, *[1] * (rows.ndim - 1))
    return torch.where(by > 0, rows / by, torch.zeros_like(rows))
