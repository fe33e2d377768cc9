"""SampleGradients: the gradient of every single sample's loss, and what is made of their squares and of layers' inputs.

How a chunk's gradients are kept apart by sample is in `sample_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import torch

from tvgrad.errors import TvgradError, UnsupportedModel
from tvgrad.numerics.autograd import translate_errors
from tvgrad.numerics.precision import full_precision
from tvgrad.problem.batch_loss import size_of
from tvgrad.problem.layer_tape import LayerTape
from tvgrad.problem.likelihood import check_outputs, likelihood_of
from tvgrad.problem.outputs import Outputs
from tvgrad.problem.sample_rows import SampleRows
from tvgrad.problem.samples import Batch
from tvgrad.problem.weighted_sum import nonzero
from tvgrad.vectors.parameters import Weights

MOST_BYTES = 2**26
"""Of a chunk's gradients, unless a chunk size is given."""

Kind = Literal["exact", "sampled", "empirical"]
KINDS = ("exact", "sampled", "empirical")


class SampleGradients(Outputs):
    """Gradients of single samples over the data. Each process goes over all samples, whatever group it is in."""

    def sample_gradients(
        self, at: Mapping[str, torch.Tensor] | None = None, *, chunk_size: int | None = None
    ) -> Iterator[tuple[torch.Tensor, Weights]]:
        """Compute the gradient of every sample's loss, a chunk at a time.

        A sample's loss is that of a batch with it alone; their mean, weighed by `sample_weights`, is the full-batch
        loss. A sample without weight (all its tokens ignored) has no loss: its gradient is 0 here.

        Args:
            at: weights; by default those at construction.
            chunk_size: samples at once; by default as many as make 64 MiB of gradients, but no more than
                `chunk_size`.

        Returns:
            An iterator of (indices of the samples, name -> tensor of shape (samples of the chunk, *parameter)), in the
            parameter's dtype, where the caller's model lies.

        Raises:
            UnsupportedModel: the caller allowed a loss that is no mean over samples.

        Examples:
            >>> import torch, tvgrad
            >>> model = torch.nn.Linear(2, 1, bias=False).double()
            >>> objective = tvgrad.Objective(model, torch.nn.MSELoss(), (torch.eye(2).double(), torch.ones(2, 1).double()))
            >>> for indices, gradients in objective.sample_gradients({"weight": torch.tensor([[3.0, 5.0]])}):
            ...     print(indices.tolist(), gradients["weight"].tolist())
            [0, 1] [[[4.0, 0.0]], [[0.0, 8.0]]]
        """  # noqa: E501 - a doctest
        weights = self._check(at)
        self._refuse_mixed()
        return self._sample_gradients(weights, self._rows_at_once(weights) if chunk_size is None else chunk_size)

    def _sample_gradients(self, weights: Weights, size: int) -> Iterator[tuple[torch.Tensor, Weights]]:
        self.evaluations.sample_gradients += 1
        rows = SampleRows(self._loss, self._output, weights)
        for start, chunk, mass, single in self._sample_chunks(size):
            found: Weights = {}
            with full_precision(self.device, second_order=True), translate_errors():
                rows.visit(chunk, mass, single, found.update)
            yield torch.arange(start, start + len(mass)), {name: found[name].to(self.home) for name in weights}

    def _sample_chunks(
        self, size: int | Callable[[], int]
    ) -> Iterator[tuple[int, Batch, torch.Tensor, Callable[[int], Batch]]]:
        """Chunks with their first position, the weights of their samples, and each sample as a batch of its own."""
        for start, chunk in self._batches(size):

            def single(number: int, start: int = start) -> Batch:
                return self.samples.batch(start + number, start + number + 1, self.device)

            yield start, chunk, self._masses(start, start + size_of(chunk)), single

    def sample_weights(self) -> torch.Tensor:
        """Weigh every sample in the mean loss.

        Returns:
            Shape (samples,), in float64: 1 for each, or what `count` says of it alone.
        """
        return self._masses(0, len(self.samples)).cpu()

    def fisher_diagonal(
        self,
        at: Mapping[str, torch.Tensor] | None = None,
        kind: Kind = "exact",
        *,
        seed: int = 0,
    ) -> Weights:
        r"""Compute the mean over samples of the squared gradients of their losses: the diagonal of a Fisher matrix.

        - `exact`: expected over targets y that the model itself holds for likely,
          $\mathbb{E}_x \mathbb{E}_{y \sim p(y|x)} (\nabla \ell)^2$, a backward pass for each output;
        - `sampled`: with one such target drawn for every sample; its expectation is the exact one;
        - `empirical`: with the targets of the data, which is no Fisher matrix where the model is wrong.

        None of them squares the gradient of a batch. The mean is weighed as the loss is.

        Args:
            at: weights; by default those at construction.
            kind: which one.
            seed: of the draw.

        Returns:
            Name -> tensor in the parameter's dtype (float32 for float16), accumulated in float64.

        Raises:
            TvgradError: an unknown kind, or a loss or an output without a known distribution of targets.

        Examples:
            The gradient by $w$ of $\log(1 + e^{-w x})$ has the variance $x^2 q (1 - q)$, $q$ the probability.

            >>> import torch, tvgrad
            >>> model, x = torch.nn.Linear(1, 1, bias=False).double(), torch.tensor([[2.0]]).double()
            >>> objective = tvgrad.Objective(model, torch.nn.BCEWithLogitsLoss(), (x, torch.ones(1, 1).double()))
            >>> at_zero = {"weight": torch.zeros(1, 1)}
            >>> float(objective.fisher_diagonal(at_zero)["weight"])
            1.0
        """  # noqa: DOC502 - some raised below
        if kind not in KINDS:
            raise TvgradError(f"there is no Fisher diagonal called {kind!r}: choose from {', '.join(KINDS)}")
        weights = self._check(at)
        self._refuse_mixed()
        cotangents = None if kind == "empirical" else self._cotangents(kind, seed)
        sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in weights.items()}
        weight = 0.0
        rows = SampleRows(self._loss, self._output, weights)
        few = self._rows_at_once(weights)
        for _, chunk, mass, single in self._sample_chunks(lambda: self.chunk_size if rows.compact else few):
            with full_precision(self.device, second_order=True), translate_errors():
                for name, part in rows.squares(chunk, mass, single, cotangents).items():
                    sums[name] += part
            weight += float(mass.sum())
        self.evaluations.sample_gradients += 1
        divisor = nonzero(weight)
        # Squares of float16's numbers do not fit into float16: 1e-4 squared is 0 in it.
        kept = {name: torch.promote_types(tensor.dtype, torch.bfloat16) for name, tensor in weights.items()}
        return {name: sums[name].div_(divisor).to(self.home, dtype) for name, dtype in kept.items()}

    def gradient_magnitudes(self, at: Mapping[str, torch.Tensor] | None = None) -> Weights:
        r"""Compute the mean over samples of the magnitudes of their losses' gradients, coordinate by coordinate.

        It is $\mathbb{E} \lvert \nabla \ell_i \rvert$: what a small step along a coordinate changes in the loss of a
        sample, whatever the sign. The mean is weighed as the loss is.

        Args:
            at: weights; by default those at construction.

        Returns:
            Name -> tensor in the parameter's dtype, accumulated in float64.

        Examples:
            >>> import torch, tvgrad
            >>> model = torch.nn.Linear(1, 1, bias=False).double()
            >>> data = torch.ones(2, 1).double(), torch.tensor([[1.0], [-2.0]]).double()
            >>> objective = tvgrad.Objective(model, torch.nn.MSELoss(), data)
            >>> float(objective.gradient_magnitudes({"weight": torch.zeros(1, 1)})["weight"])  # of -2 and 4
            3.0
        """
        weights, masses = self._check(at), self.sample_weights()
        sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in weights.items()}
        for indices, gradients in self.sample_gradients(at):
            shares = masses[indices].to(self.home)
            for name, rows in gradients.items():
                if not bool((shares == 1).all()):
                    rows *= shares.reshape(-1, *(1 for _ in rows.shape[1:]))  # noqa: PLW2901 - in place, for memory
                # without a copy of the rows in float64
                sums[name] += torch.linalg.vector_norm(rows, 1, dim=0, dtype=torch.float64).to(self.device)
        divisor = nonzero(float(masses.sum()))
        return {name: sums[name].div_(divisor).to(self.home, tensor.dtype) for name, tensor in weights.items()}

    def _cotangents(self, kind: Kind, seed: int) -> Callable[[torch.Tensor], Iterable[torch.Tensor]]:
        """Gradients by the outputs whose squares add up to the expectation."""
        likelihood = likelihood_of(self._batch_loss.loss)
        generator = torch.Generator().manual_seed(seed)

        def found(outputs: torch.Tensor) -> Iterable[torch.Tensor]:
            check_outputs(likelihood, outputs)
            return likelihood.factors(outputs) if kind == "exact" else [likelihood.sampled(outputs, generator)]

        return found

    def gram_inputs(self, at: Mapping[str, torch.Tensor] | None = None) -> Weights:
        r"""Compute the Gram matrix of the inputs of every linear layer and convolution with a trainable weight.

        It is $\frac{1}{n} \sum_i X_i^\top X_i$, $X_i$ the inputs of the layer for sample i, one row a position; those
        of a convolution are patches, flattened as its kernels are. Every sample counts once, whatever its weight.

        Args:
            at: weights; by default those at construction.

        Returns:
            Name of the weight -> float64 tensor of shape (inputs, inputs), or (groups, inputs, inputs) for a
            convolution in groups. Layers that PyTorch runs as a part of a larger function (those of
            `nn.MultiheadAttention`) are not there.

        Examples:
            >>> import torch, tvgrad
            >>> model = torch.nn.Linear(2, 1).double()
            >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()
            >>> objective = tvgrad.Objective(model, torch.nn.MSELoss(), (x, torch.ones(2, 1).double()))
            >>> objective.gram_inputs()["weight"].tolist()
            [[5.0, 7.0], [7.0, 10.0]]
        """
        weights = self._check(at)
        found: Weights = {}
        for _, chunk in self._batches(self.chunk_size):
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
            names = {id(leaf): name for name, leaf in leaves.items()}
            with full_precision(self.device), torch.no_grad(), LayerTape(leaves, differentiate=False) as tape:
                self._output(leaves, chunk, lambda output: None)
                for one in tape.seen:
                    name, gram = names.get(id(one.use.weight)), one.use.gram()
                    if name is not None and gram is not None:
                        found[name] = found[name] + gram if name in found else gram
        self.evaluations.values += 1
        return {name: found[name].div_(len(self.samples)).to(self.home) for name in weights if name in found}

    def _refuse_mixed(self) -> None:
        if self.allowed:
            raise UnsupportedModel(
                f"single samples have no gradient of their own where {', '.join(self.allowed)} is allowed: make the "
                "loss a mean over samples at fixed weights (model.eval()), and allow nothing"
            )

    def _rows_at_once(self, weights: Weights) -> int:
        size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
        return max(1, min(self.chunk_size, MOST_BYTES // size))

    def _masses(self, start: int, stop: int) -> torch.Tensor:
        """Weights of samples in the mean."""
        if self._batch_loss.count is None:
            return torch.ones(stop - start, dtype=torch.float64, device=self.device)
        found = [self._batch_loss.weight(self.samples.batch(i, i + 1, self.device)) for i in range(start, stop)]
        return torch.tensor(found, dtype=torch.float64, device=self.device)
