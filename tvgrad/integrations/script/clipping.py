"""Clipping: what a script's calls of `clip_grad_norm_` did to the gradients of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Clipping:
    """One call.

    Attributes:
        parameters: whose gradients were clipped.
        total: their norm before.
        most: the largest norm that was let through.
        euclidean: whether it is the 2-norm.
        unscaled: whether a gradient scaler had taken the loss scale out before.
    """

    parameters: Sequence[torch.Tensor]
    total: torch.Tensor
    most: float
    euclidean: bool
    unscaled: bool


def clip_facts(clips: Sequence[Clipping], held: Mapping[int, torch.Tensor], scaled: bool) -> dict[str, Any]:
    """Describe the clipping of a step.

    Args:
        clips: the calls since the step before.
        held: id -> parameter, those that the optimizer moves.
        scaled: whether the step's loss was scaled.

    Returns:
        clip_factor, and gradient_norm_before_clipping where the norm is that of the optimizer's gradients and of
        nothing else; clipped_in_parts, the number of calls, where no one factor took the gradients to what they are.
    """
    if not clips:
        return {}
    only, clipped = clips[-1], {id(parameter) for parameter in clips[-1].parameters}
    present = {key for key, parameter in held.items() if parameter.grad is not None}
    if len(clips) > 1 or not present <= clipped:
        return {"clipped_in_parts": len(clips)}
    total = float(only.total)
    facts: dict[str, Any] = {"clip_factor": min(1.0, only.most / (total + 1e-6))}
    others = any(id(parameter) not in held and parameter.grad is not None for parameter in only.parameters)
    if only.euclidean and not others and (only.unscaled or not scaled):
        facts["gradient_norm_before_clipping"] = total
    return facts
