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

LATER = "trained_later"
"""The key of run.json's info: the recorded parameters that the script did not train at its first step."""

FROM_THE_START = (
    "a pass measures what is trained from the start, so trace it without --frozen to measure that part, or give a "
    "recipe of the whole model (`tvgrad trace --frozen --recipe TARGET -- COMMAND`)"
)
"""Why, and what to do."""


def is_measurable(run: Run) -> bool:
    """Tell whether passes of the command that was traced can measure the gradients of its run.

    Args:
        run: the run.

    Returns:
        Whether it is of a script, which trained all recorded parameters from its first step on.
    """
    return "command" in run.info and not run.info.get(LATER)


def how_to_get(run: Run) -> str:
    """Say how the full-batch gradient at the pretrained weights, which a run lacks, is recorded.

    Args:
        run: the run.

    Returns:
        Words for the end of a sentence.
    """
    if is_measurable(run):
        return "`tvgrad measure RUN --at 0 -- COMMAND` measures it"
    if "command" not in run.info:
        return "`--record gradients` with a recipe records it"
    return f"the command did not train {run.info[LATER][0]} at its first step, and {FROM_THE_START}"


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
