"""Measured gradients: what a run says of full-batch gradients that passes of its script have measured."""

from __future__ import annotations

from typing import Any

from tvgrad.store.run import Run

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
        How far two passes differ, relative to the gradient; None where it is no estimate.
    """
    found = measured_at(run, number)
    return float(found["deviation"]) if found is not None and found["kind"] == ESTIMATE else None
