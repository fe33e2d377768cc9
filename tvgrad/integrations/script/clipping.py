"""Clipping: what a script's calls of `clip_grad_norm_` and `clip_grad_value_` did to the gradients of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tvgrad.vectors.spread import own_part

CLIP_FACTS = ("clip_factor", "gradient_norm_before_clipping", "clipped_in_parts", "clip_value")
"""What `clip_facts` may say of a step."""


@dataclass(frozen=True)
class Clipping:
    """One call.

    Attributes:
        parameters: whose gradients were clipped.
        total: their norm before; of a call that clips values their largest coordinate in size.
        most: the largest norm, or size of a coordinate, that was let through.
        euclidean: whether it is the 2-norm.
        unscaled: whether a gradient scaler had taken the loss scale out before.
        by_value: whether each coordinate was clipped by itself.
    """

    parameters: Sequence[torch.Tensor]
    total: torch.Tensor
    most: float
    euclidean: bool
    unscaled: bool
    by_value: bool = False


def clip_facts(clips: Sequence[Clipping], held: Mapping[int, torch.Tensor], scaled: bool) -> dict[str, Any]:
    """Describe the clipping of a step.

    Args:
        clips: the calls since the step before.
        held: id -> parameter, those that the optimizer moves.
        scaled: whether the step's loss was scaled.

    Returns:
        clip_factor, and gradient_norm_before_clipping where the norm is that of the optimizer's gradients and of
        nothing else; clipped_in_parts, the number of calls, where no one factor took the gradients to what they are;
        clip_value, the size to which coordinates were clipped, where some were larger.
    """
    clips = [clip for clip in clips if not clip.by_value or float(clip.total) > clip.most]  # the others changed nothing
    if not clips:
        return {}
    only, clipped = clips[-1], {id(parameter) for parameter in clips[-1].parameters}
    present = {key for key, parameter in held.items() if parameter.grad is not None}
    values = [clip.most for clip in clips if clip.by_value]
    if len(clips) > 1 or values or not present <= clipped:
        return {"clipped_in_parts": len(clips)} | ({"clip_value": min(values)} if values else {})
    total = float(only.total)
    facts: dict[str, Any] = {"clip_factor": min(1.0, only.most / (total + 1e-6))}
    others = any(id(parameter) not in held and parameter.grad is not None for parameter in only.parameters)
    if only.euclidean and not others and (only.unscaled or not scaled):
        facts["gradient_norm_before_clipping"] = total
    return facts


@torch.no_grad()
def largest_coordinate(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Find the largest size of a coordinate of gradients.

    Args:
        parameters: whose gradients; those without one are left out.

    Returns:
        A scalar; 0 where there is no gradient.
    """
    parts = [own_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
    found = [part for part in parts if part.numel()]
    return torch.stack([gradient.abs().max().cpu().double() for gradient in found]).max() if found else torch.zeros(())
