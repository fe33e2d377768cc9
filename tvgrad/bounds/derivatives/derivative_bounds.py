"""Upper bounds on the derivatives of a feed-forward network's mean loss, at its weights and over a ball round them.

Each number is the least of all arguments that apply: worst case from norms (`worst_case`), local from the samples' own
Jacobians (`local`), and exact at the centre plus what the ball adds.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from tvgrad.bounds.activations.smooth import Activation, OutsideValidity
from tvgrad.bounds.derivatives.local import LocalBounds
from tvgrad.bounds.derivatives.sample_norms import SQUARINGS, SampleNorms, chosen, grouped, measure, merged
from tvgrad.bounds.derivatives.uniform_bounds import UniformBounds, uniform_bounds
from tvgrad.bounds.derivatives.worst_case import LayerBounds, worst_case
from tvgrad.bounds.losses.base import Loss
from tvgrad.bounds.losses.registry import loss_of
from tvgrad.bounds.network.network import Network, UnsupportedNetwork
from tvgrad.bounds.reading.arguments import check_norms, check_radius, check_samples
from tvgrad.bounds.reading.matrix_reader import read_matrices
from tvgrad.bounds.reading.module_reader import read_module
from tvgrad.bounds.rounding import passes
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.bounds.rounding.passes import Pass
from tvgrad.errors import TvgradError
from tvgrad.numerics.floats import FEW_OPERATIONS_MARGIN, gamma, own_copy, round_up, upper_norm

if TYPE_CHECKING:
    from typing_extensions import Self

QUICK_SQUARINGS = 0  # round a path, where a larger bound only widens a thin tube
_OWN = ("network", "loss", "inputs", "input_norms", "targets", "_chunk_size", "_target_norm")


class DerivativeBounds:
    """A feed-forward network with its loss and data, as the bounds see it: exact functions of float64 weights.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from tvgrad.bounds import DerivativeBounds
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> bounds = DerivativeBounds(model, torch.randn(8, 4), torch.arange(8) % 2)
        >>> 0 < bounds.gradient_norm() < bounds.gradient_norm(radius=0.1) < bounds.closed_form(0.1).gradient_norm
        True

    Attributes:
        network: the layers.
        loss: the loss as a function of the logits.
        inputs: (n, features) float64, or None where only norms are known.
        targets: as the loss takes them, or None for bounds that hold whatever the targets are.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: torch.Tensor,
        targets: torch.Tensor | None = None,
        loss: str | nn.Module | Loss = "cross_entropy",
        chunk_size: int | None = None,
    ) -> None:
        """Read a module; nothing in it is changed, and later changes to it are not seen.

        Args:
            module: Linear layers, convolutions, average pooling, Flatten, smooth activations, BatchNorm in eval mode,
                and sums of two tensors; a copy is run, and what it does is read.
            inputs: the samples, (n, ...).
            targets: the targets, or None for bounds that hold whatever they are.
            loss: `cross_entropy`, `bce`, `mse`, `mse_half`, or a loss module.
            chunk_size: samples measured at once; None keeps the largest tensor at some 8 MB.

        Raises:
            TvgradError: the loss or the data is not one for which bounds are known.
            UnsupportedNetwork: nor is a part of the model.
        """
        check_samples(inputs, targets)
        network = read_module(module, inputs.detach())
        self._set(network, own_copy(inputs).flatten(1), None, targets, loss, chunk_size)

    @classmethod
    def from_matrices(
        cls,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None] | None,
        activation: str | nn.Module | Activation,
        input_norms: torch.Tensor | Sequence[float] | float,
        loss: str | nn.Module | Loss = "cross_entropy",
        targets: torch.Tensor | None = None,
        target_norm: float = 0.0,
        trainable: Sequence[bool] | None = None,
        skips: Sequence[tuple[int, int]] = (),
    ) -> Self:
        """Put a network together from matrices, with nothing known of the data but norms.

        Args:
            weights: W_1 .. W_L, each (outputs, inputs).
            biases: b_1 .. b_L, or None where there is none.
            activation: what stands between the layers.
            input_norms: of the samples; one number stands for all, unless the loss is a sum over the samples.
            loss: as for the constructor.
            targets: one for each input norm, or None for any targets.
            target_norm: without targets, the largest norm of one, for losses that grow with it.
            trainable: for each layer, whether it is trained; None: all are.
            skips: residual blocks, as pairs (k, l) with k <= l: what enters layer k (from 1) is added to what layer l
                computes, before its activation.

        Returns:
            A network with worst-case bounds.

        Raises:
            TvgradError: the loss is summed over samples whose number is not known.

        Examples:
            >>> import torch
            >>> from tvgrad.bounds import DerivativeBounds
            >>> bounds = DerivativeBounds.from_matrices([torch.eye(2), torch.ones(1, 2)], None, "tanh", input_norms=1.0)
            >>> round(bounds.hessian_norm(), 3), bounds.hessian_norm() < bounds.hessian_norm(radius=0.1)
            (3.874, True)
        """
        made = cls.__new__(cls)
        network = read_matrices(weights, biases, activation, trainable, skips)
        norms = own_copy(torch.as_tensor(input_norms))
        if norms.ndim == 0 and loss_of(loss).reduction == "sum":
            raise TvgradError("a summed loss grows with the number of samples: give one input norm for each of them")
        made._set(network, None, torch.atleast_1d(norms), targets, loss, None, target_norm)
        return made

    def _set(
        self,
        network: Network,
        inputs: torch.Tensor | None,
        input_norms: torch.Tensor | None,
        targets: torch.Tensor | None,
        loss: str | nn.Module | Loss,
        chunk_size: int | None,
        target_norm: float = 0.0,
    ) -> None:
        if inputs is not None:
            if inputs.shape[1] != network.inputs:
                raise UnsupportedNetwork(
                    f"the inputs have {inputs.shape[1]} features and the first layer takes {network.inputs}: "
                    "give data of the model's shape"
                )
            input_norms = upper_norm(inputs, gamma(inputs.shape[1] + 8))
        input_norms = check_norms(input_norms, chunk_size)
        self.network = network
        self.loss = copy.deepcopy(loss_of(loss))
        self.inputs = inputs
        self.input_norms = input_norms
        self.targets = None
        if targets is not None:
            self.targets = self.loss.check(targets.detach().cpu().clone(), len(input_norms), network.outputs)
            self.loss.divisor(self.targets)  # refuses targets that have none
        self._chunk_size = chunk_size
        self._target_norm = target_norm
        self._squarings = SQUARINGS
        self._known: dict[tuple[str, float, bool], LayerBounds] = {}
        self._kept: list[Pass] | None = None
        self._whole: tuple[Self, torch.Tensor] | None = None

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(self.input_norms)

    @property
    def has_data(self) -> bool:
        """Whether samples and targets are known, so that local bounds exist."""
        return self.inputs is not None and self.targets is not None

    def at(self, flat: torch.Tensor) -> Self:
        """The same loss and data round other weights.

        Args:
            flat: trainable parameters, like `network.flat`.

        Returns:
            A new problem.
        """
        moved = self._copy(QUICK_SQUARINGS)
        moved.network = self.network.at(flat)
        return moved

    def rough(self) -> Self:
        """The same problem, to be measured quickly and less tightly, or this one where it is measured already.

        Returns:
            A problem.
        """
        return self if "_measured" in self.__dict__ else self._copy(QUICK_SQUARINGS)

    def on(self, positions: torch.Tensor) -> Self:
        """The loss of some of the samples; what was measured of each of them is not measured again.

        Args:
            positions: of the samples, (b,).

        Returns:
            A new problem.
        """
        inputs, targets = self.data()
        part = self._copy(self._squarings)
        part.inputs, part.input_norms, part.targets = inputs[positions], self.input_norms[positions], targets[positions]
        part._whole = self, positions
        return part

    def _copy(self, squarings: int) -> Self:
        made = type(self).__new__(type(self))
        made.__dict__ |= {name: self.__dict__[name] for name in _OWN} | {"_known": {}, "_kept": None, "_whole": None}
        made._squarings = squarings
        return made

    def worst_case(self, radius: float = 0.0, third: bool = True) -> LayerBounds:
        """Bounds from norms alone, averaged over the samples.

        Args:
            radius: of the ball.
            third: whether third derivatives are wanted.

        Returns:
            The bounds, layer by layer.
        """
        norms = self.input_norms if self.targets is not None else self.input_norms.max()[None]
        of = self.network, self.loss, norms, self.targets
        rest = self._target_norm, self.samples
        return self._remembered("worst case", radius, third, lambda ball: worst_case(*of, ball, third, *rest))

    def local(self, radius: float = 0.0, third: bool = True) -> LayerBounds:
        """Bounds from the samples' own Jacobians.

        Args:
            radius: of the ball.
            third: whether third derivatives are wanted.

        Returns:
            The bounds, layer by layer.
        """
        return self._remembered("local", radius, third, lambda ball: self._local_bounds.over(ball, third))

    def _remembered(self, kind: str, radius: float, third: bool, make: Callable[[float], LayerBounds]) -> LayerBounds:
        radius = check_radius(radius)
        found = self._known.get((kind, radius, True)) or self._known.get((kind, radius, third))
        if found is None:
            found = self._known[kind, radius, third] = make(radius)
        return found

    @cached_property
    def _measured(self) -> list[SampleNorms]:
        if self._whole is not None:  # the samples were measured among others
            whole, positions = self._whole
            return [chosen(merged(whole._measured), positions)]
        found = measure(self.network, self.loss, *self.data(), self._chunk_size, self._squarings)
        return list(found) if self._chunk_size is not None else grouped(found)

    @cached_property
    def _divisor(self) -> float:
        return self.loss.divisor(self.data()[1])

    def data(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The samples and targets.

        Returns:
            Both.

        Raises:
            TvgradError: they are not known.
        """
        if self.inputs is None or self.targets is None:
            raise TvgradError("this needs samples and their targets: build FeedForward(module, inputs, targets)")
        return self.inputs, self.targets

    @cached_property
    def gradient(self) -> BoundedVector:
        """The gradient at the centre, with its rounding error."""
        return passes.gradient(self.network, self._passes(), self._divisor)

    def products(self, directions: list[torch.Tensor]) -> list[BoundedVector]:
        """Hessian-vector products at the centre, with their rounding errors.

        Args:
            directions: vectors like `network.flat`, taken as exact.

        Returns:
            One product for each direction.
        """
        return passes.products(self.network, self._passes(), directions, self._divisor)

    def twice_along(self, direction: torch.Tensor) -> BoundedVector:
        """The third derivative at the centre with one direction in two of its slots, with its rounding error.

        Args:
            direction: a vector like `network.flat`, taken as exact.

        Returns:
            The vector `D3[., d, d]`, averaged over the samples before anything is bounded.
        """
        return passes.twice_along(self.network, self._passes(), direction, self._divisor)

    def third_changes(self, radius: float) -> LayerBounds:
        """Bound how much the third derivative changes over a ball, layer by layer.

        Args:
            radius: of the ball.

        Returns:
            Bounds of its blocks' change: see `LocalBounds.third_changes`.
        """
        return self._remembered("third changes", radius, True, self._local_bounds.third_changes)

    @cached_property
    def _local_bounds(self) -> LocalBounds:
        return LocalBounds(self.network, self.loss, self._measured, self._divisor)

    def _passes(self) -> Iterable[Pass]:
        """Passes over the data; kept for the next call where one chunk holds all of it."""
        if self._kept is None:
            inputs, targets = self.data()
            found = passes.passes(self.network, self.loss, inputs, targets, self._chunk_size)
            first = list(itertools.islice(found, 1))
            if first[0].samples < self.samples:
                return itertools.chain(first, found)
            self._kept = first
        return self._kept

    def _applicable(self, radius: float, third: bool) -> list[LayerBounds]:
        """What each argument says that holds on the ball."""
        found, reason = list[LayerBounds](), None
        for argument in (self.worst_case, self.local) if self.has_data else (self.worst_case,):
            try:
                found.append(argument(radius, third))
            except OutsideValidity as why:
                reason = why
        if reason is not None and not found:
            raise reason
        return found

    def gradient_norm(self, radius: float = 0.0) -> float:
        """Bound the norm of the mean loss's gradient.

        Args:
            radius: of the ball round the weights, in the trainable parameters.

        Returns:
            An upper bound, anywhere in the ball.

        Raises:
            OutsideValidity: an activation is another function somewhere in the ball.
        """  # noqa: DOC502 - raised by the network
        found = [bounds.gradient_norm for bounds in self._applicable(radius, third=False)]
        if self.has_data:
            found.append(self.gradient.upper + round_up(radius * self.hessian_norm(radius), FEW_OPERATIONS_MARGIN))
        return min(found)

    def hessian_norm(self, radius: float = 0.0) -> float:
        """Bound the spectral norm of the mean loss's Hessian.

        Args:
            radius: of the ball.

        Returns:
            An upper bound, anywhere in the ball.

        Raises:
            OutsideValidity: an activation is another function somewhere in the ball.
        """  # noqa: DOC502 - raised by the network
        return min(bounds.hessian_norm for bounds in self._applicable(radius, third=False))

    def hessian_lipschitz(self, radius: float = 0.0) -> float:
        """Bound the Lipschitz constant of the mean loss's Hessian.

        Args:
            radius: of the ball.

        Returns:
            An upper bound of `||H(a) - H(b)||_2 / ||a - b||` for all a, b in the ball.

        Raises:
            OutsideValidity: as for `gradient_norm`.
        """  # noqa: DOC502 - raised by the network
        return min(bounds.hessian_lipschitz for bounds in self._applicable(radius, third=True))

    def closed_form(self, radius: float = 0.0) -> UniformBounds:
        """The uniform bound: worst-case recursion at the largest input norm and with any targets, for comparison.

        Args:
            radius: of the ball.

        Returns:
            Three upper bounds.
        """
        known = self.input_norms, self.targets, self._target_norm
        return uniform_bounds(self.network, self.loss, *known, check_radius(radius))
