"""why_ended: why a command that came to its end gave no measurement."""

from __future__ import annotations

from tvgrad.integrations.measuring.placement import Placement

WITHOUT = "has none of the run's parameters"


def why_ended(placement: Placement | None, stepped: bool) -> str:
    """Say it.

    Args:
        placement: of the weights; None where the script made no optimizer.
        stepped: whether the model's optimizer took a step.

    Returns:
        A reason, whose subject is the command.
    """
    if placement is None:
        return "it made no optimizer of torch.optim"
    if placement.trained is None:
        return f"it {WITHOUT}" if placement.misfit is None else f"it {placement.misfit}"
    return "its epoch did not end" if stepped else "its optimizer took no step"
