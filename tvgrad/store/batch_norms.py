"""batch_norms: the mean norm of an epoch's batch gradients, before clipping and as they were consumed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from tvgrad.store.run import Run


class BatchNorms(NamedTuple):
    """Means over the steps of one epoch, the loss scale taken out; NaN where a step's norm is not known.

    Attributes:
        before_clipping: of the norm of the batch gradient before clipping: the published quantity.
        consumed: of the norm of the gradient that the optimizer consumed.
    """

    before_clipping: float
    consumed: float


def batch_norms(run: Run, number: int) -> BatchNorms:
    """Average the norms of an epoch's batch gradients, at moving weights.

    The norm before clipping is the recorded one, or else the consumed one divided by the step's clip factor. Steps that
    a gradient scaler skipped do not count.

    Args:
        run: a recorded run.
        number: the epoch (or step) at whose end the norms were recorded, at least 1.

    Returns:
        Both means.
    """
    steps = run.steps(number)
    steps = steps[_column(steps, "skipped") != 1]
    if len(steps) == 0:
        return BatchNorms(np.nan, np.nan)
    before, consumed = _column(steps, "gradient_norm_before_clipping"), _column(steps, "gradient_norm")
    factor = _column(steps, "clip_factor")
    if not run.info.get("clipping_unrecorded"):
        whole = np.isnan(_column(steps, "clipped_in_parts"))
        factor = np.where(np.isnan(factor) & whole, 1.0, factor)
    with np.errstate(divide="ignore", invalid="ignore"):
        restored = np.where(np.isnan(before), consumed / factor, before)
        consumed = np.where(np.isnan(consumed), before * factor, consumed)
    return BatchNorms(float(restored.mean()), float(consumed.mean()))


def _column(steps: pd.DataFrame, name: str) -> np.ndarray:
    return np.asarray(steps[name] if name in steps else np.full(len(steps), np.nan), dtype=np.float64)
