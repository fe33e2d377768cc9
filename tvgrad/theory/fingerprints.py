"""Is an objective's data what a run was recorded on?"""

from __future__ import annotations

import copy

import torch

from tvgrad.errors import TvgradError
from tvgrad.objective import Objective
from tvgrad.parameters import same_names_and_shapes
from tvgrad.record.run import Run

__all__ = ["check_data"]


def check_data(run: Run, objective: Objective) -> None:
    """Compare data and parameters with what the run says of them.

    Args:
        run: the run.
        objective: in any dtype: data that was cast after the recording is compared as it was before.

    Raises:
        TvgradError: they differ.
    """
    shapes = {name: torch.empty(one.shape, device="meta") for name, one in run.parameters.items()}
    misfit = same_names_and_shapes(shapes, objective.initial)
    if misfit is not None:
        raise TvgradError(f"the objective's model has other parameters than {run.root}: {misfit}")
    recorded = run.info.get("fingerprint")
    if recorded is None:
        return
    samples = copy.copy(objective.samples)
    for dtype in (samples.dtype, None, getattr(torch, str(run.info.get("dtype", "float32")))):
        samples.dtype = dtype
        if samples.fingerprint() == recorded:
            return
    raise TvgradError(
        f"the data is not what {run.root} was recorded on (its fingerprint differs): give the recipe that made it"
    )
