"""Talk: what the processes of a script tell one another by `torch.distributed`, in a probe.

A loss that is divided by the samples of all processes has weights that no process knows of itself. So a process is to
have a part of its batch while others have the whole of theirs, where they talk; but not where what they say has the
batch's shape, as that of a loss over the pairs of all, because it would not fit together then.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import distributed

NAMES = ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "reduce", "broadcast", "all_to_all")

Site = tuple[str, int]
Shapes = list[tuple[int, ...]]


class Talk:
    """The shapes of what is said at each line of the script, batch by batch."""

    def __init__(self) -> None:
        """Start before the first batch."""
        self._batches: list[dict[Site, Shapes]] = [{}]

    def install(self) -> None:
        """Listen, from now on."""
        for name in NAMES:
            if hasattr(distributed, name):
                setattr(distributed, name, self._heard(getattr(distributed, name)))

    def next_batch(self) -> None:
        """The script gets a batch."""
        self._batches.append({})

    @property
    def of_fixed_shape(self) -> bool:
        """Whether the processes talk, and each line says the same shapes whatever the batch."""
        sites = {site for batch in self._batches for site in batch}
        said = [[batch[site] for batch in self._batches if site in batch] for site in sites]
        return bool(said) and all(shapes == first for first, *rest in said for shapes in rest)

    def _heard(self, original: Any) -> Any:
        @functools.wraps(original)
        def heard(*args: Any, **kwargs: Any) -> Any:
            frame = sys._getframe(1)
            shapes = [tuple(one.shape) for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]
            self._batches[-1].setdefault((frame.f_code.co_filename, frame.f_lineno), []).extend(shapes)
            return original(*args, **kwargs)

        return heard
