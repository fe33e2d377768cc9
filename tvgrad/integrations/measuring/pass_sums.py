"""pass_sums: the sums over a script's steps, in the process that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from tvgrad.integrations.measuring.pass_files import write_sum
from tvgrad.integrations.measuring.pass_options import PassOptions
from tvgrad.integrations.measuring.placement import Placement
from tvgrad.integrations.measuring.ranks import is_first
from tvgrad.record.step_plan import ScriptSum, StepPlan
from tvgrad.record.step_sums import StepSums


def begun_sums(told: PassOptions, folder: str, placement: Placement) -> StepSums:
    """Begin the sums that a pass is to form.

    Args:
        told: what the pass does.
        folder: where each sum is left as soon as it is complete.
        placement: of the model, which is found.

    Returns:
        They, with nothing added.
    """
    plan, first = StepPlan.from_json(Path(str(told.coefficients)).read_text(encoding="utf-8")), is_first()
    assert placement.trained is not None
    like = {name: parameter.detach() for name, parameter in placement.trained.parameters.items()}

    def keep(epoch: int, what: ScriptSum, content: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return write_sum(folder, epoch, what, content) if first else content

    return StepSums(plan, like, placement.start, keep=keep, folder=Path(folder))
