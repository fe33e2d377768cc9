"""The order of mini-batches that a certificate speaks about: positions of the samples of every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tvgrad.errors import TvgradError

Batches = Sequence[Sequence[torch.Tensor]]
"""For each epoch, for each of its steps, the positions of the samples that the step uses."""


def steps_of(batches: Batches, epochs: int, samples: int) -> list[torch.Tensor]:
    """List the batches of all steps, checked.

    Args:
        batches: epoch by epoch.
        epochs: how many epochs there have to be.
        samples: how many there are.

    Returns:
        Positions, one tensor for each step.

    Raises:
        TvgradError: they are not the batches of so many epochs of these samples.
    """
    if len(batches) != epochs:
        raise TvgradError(
            f"there are batches of {len(batches)} epochs, and {epochs} are bounded: give for each epoch a list with "
            "the positions of the samples of each step"
        )
    found: list[torch.Tensor] = []
    for number, steps in enumerate(batches, start=1):
        if not len(steps):
            raise TvgradError(f"epoch {number} has no batches: give at least one step")
        found += [_checked(one, number, samples) for one in steps]
    return found


def _checked(batch: torch.Tensor, epoch: int, samples: int) -> torch.Tensor:
    positions = torch.as_tensor(batch).detach().cpu()
    whole = positions.ndim == 1 and positions.numel() and not (positions.is_floating_point() or positions.is_complex())
    if not whole or positions.dtype == torch.bool or int(positions.min()) < 0 or int(positions.max()) >= samples:
        raise TvgradError(
            f"a batch of epoch {epoch} is no list of positions from 0 to {samples - 1}: give at least one whole number"
        )
    return positions.long().clone()
