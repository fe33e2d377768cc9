"""Program: bounds of the very program that PyTorch runs, and certificates of its training."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from torch import nn

from tvgrad.bounds.certificates.batches import Batches, steps_of
from tvgrad.bounds.certificates.certificate import Certificate
from tvgrad.bounds.certificates.coefficients import NoCertificate, coefficients_of
from tvgrad.bounds.certificates.verified_ball import LOCAL_ATTEMPTS
from tvgrad.bounds.program.adam_tube import AdamTube
from tvgrad.bounds.program.agreement import COMPARED, compare
from tvgrad.bounds.program.balls import Ball
from tvgrad.bounds.program.capture import LOSSES, LossFunction, capture
from tvgrad.bounds.program.closed import closed_form
from tvgrad.bounds.program.cross_entropy import RowsCrossEntropy
from tvgrad.bounds.program.cuts import cuts_of
from tvgrad.bounds.program.operation import UnsupportedProgram
from tvgrad.bounds.program.passes import ChunkPass
from tvgrad.bounds.program.point import PointBounds, Told, measure
from tvgrad.bounds.program.progress import MeasuringProgress, Shown
from tvgrad.bounds.program.tube import ProgramTube, plain_steps
from tvgrad.bounds.program.untouched import moving_coordinates
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.errors import TvgradError
from tvgrad.numerics.double_double import DoubleDouble
from tvgrad.numerics.floats import FEW_OPERATIONS_MARGIN, UNIT_ROUNDOFF, round_up
from tvgrad.problem.recipe import Recipe, positive_integer
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.rules import Adam

CHUNK_NUMBERS = 100_000  # in the largest tensor of a chunk, which then stays in the cache with its parts


MOST_PAIRS = 1_000_000
"""Pairs of an operation and a trainable tensor, of which each takes 2.3 kB for a few samples."""


class Program:
    """A model with its loss and data, as one program of real numbers: bounds on derivatives and on training.

    The loss is the mean over the samples of the program's loss of each sample alone.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from tvgrad.bounds import Program
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)).double()
        >>> inputs, targets = torch.eye(4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
        >>> program = Program(model, "cross_entropy", inputs, targets)
        >>> program.gradient_norm() <= program.gradient_norm(radius=0.01)
        True
        >>> certificate = program.certificate(0.01, epochs=3)
        >>> certificate.lower_bound <= certificate.error_bound <= 1.001 * certificate.lower_bound
        True

    Attributes:
        names: of the trainable parameters, in the order of the flat vector.
        inputs: the samples.
        targets: their targets.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | LossFunction,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        chunk_size: int | None = None,
    ) -> None:
        """Capture a program; weights and data are copied.

        Args:
            model: the model, in the mode that is meant (`eval` where it has dropout).
            loss: "cross_entropy", "mse", or a function or module of (output, targets) that is a mean over the samples.
            inputs: the samples, (n, ...), of real numbers or whole numbers.
            targets: their targets, (n, ...).
            chunk_size: samples at once; by default as many as the processor's cache holds.

        Raises:
            TvgradError: the data is empty, not finite, or does not fit.
            UnsupportedProgram: an operation has no bounds, or the loss is not a mean over the samples.
        """
        if isinstance(loss, str) and loss not in LOSSES:
            raise TvgradError(f"no loss is called {loss!r}: give one of {', '.join(LOSSES)}, or a function")
        self.inputs, self.targets = (_checked(name, one) for name, one in (("inputs", inputs), ("targets", targets)))
        if len(self.inputs) != len(self.targets):
            raise TvgradError(f"there are {len(self.inputs)} inputs and {len(self.targets)} targets: give one for each")
        captured = capture(model, LOSSES[loss] if isinstance(loss, str) else loss, self.inputs, self.targets)
        self._graph = captured.graph
        if not self._graph.trainable:
            raise UnsupportedProgram("no parameter of the program requires a gradient")
        pairs = len(self._graph.steps) * len(self._graph.trainable)
        if pairs > MOST_PAIRS:
            raise UnsupportedProgram(
                f"the model has {len(self._graph.steps):,} operations and {len(self._graph.trainable):,} trainable "
                f"tensors, and bounds keep numbers of each of these {pairs:,} pairs; at most {MOST_PAIRS:,} fit into "
                "memory: freeze tensors"
            )
        places = self._graph.names
        own = [places[place] for place in self._graph.trainable if places[place].startswith("loss.")]
        if own:
            raise UnsupportedProgram(f"the loss trains {own[0]}: freeze it, or make it a parameter of the model")
        self._tensors = [captured.tensors[name].clone() for name in places]
        self.names = tuple(places[place].removeprefix("model.") for place in self._graph.trainable)
        self._check_labels()
        self._chunk = chunk_size or max(1, CHUNK_NUMBERS // captured.largest)
        self._known: dict[float, PointBounds] = {}
        self._cuts: tuple[int, ...] = ()
        compare(captured.module, self.inputs, self.targets, self._roughly)
        self._cuts = cuts_of(self._graph, self._sizes(self._placed(precise=False)))

    @classmethod
    def of_recipe(cls, recipe: Recipe, weights: dict[str, torch.Tensor] | None = None) -> Program:
        """Capture a recipe's model, loss and training samples.

        Args:
            recipe: the task.
            weights: a complete state for the model; by default its own.

        Returns:
            The program.

        Raises:
            TvgradError: the recipe goes through its own forward or count, or the program is not supported.
        """
        if recipe.forward is not None or recipe.count is not None or recipe.loss is None:
            raise TvgradError(f"there are no bounds for {recipe.name}: its own forward or count is not known to them")
        batch = recipe.train.batch(0, len(recipe.train))
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TvgradError(f"there are no bounds for {recipe.name}: its batches are not (inputs, targets)")
        model = recipe.model
        if weights is not None:
            model = copy.deepcopy(model).double()
            model.load_state_dict(weights)
        return cls(model, recipe.loss, batch[0], batch[1])

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(self.inputs)

    @property
    def flat(self) -> torch.Tensor:
        """The trainable parameters as one float64 vector."""
        return torch.cat([self._tensors[place].flatten() for place in self._graph.trainable])

    def measure(
        self,
        theta: DoubleDouble | None = None,
        radius: float = 0.0,
        *,
        precise: bool = True,
        told: Told | None = None,
        positions: torch.Tensor | None = None,
    ) -> PointBounds:
        """Bound gradient and Hessian round some weights.

        Args:
            theta: trainable parameters like `flat`; by default those of the program.
            radius: of the ball on which the Hessian is bounded.
            precise: whether in double-double arithmetic.
            told: called with the number of samples after each chunk of them.
            positions: of the samples of a mini-batch; None: all samples.

        Returns:
            The gradient there with its error, and the bound of the Hessian's norm.
        """
        at_home = theta is None or (torch.equal(theta.hi, self.flat) and not bool(theta.lo.any()))
        if at_home and precise and not radius and positions is None:
            return self._at(radius, told)
        return self._measured(theta, radius, told, positions, precise=precise)

    def _measured(
        self,
        theta: DoubleDouble | None,
        radius: float,
        told: Told | None,
        positions: torch.Tensor | None = None,
        *,
        precise: bool,
    ) -> PointBounds:
        used = slice(None) if positions is None else positions
        tensors = self._placed(precise=precise)
        if theta is not None:
            start = 0
            for place in self._graph.trainable:
                shape = self._tensors[place].shape
                at = slice(start, start := start + shape.numel())
                zeros = torch.zeros(1, *shape, dtype=torch.float64)
                tensors[place] = Ball(theta.hi[at].reshape(1, *shape), theta.lo[at].reshape(1, *shape), zeros)
        data = self.inputs[used], self.targets[used]
        return measure(self._graph, tensors, *data, radius, self._chunk, self._cuts, told)

    def _at(self, radius: float, told: Told | None = None) -> PointBounds:
        radius = float(radius)
        if not 0 <= radius < math.inf:
            raise TvgradError(f"a ball's radius must be a finite number of at least 0, not {radius!r}")
        if radius not in self._known:
            self._known[radius] = self._measured(None, radius, told, precise=True)
        elif told is not None:
            told(self.samples)
        return self._known[radius]

    @property
    def gradient(self) -> BoundedVector:
        """The gradient of the mean loss at the weights, with a bound on its error."""
        found = self._at(0.0)
        rounding = UNIT_ROUNDOFF * float(found.gradient.hi.norm())
        return BoundedVector(found.gradient.hi, round_up(found.error + rounding))

    def gradient_norm(self, radius: float = 0.0) -> float:
        """Bound the norm of the mean loss's gradient.

        Args:
            radius: of the ball round the weights, in the trainable parameters.

        Returns:
            An upper bound, anywhere in the ball; infinity where none is found.
        """
        if not radius:
            return self.gradient.upper
        return self.gradient.upper + round_up(radius * self.hessian_norm(radius), FEW_OPERATIONS_MARGIN)

    def hessian_norm(self, radius: float = 0.0) -> float:
        """Bound the spectral norm of the mean loss's Hessian.

        Args:
            radius: of the ball.

        Returns:
            An upper bound, anywhere in the ball; infinity where none is found.
        """
        return self._at(radius).hessian_norm

    def certificate(
        self,
        rule: UpdateRule | float,
        epochs: int,
        simulate: bool = True,
        *,
        batches: Batches | None = None,
        progress: Shown | None = None,
    ) -> Certificate:
        """Bound the error of the first-order prediction of a task vector, before training, from both sides.

        The training is followed in double-double arithmetic, and the exact iterates are proven to be near: see
        `program.tube`, and `program.adam_tube` for Adam, where the prediction is Adam followed on the first gradient
        alone. The form that knows the pretrained weights alone is that of `program.closed`; it has no lower bound.

        Args:
            rule: a linear rule, Adam or AdamW making one step an epoch, or the learning rate of gradient descent.
            epochs: k.
            simulate: whether the training may be followed; without it the pretrained weights alone are used, which
                costs a measurement for each radius that is tried and holds for far smaller rates.
            batches: for each epoch, the positions of the samples of each step, in order; None: one step an epoch on
                all samples. The prediction uses the gradient of all samples.
            progress: called with how many samples are measured and how many there will be. A certificate that takes
                more than five minutes warns, after the first samples, how long it takes.

        Returns:
            The bounds.

        Raises:
            NoCertificate: there are none; says which step and which operation or parameter is to blame.
            TvgradError: the batches do not fit epochs and samples.
        """  # noqa: DOC502 - raised by what it calls
        try:
            if simulate:
                form = self.tube(rule, epochs, batches=batches, progress=progress).form()
            elif batches is not None:
                raise NoCertificate("mini-batches have the tube alone, which follows the training")
            else:
                counted = MeasuringProgress(self, LOCAL_ATTEMPTS, progress)
                form = closed_form(counted, coefficients_of(rule, epochs))
        except NoCertificate as reason:
            raise NoCertificate(
                f"there is no certificate, lower the learning rate or the number of epochs: {reason}"
            ) from None
        start = math.inf if simulate else form.upper
        return Certificate(form.radius, form.upper, form.lower, form.name, start, (replace(form),))

    def tube(
        self,
        rule: UpdateRule | float,
        epochs: int,
        *,
        batches: Batches | None = None,
        progress: Shown | None = None,
    ) -> ProgramTube | AdamTube:
        """Follow a training in double-double arithmetic, with bounds of how far the exact iterates can be.

        Args:
            rule: as for `certificate`.
            epochs: k.
            batches: as for `certificate`.
            progress: as for `certificate`.

        Returns:
            The tube, which has bounds after every step.

        Raises:
            NoCertificate: it grows beyond all bounds.
            TvgradError: the batches do not fit epochs and samples.
        """
        used = None if batches is None else steps_of(batches, epochs, self.samples)
        steps = positive_integer(epochs, "epochs") if used is None else len(used)
        counted = MeasuringProgress(self, epochs + (used is not None), progress)
        if not isinstance(rule, Adam):
            return ProgramTube(counted, coefficients_of(rule, steps), exact=plain_steps(rule), batches=used).follow()
        placed = self._placed(precise=False)
        moving = moving_coordinates(self._graph, placed, self.inputs, self.targets, self._chunk)
        sizes = [self._tensors[place].numel() for place in self._graph.trainable]
        parts = list(zip(self.names, sizes, strict=True))
        return AdamTube(counted, rule, steps, moving=moving, parts=parts, batches=used).follow()

    def _check_labels(self) -> None:
        """Labels that a cross-entropy ignores would make its mean another one."""
        for step in self._graph.steps.values():
            if isinstance(step.operation, RowsCrossEntropy) and bool((self.targets < 0).any()):
                raise UnsupportedProgram(
                    f"a label is negative ({step.where}): what cross-entropy ignores makes it no mean over the samples"
                )

    def _placed(self, *, precise: bool) -> list[Ball]:
        return [Ball.exact(one[None], precise=precise) for one in self._tensors]

    def _roughly(self, parameters: dict[str, torch.Tensor]) -> PointBounds:
        """Loss and gradient of the first samples in float64, with other parameters."""
        tensors = [
            Ball.exact(parameters.get(name, one)[None], precise=False)
            for name, one in zip(self._graph.names, self._tensors, strict=True)
        ]
        return measure(self._graph, tensors, self.inputs[:COMPARED], self.targets[:COMPARED], 0.0, self._chunk)

    def _sizes(self, tensors: list[Ball]) -> dict[int, int]:
        """Numbers of one sample in every place."""
        return ChunkPass(self._graph, tensors, self.inputs[:1], self.targets[:1], 0.0).sizes()


def _checked(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor) or not tensor.ndim or not len(tensor):
        raise TvgradError(f"the {name} are empty or no tensor: give a tensor with one entry for each sample")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise TvgradError(f"the {name} hold NaN or infinite numbers: clean the data first")
    copied = tensor.detach().cpu().clone()
    return copied.double() if copied.is_floating_point() else copied
