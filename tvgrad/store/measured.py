"""Measured gradients: what a run says of full-batch gradients that passes of its script have measured."""

from __future__ import annotations

import math
from typing import Any

from tvgrad.store.run import Run
from tvgrad.wording import percent

MEASURED = "measured_gradients"
"""The key of run.json's info: point -> what was measured there."""

EXACT, ESTIMATE = "exact full batch", "one epoch's estimate"
"""The kinds of a measured gradient."""


def measured_at(run: Run, number: int) -> dict[str, Any] | None:
    """Read what is known of a measured gradient.

    Args:
        run: the run.
        number: the point.

    Returns:
        kind, deviation, samples, data, steps, weights and reason; None where the gradient was not measured.
    """
    found: dict[str, Any] | None = (run.info.get(MEASURED) or {}).get(str(number))
    return found


def error_bar(run: Run, number: int) -> float | None:
    """Read the error bar of a gradient that is an estimate.

    Args:
        run: the run.
        number: the point.

    Returns:
        How far two passes differ, relative to the gradient; infinite where they repeat one another, so that nothing is
        known of the error; None where it is no estimate.
    """
    found = measured_at(run, number)
    if found is None or found["kind"] != ESTIMATE:
        return None
    return math.inf if found.get("repeat") else float(found["deviation"])


def as_estimate(bar: float) -> str:
    """Say that a gradient is an estimate.

    Args:
        bar: its error bar, infinite where it is not known.

    Returns:
        one epoch's estimate, and how good it is.
    """
    how = "of unknown error" if math.isinf(bar) else f"(two passes differ by {percent(bar)})"
    return f"{ESTIMATE} {how}"
