"""The first step of a run, read block by block: against a form of it, and against the first gradient.

What takes a pass over the files can be kept from one report to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorFile
from tvgrad.results import Result
from tvgrad.store.run import Run
from tvgrad.streaming.blocks import tensor_blocks
from tvgrad.streaming.kept_products import KeptProducts

Form = Callable[[Tensor, Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor]]
"""(theta', theta, g, dtype) -> (predicted task vector, bound on its rounding), all in float64."""


@dataclass(frozen=True)
class Comparison(Result):
    """How far the first step is from a form of it.

    Attributes:
        worst: largest deviation of a coordinate, in units of the bound on its rounding.
        worst_moved: the same over the coordinates that the step changed.
        unchanged: share of the coordinates with a gradient that the step left as they were.
        relative: `|| tau - predicted || / || predicted ||`.
    """

    worst: float
    worst_moved: float
    unchanged: float
    relative: float


def first_step_files(run: Run, consumed: str) -> list[TensorFile]:
    """Open the files of the first step without reading them.

    Args:
        run: the run.
        consumed: gradient (the full-batch one at theta_0) or epoch_gradient (what the first epoch consumed).

    Returns:
        Those of theta_1, theta_0 and the gradient.
    """
    return [
        run.file("weights", 1), run.file("weights", 0), run.file(consumed, 0 if consumed == "gradient" else 1),
    ]  # fmt: skip


def first_step_tensors(run: Run, consumed: str) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Read theta_1, theta_0 and a gradient, block by block: a float64 copy of a large embedding has no room.

    Args:
        run: the run.
        consumed: gradient (the full-batch one at theta_0) or epoch_gradient (what the first epoch consumed).

    Yields:
        The parameter's name, and the three on the same coordinates, flattened, in the run's dtype; together all, in
        order.

    Raises:
        TvgradError: a file lacks a tensor.
    """
    with ExitStack() as stack:
        after, before, gradient = map(stack.enter_context, first_step_files(run, consumed))
        for name in run.parameters:
            if not all(name in file.places for file in (after, before, gradient)):
                raise TvgradError(f"{run.root} has no {name!r} in one of its files: run `tvgrad verify {run.root}`")
            for one, other, third in tensor_blocks((after, before, gradient), name):
                yield name, one, other, third


def compare(
    run: Run, consumed: str, forms: Mapping[str, Form], *, about: Sequence[str], kept: KeptProducts | None
) -> Comparison:
    """Compare the first step with a form, coordinate by coordinate.

    Args:
        run: the run.
        consumed: gradient or epoch_gradient.
        forms: parameter -> its form.
        about: all that the forms depend on.
        kept: numbers of earlier reports; None reads all.

    Returns:
        The comparison.
    """

    def compute() -> list[float]:
        return list(astuple(_compared(run, consumed, forms)))

    if kept is None:
        return Comparison(*compute())
    return Comparison(*kept.numbers(first_step_files(run, consumed), [consumed, *about], compute))


def _compared(run: Run, consumed: str, forms: Mapping[str, Form]) -> Comparison:
    worst = worst_moved = difference = length = 0.0
    unchanged = moving = 0
    for name, after, before, gradient in first_step_tensors(run, consumed):
        dtype = after.dtype
        wide_after, wide_before, wide = after.double(), before.double(), gradient.double()
        tau = wide_after - wide_before
        predicted, bound = forms[name](wide_after, wide_before, wide, dtype)
        deviation = (tau - predicted).abs()
        still = after == before
        if deviation.numel():
            # NaN, from weights that are not finite, must not pass as exact
            ratio = torch.nan_to_num(deviation / bound, nan=math.inf, posinf=math.inf)
            worst = max(worst, float(ratio.max()))
            worst_moved = max(worst_moved, float(ratio.masked_fill(still, 0.0).max()))
        difference += float(deviation.square().sum())
        length += float(predicted.square().sum())
        has_gradient = gradient != 0
        moving += int(has_gradient.sum())
        unchanged += int((has_gradient & still).sum())
    relative = math.sqrt(difference / length) if length else math.nan
    return Comparison(worst, worst_moved, unchanged / moving if moving else math.nan, relative)


def gradient_error(run: Run, kept: KeptProducts | None) -> float:
    """Compare the gradient that the first epoch consumed with the recorded one.

    Args:
        run: the run.
        kept: numbers of earlier reports; None reads all.

    Returns:
        The relative difference; NaN where the recorded gradient is zero.
    """

    def compute() -> list[float]:
        return [_relative_difference(run)]

    if kept is None:
        return compute()[0]
    files = [run.file("epoch_gradient", 1), run.file("gradient", 0)]
    return kept.numbers(files, ["gradient error", repr(list(run.parameters))], compute)[0]


def _relative_difference(run: Run) -> float:
    difference = total = 0.0
    with run.file("epoch_gradient", 1) as consumed, run.file("gradient", 0) as full:
        for name in run.parameters:
            for used, exact in tensor_blocks((consumed, full), name):
                wide = exact.double()
                difference += float((used.double() - wide).square().sum())
                total += float(wide.square().sum())
    return math.sqrt(difference / total) if total else math.nan


def descent_sums(run: Run, rate: float) -> tuple[float, float, float, float]:
    """Compare the first task vector with minus the rate times the first gradient.

    Args:
        run: the run.
        rate: the rate.

    Returns:
        Squares of the norms of their difference, of the second and of the first; and their inner product.
    """
    apart = length = moved = inner = 0.0
    for _, after, before, gradient in first_step_tensors(run, "gradient"):
        tau, descent = after.double() - before.double(), -rate * gradient.double()
        apart += float((tau - descent).square().sum())
        length += float(descent.square().sum())
        moved += float(tau.square().sum())
        inner += float(tau @ descent)
    return apart, length, moved, inner
