"""reseed: other random numbers than a script's own, for order, augmentation, dropout and noise."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


def reseed(loader: Any, seed: int) -> None:
    """Seed all generators that a script shares with others, and those of a loader.

    Args:
        loader: a DataLoader whose pass is about to begin, or None.
        seed: the seed.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    sampler = getattr(loader, "sampler", None)
    places: list[Any] = [loader, sampler, getattr(getattr(loader, "batch_sampler", None), "sampler", None)]
    for place in places:
        generator = getattr(place, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        if isinstance(getattr(place, "initial_seed", None), int):  # a sampler that seeds itself in each epoch
            place.initial_seed = seed
