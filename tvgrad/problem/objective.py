"""Objective: loss, gradient and Hessian-vector products over a whole data set, at any weights.

All sums run over chunks of the data, are accumulated in float64 and divided once by the true weight of the data set, so
the result does not depend on how the data is cut (a mean of batch means would). One chunk's graph is alive at a time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

from tvgrad.errors import TvgradError
from tvgrad.numerics.autograd import gradients, translate_errors
from tvgrad.numerics.device import resolve_device
from tvgrad.numerics.precision import full_precision
from tvgrad.problem.batch_loss import BatchLoss
from tvgrad.problem.checks import BATCH_DEPENDENT, check_problem, fitted
from tvgrad.problem.chunk_products import add_products
from tvgrad.problem.chunk_size import fastest_chunk_size, timed, within_memory
from tvgrad.problem.count import check_chunks
from tvgrad.problem.crew import Crew, ranks_of
from tvgrad.problem.evaluations import Evaluations
from tvgrad.problem.fully_sharded import sharded_modules
from tvgrad.problem.hessian_operator import operator_of
from tvgrad.problem.passes import require_whole
from tvgrad.problem.ranks import Alone
from tvgrad.problem.sample_gradients import SampleGradients
from tvgrad.problem.samples import Batch, Samples
from tvgrad.problem.weighted_sum import WeightedSum, nonzero
from tvgrad.results import facts_html
from tvgrad.vectors.parameters import Weights, trainable_parameters, weights_of

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


class Objective(SampleGradients):
    r"""The full-batch loss $L(\theta) = \sum_i w_i \ell_i(\theta) / \sum_i w_i$ of a model on a data set.

    Attributes:
        samples: the data, in its fixed order.
        device: where it is computed.
        home: where the caller's model lies, and with it every gradient and product.
        evaluations: passes over the data so far.
        allowed: names of the checks that the caller switched off; reports repeat them.

    Examples:
        The mean over three weights w of `(w - 1) ** 2`: gradient and Hessian are known.

        >>> import torch, tvgrad
        >>> model = torch.nn.Linear(3, 1, bias=False).double()
        >>> objective = tvgrad.Objective(model, torch.nn.MSELoss(), (torch.eye(3).double(), torch.ones(3, 1).double()))
        >>> at = {"weight": torch.tensor([[1.0, 2.0, 4.0]]).double()}
        >>> round(objective.value(at), 6)
        3.333333
        >>> objective.gradient(at)["weight"].round(decimals=6)
        tensor([[0.0000, 0.6667, 2.0000]], dtype=torch.float64)
        >>> objective.hvp(at)["weight"].round(decimals=6)
        tensor([[0.6667, 1.3333, 2.6667]], dtype=torch.float64)
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor] | None,
        data: Any,
        *,
        chunk_size: int | None = None,
        device: str | torch.device = "auto",
        count: Callable[[Batch], float | torch.Tensor] | None = None,
        forward: Callable[[nn.Module, Batch], Any] | None = None,
        collate: Callable[[list[Any]], Batch] | None = None,
        allow: Collection[str] = (),
        group: distributed.ProcessGroup | Crew | None = None,
        initial: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Check model, loss and data on a few samples, and keep a copy of the trainable weights.

        The model's modules, frozen parameters and buffers are used as they stand and never changed. Modes count:
        dropout and BatchNorm in train mode are refused, with the remedy in the message.

        Args:
            model: the module that is tuned.
            loss: callable(output, target) -> mean loss over the batch; None when `forward` returns the loss.
            data: (inputs, targets), a map-style Dataset, a DataLoader that visits each sample once, or Samples.
            chunk_size: samples evaluated at once; None measures a few sizes at the first evaluation.
            device: where to compute; `auto` stays where the model is, or takes a GPU where there is one.
            count: callable(batch) -> weight of the batch in the mean; by default its number of samples.
            forward: callable(model, batch) -> output, for batches that are not (inputs, target).
            collate: makes a batch of a list of samples; by default the loader's own or PyTorch's.
            allow: checks to switch off: `dropout`, `batchnorm`, `augmentation`, `count`.
            group: processes that share every pass over the data: all of them make the same calls.
            initial: the trainable weights, in memory that nothing changes; by default they are copied.

        Raises:
            TvgradError: no trainable parameters, or spread ones, empty data, a loss that is no finite scalar, an absent
                device, one of the things that `tvgrad.problem.checks` refuses, or processes with different models or
                data.
        """
        self._sharded = sharded_modules(model)
        require_whole(self._sharded)
        trainable_parameters(model)
        if chunk_size is not None and chunk_size < 1:
            raise TvgradError(f"the chunk size must be at least 1, not {chunk_size}")
        self.device = resolve_device(device, model)
        self.home = next(iter(model.parameters())).device
        with torch.inference_mode(False):
            if any(parameter.device != self.device for parameter in model.parameters()):
                model = copy.deepcopy(model).to(self.device)
            self._initial = weights_of(model) if initial is None else _as_held(initial, trainable_parameters(model))
        self._is_part = False
        self.samples = fitted(data if isinstance(data, Samples) else Samples(data, collate), model, forward)
        self._all_samples = self.samples
        self.allowed = tuple(sorted(set(allow)))
        self.evaluations = Evaluations()
        self._batch_loss = BatchLoss(model, loss, forward, count)
        self._chunk_size = chunk_size
        self._product_chunk: int | None = None
        self._ranks = ranks_of(group, self.device)
        with self._ranks.together():
            check_problem(self._batch_loss, self.samples, self.device, self.allowed)
        self._chunk_size = self._ranks.agreed(
            chunk_size, self._initial, self.samples, lambda: self.chunk_size, self._first_loss
        )

    def __repr__(self) -> str:
        facts = ", ".join(f"{value:,} {name}" for name, value in self._facts().items())
        return f"Objective({type(self.model).__name__}, {facts})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return facts_html(f"Objective of {type(self.model).__name__}", self._facts())

    def _facts(self) -> dict[str, int]:
        return {
            "samples": len(self.samples),
            "trainable parameters": sum(one.numel() for one in self.initial.values()),
            "gradients so far": self.evaluations.gradients,
        }

    @property
    def model(self) -> nn.Module:
        """The model; on another device than the caller's, a copy of it."""
        return self._batch_loss.model

    @property
    def batch_loss(self) -> BatchLoss:
        """Model and loss as one module, for callers that drive a copy of them."""
        return self._batch_loss

    @property
    def initial(self) -> Weights:
        """The trainable weights at construction, where the caller's model lies."""
        return {name: tensor.to(self.home) for name, tensor in self._initial.items()}

    @property
    def chunk_size(self) -> int:
        """Samples that are evaluated at once, measured when it was not given."""
        if self._chunk_size is None:

            def evaluate(size: int) -> float:
                chunk = self.samples.batch(0, size, self.device)
                return timed(lambda: self._chunk_gradient(self._initial, chunk)[1])

            with full_precision(self.device), translate_errors():
                self._chunk_size = fastest_chunk_size(evaluate, len(self.samples))
        return self._chunk_size

    def use_chunk_size(self, size: int | None) -> None:
        """Fix the chunk size, on which the last bits of a sum depend.

        Args:
            size: samples evaluated at once; None leaves it as it is.
        """
        self._chunk_size = size or self._chunk_size

    def subset(self, indices: Sequence[int] | torch.Tensor) -> Objective:
        """The same objective on some of the samples: a mini-batch, say.

        Args:
            indices: positions in the data, in the order wanted.

        Returns:
            An objective that shares the model, the weights, the chunk size and the count of evaluations. Of samples
            without weight (all their tokens ignored) its loss is a NaN and its derivatives are 0, as PyTorch's are.
        """
        view = copy.copy(self)
        view._chunk_size = self.chunk_size  # measured once here, not once for every mini-batch
        view.samples = self.samples.subset(indices)
        view._is_part = True
        view._ranks = Alone()  # a mini-batch is too little to share: every process goes over it
        return view

    def value(self, at: Mapping[str, torch.Tensor] | None = None) -> float:
        """Compute the full-batch loss.

        Args:
            at: weights; by default those at construction.

        Returns:
            The mean loss.
        """
        weights = self._check(at)
        divisor = 0.0
        with self._ranks.together("value", self.chunk_size, weights), full_precision(self.device), torch.no_grad():
            total = torch.zeros((), dtype=torch.float64, device=self.device)
            for chunk, weight in self._chunks():
                total += weight * self._loss(weights, chunk).double()
                divisor += weight
        self.evaluations.values += 1
        value, divisor = self._ranks.add_up([], float(total), divisor)
        return self._over(value, divisor)

    def _over(self, total: float, weight: float) -> float:
        """A mean loss; of a part of the data without weight there is none."""
        return math.nan if self._is_part and weight == 0 else total / nonzero(weight)

    def gradient(self, at: Mapping[str, torch.Tensor] | None = None) -> Weights:
        """Compute the full-batch gradient.

        Args:
            at: weights; by default those at construction.

        Returns:
            Name -> tensor in the parameter's dtype, accumulated in float64, where the caller's model lies.
        """
        return self.value_and_gradient(at)[1]

    def value_and_gradient(self, at: Mapping[str, torch.Tensor] | None = None) -> tuple[float, Weights]:
        """Compute the full-batch loss and its gradient in one pass.

        Args:
            at: weights; by default those at construction.

        Returns:
            The mean loss, and name -> gradient.

        Raises:
            TvgradError: a chunk does not fit the memory.
            UnsupportedModel: at the first evaluation, a gradient that depends on how the data is cut into chunks.
        """  # noqa: DOC502 - raised by the checks
        weights = self._check(at)
        # The last bits of what is recorded belong to one chunk size: it does not change in a run.
        return within_memory(lambda _: self._value_and_gradient(weights), self.chunk_size, shrinks=False)[0]

    def _value_and_gradient(self, weights: Weights) -> tuple[float, Weights]:
        sums = WeightedSum(weights, single=len(self.samples) <= self.chunk_size)
        with (
            self._ranks.together("gradient", self.chunk_size, weights),
            full_precision(self.device),
            translate_errors(),
        ):
            if self.evaluations.gradients == 0 and not self._cut:
                check_chunks(self._batch_loss, self._all_samples, self.device, self.chunk_size)
            total = torch.zeros((), dtype=torch.float64, device=self.device)
            for chunk, weight in self._chunks():
                gradient, value = self._chunk_gradient(weights, chunk)
                sums.add(gradient, weight)
                total += weight * value.double()
                del gradient  # before the next chunk's is made
        self.evaluations.gradients += 1
        (loss,) = self._ranks.add_up([sums], float(total))
        return self._over(loss, sums.weight), sums.mean(self.home, empty=self._is_part)

    def hvp(self, vector: Mapping[str, torch.Tensor], at: Mapping[str, torch.Tensor] | None = None) -> Weights:
        """Multiply the full-batch Hessian with a vector.

        Args:
            vector: name -> tensor, shaped like the weights.
            at: weights; by default those at construction.

        Returns:
            Name -> tensor in the parameter's dtype, accumulated in float64.
        """
        return self.hvps([vector], at)[0]

    def hvps(
        self, vectors: Sequence[Mapping[str, torch.Tensor]], at: Mapping[str, torch.Tensor] | None = None
    ) -> list[Weights]:
        """Multiply the full-batch Hessian with several vectors, sharing one graph per chunk.

        Double backward: the graph of each chunk's gradient is built once and walked once for each vector, which costs
        about half of separate products. Attention runs under the MATH kernel, the only one with second derivatives.
        Where the memory does not suffice for a chunk of the gradient's size, products are taken of half as many
        samples, and so on; not where processes share the passes, or gradients belong to one way to cut the data.

        Args:
            vectors: name -> tensor, shaped like the weights.
            at: weights; by default those at construction.

        Returns:
            One product for each vector, in the parameter's dtype, where the caller's model lies.

        Raises:
            TvgradError: not even one sample's products fit the memory.
        """  # noqa: DOC502 - raised by within_memory
        weights = self._check(at)
        directions = [self._check(vector) for vector in vectors]
        if not directions:
            return []
        size = min(self.chunk_size, self._product_chunk or self.chunk_size)
        products, self._product_chunk = within_memory(
            lambda size: self._products(weights, directions, size), size, type(self._ranks) is Alone and not self._cut
        )
        return products

    @property
    def _cut(self) -> bool:
        """Whether derivatives depend on how the data is cut into chunks."""
        return bool(set(self.allowed) & BATCH_DEPENDENT)

    def _products(self, weights: Weights, directions: Sequence[Weights], size: int) -> list[Weights]:
        sums = [WeightedSum(weights) for _ in directions]
        share = self._ranks.together("hvps", self.chunk_size, weights, directions)
        with share, full_precision(self.device, second_order=True), translate_errors():
            for chunk, weight in self._chunks(size):
                self._add_chunk_hvps(weights, directions, chunk, sums, weight)
        self.evaluations.hvps += len(directions)
        self._ranks.add_up(sums)
        return [accumulated.mean(self.home, empty=self._is_part) for accumulated in sums]

    def hessian_operator(self, at: Mapping[str, torch.Tensor] | None = None) -> LinearOperator:
        """The full-batch Hessian as an operator of scipy, for its eigenvalue solvers and for estimators of a trace.

        Vectors are flat and in float64; their coordinates are those of the trainable parameters, in the model's order
        (`tvgrad.vectors.algebra.flatten`). A product has the precision of the parameters' dtype.

        Args:
            at: weights; by default those at construction. They are copied.

        Returns:
            A symmetric operator; a matrix of columns is multiplied with one graph for each chunk of the data.

        Raises:
            TvgradError: in a product, where the Hessian is not finite.

        Examples:
            >>> import torch, tvgrad
            >>> from scipy.sparse.linalg import eigsh
            >>> inputs = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).double()
            >>> model = torch.nn.Linear(3, 1, bias=False).double()
            >>> objective = tvgrad.Objective(model, torch.nn.MSELoss(), (inputs, torch.zeros(3, 1).double()))
            >>> operator = objective.hessian_operator()
            >>> operator.shape
            (3, 3)
            >>> round(float(eigsh(operator, k=1, which="LA", return_eigenvectors=False)[0]), 6)
            6.0
        """  # noqa: DOC502 - raised by the product
        weights = {name: tensor.clone() for name, tensor in self._check(at).items()}
        return operator_of(lambda vectors: self.hvps(vectors, weights), weights)

    def _chunk_gradient(self, weights: Weights, chunk: Batch) -> tuple[Weights, torch.Tensor]:
        """Gradient and loss of a chunk."""
        # torch.autograd.grad was faster than torch.func.grad (2 % on an MLP, 10 % on a ViT), peaked at 0.6 to 0.8 of
        # its memory, and works with gradient checkpointing.
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}

        def differentiate(loss: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
            return gradients(loss, tuple(leaves.values())), loss.detach()

        parts, value = self._loss(leaves, chunk, differentiate)
        return dict(zip(leaves, parts, strict=True)), value

    def _add_chunk_hvps(
        self, weights: Weights, directions: Sequence[Weights], chunk: Batch, sums: Sequence[WeightedSum], weight: float
    ) -> None:
        """Add a chunk's products to the sums, one at a time, from one graph."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
        self._loss(leaves, chunk, lambda loss: add_products(loss, leaves, directions, sums, weight))


def require_objective(given: object) -> None:
    """Refuse what is no objective, in words for those who pass something else.

    Args:
        given: what was passed.

    Raises:
        TvgradError: it is none.
    """
    if not isinstance(given, Objective):
        raise TvgradError(
            f"a {type(given).__name__} is no objective: pass recipe.objective(), or tvgrad.Objective(model, loss, data)"
        )


def _as_held(initial: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]) -> Weights:
    """Weights on the device and in the dtype of a model's, copied only where they are not."""
    return {name: initial[name].detach().to(one.device, one.dtype) for name, one in parameters.items()}
