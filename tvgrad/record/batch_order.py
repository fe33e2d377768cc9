"""The order in which a traced recipe's samples come: of the seed and the epoch alone, so that a run can be resumed."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def batches_of(samples: int, batch_size: int, seed: int, epoch: int) -> Iterator[torch.Tensor]:
    """Cut a random order of the samples into mini-batches; the last may be short.

    Args:
        samples: number of samples.
        batch_size: samples in a batch.
        seed: of the run.
        epoch: epochs done before this one.

    Yields:
        Positions of each batch's samples.
    """
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    yield from torch.randperm(samples, generator=generator).split(batch_size)


def epoch_seed(seed: int, epoch: int) -> int:
    """Make a seed for each epoch; different seeds share no epoch's order (a plain sum would).

    Args:
        seed: of the run.
        epoch: epochs done.

    Returns:
        The seed.
    """
    return (seed * 1_000_003 + epoch * 7_919 + 12_345) % 2**63
