"""Several tasks, several epochs: how far task arithmetic is from multitask training, measured and predicted.

Task arithmetic adds alpha times the task vectors of r runs of gradient descent, k epochs each; multitask training takes
k epochs on the sum of the losses with step alpha eta. After one epoch both are the same, and

    theta_TA^(k) - theta_MT^(k) = -alpha eta^2 C_k + O(eta^3),
    C_k = sum_t sum_{e=1..k-1} H_t sum_{m=0..e-1} [ alpha sum_{t'!=t} g_t' + (alpha - 1) g_t ],

with H_t at theta_MT^(e) and the gradients at theta_MT^(m).

(Expand each task's own path round the multitask path: the distance of the two after e epochs is eta times the inner
sum, and each epoch adds -eta H_t times that distance, weighed by alpha when the task vectors are added.) The bracket is
`alpha sum_t' g_t' - g_t`, so that C_k = alpha A - B along one path: the parts A and B serve every alpha. To the same
order everything may be frozen at theta_0: `C_k^0 = k(k-1)/2 sum_t H_t [ alpha g_sum - g_t ]`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tvgrad.errors import TvgradError
from tvgrad.problem.evaluations import Evaluations
from tvgrad.problem.objective import Objective, require_objective
from tvgrad.problem.recipe import positive, positive_integer
from tvgrad.results import Plotted, Result, Shown
from tvgrad.vectors.algebra import add_scaled, combination, difference, to_float64, zeros_like
from tvgrad.vectors.parameters import Weights, norm, same_names_and_shapes


@dataclass(frozen=True)
class GapRow(Result):
    """The gap of one alpha.

    Attributes:
        alpha: the merging coefficient.
        lr: the learning rate of the single tasks.
        epochs: k.
        tasks: r.
        measured_norm: `||theta_TA - theta_MT||`, NaN where it was not trained.
        predicted_norm: `alpha eta^2 ||C_k||`, an estimate; NaN where it was not asked for.
        residual_norm: distance of the two vectors, NaN where one is missing.
        relative_gap: measured norm over that of the multitask displacement `theta_MT - theta_0`.
        kind: `estimate`.
    """

    alpha: float
    lr: float
    epochs: int
    tasks: int
    measured_norm: float
    predicted_norm: float
    residual_norm: float
    relative_gap: float
    kind: str = "estimate"


@dataclass(frozen=True)
class GapParts:
    """C_k = alpha A - B, for any alpha.

    Attributes:
        shared: A = sum_t sum_e H_t sum_m g_sum.
        own: B = sum_t sum_e H_t sum_m g_t.
        lr: eta.
        epochs: k.
        frozen: whether gradients and Hessians are all those of theta_0; else they are taken along the multitask path
            of `path_alpha`.
        path_alpha: NaN where frozen.
    """

    shared: Weights
    own: Weights
    lr: float
    epochs: int
    frozen: bool
    path_alpha: float

    def coefficient(self, alpha: float) -> Weights:
        """C_k of one alpha.

        Args:
            alpha: the merging coefficient.

        Returns:
            Name -> float64 tensor.
        """
        return combination((alpha, self.shared), (-1.0, self.own))

    def gap(self, alpha: float) -> Weights:
        """The predicted gap of one alpha.

        Args:
            alpha: the merging coefficient.

        Returns:
            `-alpha eta^2 C_k`.
        """
        scale = -alpha * self.lr**2
        return combination((scale * alpha, self.shared), (-scale, self.own))


@dataclass(frozen=True, repr=False)
class MultitaskGap(Plotted, Shown):
    """Measured and predicted gaps between task arithmetic and multitask training.

    Attributes:
        rows: one for each alpha.
        predicted: alpha -> `-alpha eta^2 C_k`; empty where it was not asked for.
        measured: alpha -> `theta_TA - theta_MT`; empty where it was not asked for.
        parts: C_k in parts, for other alphas; None where one alone was given, or none was predicted.
        prediction_counts: gradients and Hessian-vector products of the prediction alone.
        counts: of everything.
    """

    rows: tuple[GapRow, ...]
    predicted: dict[float, Weights]
    measured: dict[float, Weights]
    parts: GapParts | None
    prediction_counts: Evaluations
    counts: Evaluations


def multitask_gap(
    objectives: Sequence[Objective],
    lr: float,
    epochs: int,
    alpha: float | Sequence[float],
    *,
    frozen: bool | None = None,
    measure: bool = True,
    predict: bool = True,
) -> MultitaskGap:
    r"""Predict the gap between task arithmetic and multitask training under gradient descent, and measure it.

    The gap is $\theta_{\mathrm{TA}}^{(k)} - \theta_{\mathrm{MT}}^{(k)} = -\alpha \eta^2 C_k + O(\eta^3)$.

    The prediction for one alpha takes r (k - 1) gradients and as many Hessian-vector products along the multitask path,
    or r of each when frozen at $\theta_0$. Several alphas share one pass: the parts of $C_k$ take twice the products.
    Measuring takes r k gradients for the tasks and r (k - 1) more for each alpha (those at $\theta_0$ are shared).

    Args:
        objectives: one for each task, all at the same pretrained weights.
        lr: $\eta$, of the single tasks; multitask training steps with $\alpha \eta$.
        epochs: k.
        alpha: one merging coefficient, or several.
        frozen: take gradients and Hessians at $\theta_0$; by default for several alphas, while a single one follows its
            own multitask path.
        measure: train, to compare.
        predict: compute $C_k$; without, `predicted` is empty and its numbers are NaN.

    Returns:
        The gaps.

    Raises:
        TvgradError: there is no task or alpha, the tasks do not share their weights, or a number is out of range.

    Examples:
        >>> import torch, tvgrad
        >>> model, loss = torch.nn.Linear(2, 1, bias=False).double(), torch.nn.MSELoss()
        >>> inputs, targets = torch.eye(2).double(), torch.ones(2, 1).double()
        >>> tasks = [tvgrad.Objective(model, loss, (scale * inputs, targets)) for scale in (1.0, 2.0)]
        >>> gap = tvgrad.multitask_gap(tasks, lr=1e-3, epochs=3, alpha=[0.5, 1.0])
        >>> [abs(row.predicted_norm / row.measured_norm - 1) < 0.02 for row in gap.rows]
        [True, True]
    """
    positive(lr, "lr")
    positive_integer(epochs, "epochs")
    alphas = [float(one) for one in (alpha if isinstance(alpha, Sequence) else [alpha])]
    if not alphas or not all(math.isfinite(one) for one in alphas):
        raise TvgradError(f"alpha must be a finite number, or several, not {alpha!r}")
    tasks = list(objectives)
    check_shared_start(tasks)
    before = total_evaluations(tasks)
    first = [to_float64(task.gradient()) for task in tasks]
    path_alpha = None if (len(alphas) > 1 if frozen is None else frozen) else alphas[0]
    single = alphas[0] if len(alphas) == 1 else None
    parts = gap_parts(tasks, lr, epochs, path_alpha, first, single) if predict else None
    predicted = {} if parts is None else {one: parts.gap(one) for one in alphas}
    spent = total_evaluations(tasks) - before
    measured, moved = _measured(tasks, lr, epochs, alphas, first) if measure else ({}, {})
    numbers = [_norms(measured.get(one), predicted.get(one), moved.get(one)) for one in alphas]
    rows = tuple(GapRow(one, lr, epochs, len(tasks), *found) for one, found in zip(alphas, numbers, strict=True))
    # For a single alpha the parts were merged before they were multiplied, and hold for no other.
    kept = parts if single is None else None
    return MultitaskGap(rows, predicted, measured, kept, spent, total_evaluations(tasks) - before)


def _norms(
    measured: Weights | None, predicted: Weights | None, moved: float | None
) -> tuple[float, float, float, float]:
    """Norms of both gaps and of their difference, and the measured one over that of the multitask displacement."""
    found = math.nan if measured is None else norm(measured)
    expected = math.nan if predicted is None else norm(predicted)
    apart = math.nan if measured is None or predicted is None else norm(difference(measured, predicted))
    return found, expected, apart, found / moved if moved else math.nan


def _measured(
    tasks: list[Objective], lr: float, epochs: int, alphas: list[float], first: list[Weights]
) -> tuple[dict[float, Weights], dict[float, float]]:
    """The gap of each alpha, by training, and the norm of the multitask displacement."""
    own = zeros_like(first[0])  # the sum of the task vectors
    for task, gradient in zip(tasks, first, strict=True):
        add_scaled(own, _trained([task], lr, epochs, [gradient]), 1.0)
    gaps, moved = {}, {}
    for one in alphas:
        multitask = _trained(tasks, one * lr, epochs, first)
        gaps[one], moved[one] = combination((one, own), (-1.0, multitask)), norm(multitask)
    return gaps, moved


def gap_parts(
    objectives: Sequence[Objective],
    lr: float,
    epochs: int,
    path_alpha: float | None = None,
    first: Sequence[Weights] | None = None,
    merged_for: float | None = None,
) -> GapParts:
    """Compute the parts of C_k.

    Args:
        objectives: one for each task, all at the same pretrained weights.
        lr: eta.
        epochs: k.
        path_alpha: follow the multitask path of this alpha; None freezes everything at theta_0.
        first: the tasks' gradients at theta_0, where they are known.
        merged_for: an alpha whose vectors are merged before they are multiplied, which saves half the products; the
            parts then hold for this alpha alone.

    Returns:
        The parts.
    """
    gradients = [to_float64(task.gradient()) for task in objectives] if first is None else list(first)
    shared, own = zeros_like(gradients[0]), zeros_like(gradients[0])
    for here, prefixes, weight in _prefixes(objectives, lr, epochs, path_alpha, gradients):
        together = combination(*((1.0, prefix) for prefix in prefixes))
        for task, prefix in zip(objectives, prefixes, strict=True):
            if merged_for is None:
                both = task.hvps([together, prefix], here)
                add_scaled(shared, both[0], weight)
                add_scaled(own, both[1], weight)
            else:
                add_scaled(own, task.hvp(combination((merged_for, together), (-1.0, prefix)), here), -weight)
    return GapParts(shared, own, lr, epochs, path_alpha is None, math.nan if path_alpha is None else path_alpha)


def _prefixes(
    objectives: Sequence[Objective], lr: float, epochs: int, path_alpha: float | None, first: list[Weights]
) -> Iterator[tuple[Weights | None, list[Weights], float]]:
    """Where Hessians are taken, the sums of earlier gradients of each task there, and how often that term counts.

    The prefix sums of the multitask path are shared by all tasks and never recomputed.

    Args:
        objectives: one for each task.
        lr: eta.
        epochs: k.
        path_alpha: of the path; None stays at theta_0.
        first: the tasks' gradients at theta_0.

    Yields:
        (weights, or None for theta_0; one prefix sum a task; factor).
    """
    if path_alpha is None:
        if epochs > 1:
            yield None, first, epochs * (epochs - 1) / 2
        return
    here = combination((1.0, objectives[0].initial))
    gradients = first
    prefixes = [zeros_like(gradient) for gradient in gradients]
    for epoch in range(1, epochs):
        for prefix, gradient in zip(prefixes, gradients, strict=True):
            add_scaled(prefix, gradient, 1.0)
            add_scaled(here, gradient, -path_alpha * lr)
        yield here, prefixes, 1.0
        if epoch + 1 < epochs:
            gradients = [to_float64(task.gradient(here)) for task in objectives]


def _trained(tasks: list[Objective], rate: float, epochs: int, first: list[Weights]) -> Weights:
    """Displacement of gradient descent on the sum of the losses, kept in float64."""
    start = to_float64(tasks[0].initial, tasks[0].device)
    moved = zeros_like(start)
    for epoch in range(epochs):
        here = combination((1.0, start), (1.0, moved))
        for task, gradient in zip(tasks, first, strict=True):
            add_scaled(moved, gradient if epoch == 0 else task.gradient(here), -rate)
    return moved


def check_shared_start(tasks: Sequence[Objective]) -> None:
    """Make sure that tasks start at the same pretrained weights.

    Args:
        tasks: at least one.

    Raises:
        TvgradError: there is none, or names, shapes or values of the weights differ.
    """
    if not tasks:
        raise TvgradError("there is no task: give one objective for each")
    for task in tasks:
        require_objective(task)
    first = tasks[0].initial
    for number, task in enumerate(tasks[1:], start=2):
        different = same_names_and_shapes(first, task.initial)
        if different is None and not all(
            torch.equal(tensor, task.initial[name].to(tensor)) for name, tensor in first.items()
        ):
            different = "their values differ"
        if different is not None:
            raise TvgradError(f"tasks 1 and {number} do not start at the same pretrained weights: {different}")


def total_evaluations(tasks: Sequence[Objective]) -> Evaluations:
    """Count the evaluations of all tasks; objectives that share a counter are counted once.

    Args:
        tasks: any number.

    Returns:
        The sum.
    """
    counters = {id(task.evaluations): task.evaluations for task in tasks}.values()
    return sum(counters, Evaluations())
