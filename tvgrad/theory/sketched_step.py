"""Sketched step: what a sketch of the first full-batch gradient tells of the first epoch."""

from __future__ import annotations

from tvgrad.sketching.estimate import Estimate
from tvgrad.sketching.sketches import Sketch
from tvgrad.store.kept_gradients import SKETCHED
from tvgrad.store.run import Run
from tvgrad.streaming.kept_products import KeptProducts
from tvgrad.theory.equivalence import first_rates
from tvgrad.theory.sketches_of_runs import kept_estimates, task_vector_sketch
from tvgrad.wording import percent


def sketched_deviation(run: Run, rate: float, kept: KeptProducts | None = None) -> tuple[Estimate, Estimate] | None:
    """Estimate how far the first task vector is from minus the rate times the full-batch gradient.

    Args:
        run: the run.
        rate: the learning rate.
        kept: numbers of earlier reports; by default the task vector is read.

    Returns:
        The norm of `tau_1 + rate g_0` over that of `rate g_0`, and the cosine of `tau_1` to `-g_0`; None where no
        sketch was kept or the gradient is zero.
    """
    if SKETCHED["gradient"] not in run.point(0).files or not {0, 1} <= set(run.epochs):
        return None
    gradient = run.gradient_sketch(0)
    length = abs(rate) * gradient.norm
    if not length:
        return None

    def compute() -> tuple[Estimate, Estimate]:
        moved = task_vector_sketch(run, 1, gradient.width)
        apart = Sketch(moved.values + rate * gradient.values, gradient.entries, {}).estimated_norm()
        return apart, turned(moved.cosine(gradient))

    places = [(run, "weights", 1), (run, "weights", 0), (run, SKETCHED["gradient"], 0)]
    apart, cosine = kept_estimates(kept, places, ["first step", repr(rate)], {}, compute)
    return Estimate(apart.value / length, apart.low / length, apart.high / length), cosine


def sketched_cause(run: Run, kept: KeptProducts | None = None) -> str | None:
    """Say what a sketch tells of the first epoch, where no full-batch gradient can be compared exactly.

    Args:
        run: the run.
        kept: numbers of earlier reports; by default the task vector is read.

    Returns:
        A clause with the estimates; None where no sketch of the first full-batch gradient was kept.
    """
    if SKETCHED["gradient"] not in run.point(0).files:
        return None
    said = "of the full-batch gradient at the pretrained weights a sketch was kept"
    rates = {rate for rate in ({} if run.rule is None else first_rates(run, run.rule)).values() if rate}
    found = sketched_deviation(run, rates.pop(), kept) if len(rates) == 1 else None
    if found is None:
        return said
    away, cosine = found
    return (
        f"{said}: by estimate {percent(away.value)} away ({percent(away.low)} to {percent(away.high)}), "
        f"cosine {cosine.value:.3f} ({cosine.low:.3f} to {cosine.high:.3f})"
    )


def turned(cosine: Estimate) -> Estimate:
    """Give the cosine to the opposite vector.

    Args:
        cosine: to a vector.

    Returns:
        It, and its interval.
    """
    return Estimate(-cosine.value, -cosine.high, -cosine.low)
