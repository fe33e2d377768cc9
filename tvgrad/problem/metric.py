"""Metric: the number that a recipe's own function gives for a batch, or a sentence on what it gives instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvgrad.errors import TvgradError
from tvgrad.wording import printable


def metric_value(metric: Callable[[Any, Any], Any], output: Any, target: Any) -> float:
    """Evaluate a metric.

    Args:
        metric: of a recipe.
        output: the model's, of a batch.
        target: of the batch.

    Returns:
        The mean over the batch, which may be infinite or NaN.

    Raises:
        TvgradError: it fails, or gives something else than a number.

    Examples:
        >>> import torch
        >>> from tvgrad.problem.metric import metric_value
        >>> metric_value(lambda output, target: (output == target).double().mean(), torch.ones(2), torch.ones(2))
        1.0
    """
    name = getattr(metric, "__name__", "metric")
    try:
        found = metric(output, target)
    except Exception as error:  # noqa: BLE001 - it is the user's
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise TvgradError(f"the recipe's metric {name} failed ({printable(why)}): mend it") from error
    try:
        return float(found)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        what = f"a tensor of shape {tuple(found.shape)}" if hasattr(found, "shape") else f"a {type(found).__name__}"
        raise TvgradError(
            f"the recipe's metric {name} gives {what}: let it give one number, the mean over the batch"
        ) from None
