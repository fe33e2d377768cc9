"""Outputs: what a model says of every sample, and how that changes along a direction in parameter space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from tvgrad.errors import UnsupportedModel
from tvgrad.numerics.autograd import refuse_broken_graph, translate_errors
from tvgrad.numerics.precision import full_precision
from tvgrad.problem.batch_loss import size_of
from tvgrad.problem.passes import Passes
from tvgrad.problem.samples import Batch
from tvgrad.vectors.parameters import Weights


class Outputs(Passes):
    """The model's outputs over the whole data, in the order of the samples.

    Processes that share passes over the data do not share these: each of them goes over all samples.
    """

    def outputs(self, at: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Compute the model's output for every sample.

        Args:
            at: weights; by default those at construction.

        Returns:
            Shape (samples, ...), in the output's dtype, where the caller's model lies.

        Raises:
            TvgradError: the output is no tensor with one row a sample (an entry or attribute `logits` is taken for it).

        Examples:
            >>> import torch, tvgrad
            >>> model = torch.nn.Linear(2, 1, bias=False).double()
            >>> objective = tvgrad.Objective(model, torch.nn.MSELoss(), (torch.eye(2).double(), torch.ones(2, 1).double()))
            >>> objective.outputs({"weight": torch.tensor([[3.0, 5.0]])}).tolist()
            [[3.0], [5.0]]
        """  # noqa: DOC502, E501 - raised by rows_of; a doctest
        weights = self._check(at)
        found = []
        for _, chunk in self._batches(self.chunk_size):
            with full_precision(self.device), torch.no_grad():
                count = size_of(chunk)
                found.append(self._output(weights, chunk, lambda output: rows_of(output, count)))  # noqa: B023
        self.evaluations.values += 1
        return _joined(found).to(self.home)

    def jvp(self, vector: Mapping[str, torch.Tensor], at: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        r"""Compute the derivative of every sample's output along a direction: $J(\theta) v$.

        Forward mode, at about the cost of two forward passes; for models whose operations lack it, by differentiating
        a product with the transposed Jacobian.

        Args:
            vector: name -> tensor, shaped like the weights.
            at: weights; by default those at construction.

        Returns:
            Shape (samples, ...), in the output's dtype, where the caller's model lies.

        Raises:
            TvgradError: the output is no tensor with one row a sample.

        Examples:
            >>> import torch, tvgrad
            >>> model = torch.nn.Linear(2, 1, bias=False).double()
            >>> objective = tvgrad.Objective(model, torch.nn.MSELoss(), (torch.eye(2).double(), torch.ones(2, 1).double()))
            >>> objective.jvp({"weight": torch.tensor([[1.0, -2.0]])}).tolist()
            [[1.0], [-2.0]]
        """  # noqa: DOC502, E501 - raised by rows_of; a doctest
        weights, direction = self._check(at), self._check(vector)
        found = []
        for _, chunk in self._batches(self.chunk_size):
            with full_precision(self.device, second_order=True), translate_errors():
                try:
                    part = self._forward_mode(weights, direction, chunk)
                except RuntimeError:  # an operation without forward mode, or checkpointed activations
                    part = self._twice_backward(weights, direction, chunk)
            found.append(part.detach())
        self.evaluations.jvps += 1
        return _joined(found).to(self.home)

    def _forward_mode(self, weights: Weights, direction: Weights, chunk: Batch) -> torch.Tensor:
        def outputs(point: Weights) -> torch.Tensor:
            return torch.as_tensor(self._output(point, chunk, lambda output: rows_of(output, size_of(chunk))))

        found: torch.Tensor = torch.func.jvp(outputs, (weights,), (direction,))[1]
        return found

    def _twice_backward(self, weights: Weights, direction: Weights, chunk: Batch) -> torch.Tensor:
        """`J v` is the derivative by u of `<J' u, v>`."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}

        def differentiate(output: Any) -> torch.Tensor:
            rows = rows_of(output, size_of(chunk))
            if not rows.requires_grad:
                return torch.zeros_like(rows)
            probe = torch.zeros_like(rows, requires_grad=True)
            parts = torch.autograd.grad(rows, tuple(leaves.values()), probe, create_graph=True, materialize_grads=True)
            refuse_broken_graph(parts)
            curved = [(part, direction[name]) for name, part in zip(leaves, parts, strict=True) if part.requires_grad]
            return torch.autograd.grad(
                [part for part, _ in curved], probe, [given.to(part.dtype) for part, given in curved]
            )[0]

        return torch.as_tensor(self._output(leaves, chunk, differentiate))

    def _batches(self, size: int | Callable[[], int]) -> Iterator[tuple[int, Batch]]:
        """Every chunk with its first position, those without weight in the mean too; sizes may change on the way."""
        start = 0
        while start < len(self.samples):
            count = size if isinstance(size, int) else size()
            chunk = self.samples.batch(start, start + count, self.device)
            with self._noise(start):
                yield start, chunk
            start += count


def rows_of(output: Any, count: int) -> torch.Tensor:
    """Find the tensor in a model's output.

    Args:
        output: a tensor, or something with an entry or attribute `logits`.
        count: of samples.

    Returns:
        It.

    Raises:
        UnsupportedModel: there is none with one row a sample.
    """
    found = output
    if not isinstance(found, torch.Tensor):
        found = found.get("logits") if isinstance(found, Mapping) else getattr(output, "logits", None)
    if not isinstance(found, torch.Tensor):
        raise UnsupportedModel(
            f"the model's output is a {type(output).__name__}: pass a forward(model, batch) that returns a tensor with "
            "one row a sample, and the loss apart from it"
        )
    if found.ndim == 0 or len(found) != count:
        raise UnsupportedModel(
            f"the model's output has shape {tuple(found.shape)} for {count} samples: outputs need one row a sample "
            "(where forward returns the loss itself, pass loss and forward apart)"
        )
    return found


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        one, other = sorted(shapes)[:2]
        raise UnsupportedModel(
            f"outputs of different shapes ({one} and {other}) fit into no tensor: pad all samples to one length"
        )
    return torch.cat(parts)
