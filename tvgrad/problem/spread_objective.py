"""SpreadObjective: loss, gradient and Hessian-vector products of a model that `fully_shard` has spread over processes.

Each process holds its part of weights, gradients and sums. A round is one forward and backward pass of all processes,
each with a chunk of its own; who has none left goes along with one that weighs nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import distributed, nn

from tvgrad.errors import TvgradError
from tvgrad.numerics.autograd import translate_errors
from tvgrad.numerics.device import free_bytes
from tvgrad.numerics.floats import unit_roundoff
from tvgrad.numerics.precision import full_precision, seeded
from tvgrad.problem.checks import BATCH_DEPENDENT, check_finite, check_problem, fitted
from tvgrad.problem.chunk_products import add_products
from tvgrad.problem.chunk_size import fastest_chunk_size, timed
from tvgrad.problem.count import check_chunks
from tvgrad.problem.evaluations import Evaluations
from tvgrad.problem.passes import FIRST
from tvgrad.problem.ranks import Ranks, connected
from tvgrad.problem.samples import Batch, Samples
from tvgrad.problem.spread_loss import SpreadLoss
from tvgrad.problem.weighted_sum import WeightedSum, nonzero
from tvgrad.results import facts_html
from tvgrad.vectors.parameters import Weights, norm, same_names_and_shapes, trainable_parameters
from tvgrad.vectors.spread import is_spread, own_part, part_of, spread_like, whole_tensor

Products = Literal["auto", "gathered", "differences"]
WAYS = ("auto", "gathered", "differences")

COPIES = 12
"""Of the whole model's size: what four products at once on gathered weights are reckoned to take. The weights, the
gradient and what its own backward pass holds of it, four vectors, and a product at a time."""

SUMS = 4
"""Of float64, of the trainable parameters' number."""


class SpreadObjective:
    r"""The full-batch loss of a model whose parameters several processes hold in parts.

    All processes of the default group make the same calls. Weights, vectors and results are name -> DTensor, spread as
    the model's parameters are; whole tensors, the same in every process, are taken as well.

    Gradients are those of the model's own backward pass, summed in float64. Hessian-vector products are by double
    backward on whole weights where these fit every process, and else a central difference of two gradients, which is an
    estimate: `products_are` says which.

    Attributes:
        samples: the data, in its fixed order; every process has all of it.
        device: where this process computes.
        evaluations: passes over the data so far; a product by differences counts as one, and two of gradients.
        allowed: names of the checks that the caller switched off.

    Examples:
        In a script that torchrun starts, after `fully_shard(model)`:

        >>> objective = tvgrad.SpreadObjective(model, loss, (inputs, targets))  # doctest: +SKIP
        >>> gradient = objective.gradient()  # doctest: +SKIP
        >>> gradient["weight"].full_tensor()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor] | None,
        data: Any,
        *,
        chunk_size: int | None = None,
        count: Callable[[Batch], float | torch.Tensor] | None = None,
        forward: Callable[[nn.Module, Batch], Any] | None = None,
        collate: Callable[[list[Any]], Batch] | None = None,
        allow: Collection[str] = (),
        products: Products = "auto",
    ) -> None:
        """Check model, loss and data on a few samples, and keep a copy of the trainable weights.

        Args:
            model: after `fully_shard`; modes count, as for `Objective`.
            loss: callable(output, target) -> mean loss over the batch; None when `forward` returns the loss.
            data: as that of `Objective`, the same in every process.
            chunk_size: samples that a process evaluates at once; None measures a few sizes.
            count: callable(batch) -> weight of the batch in the mean; by default its number of samples.
            forward: callable(model, batch) -> output, for batches that are not (inputs, target).
            collate: makes a batch of a list of samples.
            allow: checks to switch off: `dropout`, `batchnorm`, `augmentation`, `count`.
            products: Hessian-vector products on `gathered` weights, by `differences` of gradients, or `auto`: the
                first where memory suffices.

        Raises:
            TvgradError: the model is not spread, or in a way that is not read; or what `Objective` refuses.
        """
        if products not in WAYS:
            raise TvgradError(f"products={products!r}: choose from {', '.join(WAYS)}")
        if chunk_size is not None and chunk_size < 1:
            raise TvgradError(f"the chunk size must be at least 1, not {chunk_size}")
        self._loss = SpreadLoss(model, loss, forward, count)
        self._parameters = trainable_parameters(model, spread=True)
        self._initial = {name: own_part(one.detach()).clone() for name, one in self._parameters.items()}
        self.device = next(iter(self._initial.values())).device
        self.samples = fitted(data if isinstance(data, Samples) else Samples(data, collate), model, forward)
        self.allowed = tuple(sorted(set(allow)))
        self.evaluations = Evaluations()
        world = distributed.group.WORLD
        assert world is not None  # the model is spread over it
        self._ranks = Ranks(world, self.device)
        with self._ranks.together():
            check_finite(self._parameters)
        given = self._ranks.gathered(products)
        if len(set(given)) > 1:
            raise TvgradError(f"the processes have different products={given}: give the same in all of them")
        agreed = self._ranks.agreed(chunk_size or 0, {}, self.samples, lambda: 0)
        self._chunk_size = agreed or None
        with self._loss.sharded.holding({}), connected(mixed=True):
            check_problem(self._loss, self.samples, self.device, self.allowed)
            self._ranks.require_same_loss(self._first_loss(), self._initial)
        self._gathers = products == "gathered" or (products == "auto" and self._whole_fits())

    def _first_loss(self) -> tuple[float, float]:
        """The loss of a few samples, and their weight in the mean; of every process."""
        chunk = self.samples.batch(0, FIRST, self.device)
        with full_precision(self.device), translate_errors(), torch.no_grad(), self._noise(0):
            return float(self._loss.evaluated(chunk, lambda loss: loss)), self._loss.weight(chunk)

    def __repr__(self) -> str:
        facts = ", ".join(f"{value:,} {name}" for name, value in self._facts().items())
        return f"SpreadObjective({type(self.model).__name__}, {facts})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return facts_html(f"SpreadObjective of {type(self.model).__name__}", self._facts())

    def _facts(self) -> dict[str, int]:
        return {
            "samples": len(self.samples),
            "trainable parameters": sum(one.numel() for one in self._parameters.values()),
            "processes": self._ranks.count,
            "gradients so far": self.evaluations.gradients,
        }

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self._loss.model

    @property
    def initial(self) -> Weights:
        """The trainable weights at construction, as DTensors."""
        return self._spread(self._initial)

    @property
    def chunk_size(self) -> int:
        """Samples that a process evaluates at once, measured by the first one when it was not given."""
        if self._chunk_size is None:

            def evaluate(size: int) -> float:
                chunk = self.samples.batch(0, size, self.device)
                seconds = timed(lambda: self._loss.backward(chunk, 1 / self._ranks.count)[0])
                return float(self._ranks.gathered(seconds)[0])

            with full_precision(self.device), translate_errors(), self._loss.sharded.holding(self._initial):
                self._chunk_size = fastest_chunk_size(evaluate, -(-len(self.samples) // self._ranks.count))
        return self._chunk_size

    @property
    def products_are(self) -> Literal["exact", "estimate"]:
        """Whether Hessian-vector products are exact but for rounding, or estimates."""
        return "exact" if self._gathers else "estimate"

    def value(self, at: Mapping[str, torch.Tensor] | None = None) -> float:
        """Compute the full-batch loss.

        Args:
            at: weights; by default those at construction.

        Returns:
            The mean loss.
        """
        total = divisor = 0.0
        weights = self._check(at)
        with self._loss.sharded.holding(weights), full_precision(self.device), torch.no_grad(), connected(mixed=True):
            for chunk, own, weight in self._rounds():
                loss = self._loss.evaluated(chunk, lambda one: one)
                total += own * float(loss.double()) if own else 0.0
                divisor += weight
        self.evaluations.values += 1
        (total,) = self._ranks.add_up([], total)
        return total / nonzero(divisor)

    def gradient(self, at: Mapping[str, torch.Tensor] | None = None) -> Weights:
        """Compute the full-batch gradient.

        Args:
            at: weights; by default those at construction.

        Returns:
            Name -> DTensor in the parameter's dtype.
        """
        return self.value_and_gradient(at)[1]

    def value_and_gradient(self, at: Mapping[str, torch.Tensor] | None = None) -> tuple[float, Weights]:
        """Compute the full-batch loss and its gradient in one pass.

        Args:
            at: weights; by default those at construction.

        Returns:
            The mean loss, and name -> DTensor in the parameter's dtype. What the processes compute in one round is
            added up in that dtype, rounds and their weights in float64.

        Raises:
            UnsupportedModel: at the first evaluation, a gradient that depends on how the data is cut into chunks.
        """  # noqa: DOC502 - raised by the check
        size = self.chunk_size
        with full_precision(self.device), translate_errors():
            if self.evaluations.gradients == 0 and not set(self.allowed) & BATCH_DEPENDENT:
                with self._loss.sharded.holding(self._initial), connected(mixed=True):
                    check_chunks(self._loss, self.samples, self.device, size)
            total, sums = self._summed(self._check(at))
        self.evaluations.gradients += 1
        value = total / nonzero(sums.weight)
        return value, self._spread(sums.mean(self.device))

    def hvp(self, vector: Mapping[str, torch.Tensor], at: Mapping[str, torch.Tensor] | None = None) -> Weights:
        """Multiply the full-batch Hessian with a vector.

        Args:
            vector: name -> tensor, shaped like the weights.
            at: weights; by default those at construction.

        Returns:
            Name -> DTensor in the parameter's dtype: exact but for rounding, or an estimate, as `products_are` says.
        """
        return self.hvps([vector], at)[0]

    def hvps(
        self, vectors: Sequence[Mapping[str, torch.Tensor]], at: Mapping[str, torch.Tensor] | None = None
    ) -> list[Weights]:
        r"""Multiply the full-batch Hessian with several vectors.

        On gathered weights each process takes a share of the chunks and nothing is sent in between, by double backward
        with one graph for all vectors. By differences each vector costs two gradients, a step
        $u^{1/3} \lVert \theta \rVert$ to either side, of the unit roundoff $u$; relative to a product as large as the
        gradient the error is of the order of $u^{2/3}$.

        Args:
            vectors: name -> tensor, shaped like the weights.
            at: weights; by default those at construction.

        Returns:
            One product for each vector, as DTensors.
        """
        weights = self._check(at)
        directions = [self._check(vector, "vectors") for vector in vectors]
        if not directions:
            return []
        products = self._by_double_backward if self._gathers else self._by_differences
        found = products(weights, directions)
        self.evaluations.hvps += len(directions)
        return [self._spread(one) for one in found]

    def _by_double_backward(self, weights: Weights, directions: Sequence[Weights]) -> list[Weights]:
        wholes = [{name: whole_tensor(one) for name, one in self._spread(vector).items()} for vector in directions]
        size = self.chunk_size
        with self._loss.sharded.holding(weights), self._loss.sharded.whole():
            leaves: Weights = dict(trainable_parameters(self.model))
            sums = [WeightedSum({name: one.detach() for name, one in leaves.items()}) for _ in wholes]
            with self._ranks.together(), full_precision(self.device, second_order=True), translate_errors():
                for start in self._ranks.part(range(0, len(self.samples), size)):
                    chunk = self.samples.batch(start, start + size, self.device)
                    weight = self._loss.weight(chunk)
                    if weight > 0:
                        with self._noise(start):
                            self._loss.evaluated(chunk, lambda loss: add_products(loss, leaves, wholes, sums, weight))  # noqa: B023
            self._ranks.add_up(sums)
        found = []
        for one in sums:
            mean = one.mean(self.device)
            found.append({name: part_of(mean.pop(name), like).clone() for name, like in self._parameters.items()})
        return found

    def _by_differences(self, weights: Weights, directions: Sequence[Weights]) -> list[Weights]:
        found = []
        size = norm(self._spread(weights))
        with full_precision(self.device), translate_errors():
            for vector in directions:
                length = norm(self._spread(vector))
                if not length:
                    found.append({name: torch.zeros_like(part) for name, part in vector.items()})
                    continue
                unit = max(unit_roundoff(part.dtype) for part in weights.values())
                step = unit ** (1 / 3) * (size or 1.0) / length
                sides = []
                for sign in (step, -step):
                    moved = {name: part.add(vector[name], alpha=sign) for name, part in weights.items()}
                    sides.append(self._summed(moved)[1])
                    self.evaluations.gradients += 1
                divisor = 2 * step * nonzero(sides[0].weight)
                pairs = zip(weights.items(), *(one.parts() for one in sides), strict=True)
                found.append({
                    name: after.sub_(before).div_(divisor).to(one.dtype) for (name, one), after, before in pairs
                })
        return found

    def _summed(self, weights: Weights) -> tuple[float, WeightedSum]:
        """The weighted sum of losses over all processes, and of gradients over this process's parts."""
        sums, own_total = WeightedSum(weights), 0.0
        with self._loss.sharded.holding(weights), connected(mixed=True):
            for chunk, own, weight in self._rounds():
                loss, parts = self._loss.backward(chunk, own / weight)
                sums.add(parts, weight)
                own_total += own * float(loss.double()) if own else 0.0
        return self._ranks.add_up([], own_total)[0], sums

    def _rounds(self) -> Iterator[tuple[Batch, float, float]]:
        """A chunk for this process, the weight it has here, and that of all processes' chunks, for each round."""
        size, count, rank = self.chunk_size, self._ranks.count, self._ranks.rank
        starts = range(0, len(self.samples), size)
        for first in range(0, len(starts), count):
            here = starts[first : first + count]
            own = here[rank] if rank < len(here) else None
            chunk, weight, failure = None, 0.0, None
            if own is not None:
                try:
                    chunk = self.samples.batch(own, own + size, self.device)
                    weight = self._loss.weight(chunk)
                except Exception as error:  # noqa: BLE001 - raised again when the others know of it
                    failure = error
            found = self._ranks.gathered((weight, None if failure is None else str(failure) or type(failure).__name__))
            if failure is not None:
                raise failure
            for other, (_, said) in enumerate(found):
                if said is not None:
                    raise TvgradError(f"process {other} failed: {said}")
            total = sum(one for one, _ in found)
            if total == 0:  # all its tokens are ignored: there is no mean
                continue
            if weight == 0:  # it goes along with one that has a mean
                own = here[next(other for other, (one, _) in enumerate(found) if one > 0)]
                chunk = self.samples.batch(own, own + size, self.device)
            with self._noise(int(own or 0)):
                yield chunk, weight, total

    def _noise(self, start: int) -> AbstractContextManager[None]:
        """Where dropout is allowed, every evaluation of a chunk sees the same draw."""
        return seeded(start, self.device) if "dropout" in self.allowed else nullcontext()

    def _whole_fits(self) -> bool:
        """Whether every process has the memory for products on whole weights; of every process at once."""
        whole = sum(one.numel() * one.dtype.itemsize for one in self.model.parameters())
        sums = sum(one.numel() for one in self._parameters.values()) * torch.float64.itemsize
        return all(self._ranks.gathered(COPIES * whole + SUMS * sums <= free_bytes(self.device)))

    def _spread(self, parts: Mapping[str, torch.Tensor]) -> Weights:
        return {name: spread_like(parts[name], like) for name, like in self._parameters.items()}

    def _check(self, given: Mapping[str, torch.Tensor] | None, what: str = "weights") -> Weights:
        """This process's parts of weights or a vector, in the parameters' dtypes."""
        if given is None:
            return self._initial
        difference = same_names_and_shapes(self._parameters, given)
        if difference is not None:
            raise TvgradError(f"the {what} do not fit the model: {difference}")
        whole = [
            tensor.detach() for name, tensor in given.items() if name in self._parameters and not is_spread(tensor)
        ]
        if whole and len(set(self._ranks.gathered(_fingerprint(whole)))) > 1:
            raise TvgradError(
                f"the processes have different {what}: give whole tensors that are the same in all of them, or DTensors"
            )
        return {
            name: part_of(given[name].detach(), like).to(self.device, like.dtype)
            for name, like in self._parameters.items()
        }


def _fingerprint(tensors: Sequence[torch.Tensor]) -> int:
    """A number that tells tensors from others of other bits."""
    found = 0
    for tensor in tensors:
        found = zlib.crc32(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data, found)
    return found
