"""What users pass as samples: mistakes are said with the order of the arguments."""

from __future__ import annotations

import torch

from tvgrad.errors import TvgradError


def check_samples(inputs: object, targets: object) -> None:
    """Refuse samples that are no tensors, before a model is read.

    Args:
        inputs: what was passed as inputs.
        targets: what was passed as targets.

    Raises:
        TvgradError: the inputs are no tensor of samples, or the targets are neither a tensor nor None.
    """
    if not isinstance(inputs, torch.Tensor) or inputs.ndim < 2:
        shape = tuple(inputs.shape) if isinstance(inputs, torch.Tensor) else type(inputs).__name__
        raise TvgradError(f"the inputs are {shape}: give a tensor of shape (samples, features)")
    if targets is not None and not isinstance(targets, torch.Tensor):
        what = repr(targets) if isinstance(targets, str) else f"a {type(targets).__name__}"
        raise TvgradError(
            f"the targets are {what}: the order is (module, inputs, targets, loss), where targets=None gives bounds "
            "that hold for any targets"
        )


def check_norms(norms: torch.Tensor | None, chunk_size: int | None) -> torch.Tensor:
    """Refuse samples that are none, or not finite, and chunks of none.

    Args:
        norms: of the samples, (n,).
        chunk_size: samples at once, or None.

    Returns:
        The norms.

    Raises:
        TvgradError: there are none, or some are not finite, or the chunk size is below 1.
    """
    if norms is None or not len(norms):
        raise TvgradError("the data is empty: give at least one sample")
    if not bool(torch.isfinite(norms).all()) or bool((norms < 0).any()):
        raise TvgradError("the inputs hold NaN or infinite numbers: clean the data first")
    if chunk_size is not None and chunk_size < 1:
        raise TvgradError(f"the chunk size must be at least 1, not {chunk_size}")
    return norms


def check_radius(radius: float) -> float:
    """Refuse what is no radius of a ball.

    Args:
        radius: of the ball.

    Returns:
        The number.

    Raises:
        TvgradError: it is negative or not finite.
    """
    radius = float(radius)
    if not 0 <= radius < float("inf"):
        raise TvgradError(f"a ball's radius must be a finite number of at least 0, not {radius!r}")
    return radius
