"""gradient_rounding: how far a gradient in bfloat16 or float16 is from the same gradient in float32."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch

from tvgrad.errors import TvgradError
from tvgrad.numerics.autograd import gradients
from tvgrad.numerics.device import free_bytes
from tvgrad.numerics.precision import full_precision, preserved_randomness
from tvgrad.problem.batch_loss import BatchLoss
from tvgrad.problem.objective import Objective
from tvgrad.problem.samples import map_tensors
from tvgrad.problem.weighted_sum import WeightedSum
from tvgrad.vectors.parameters import Weights, norm, trainable_parameters

_NARROW = (torch.bfloat16, torch.float16)
_BYTES = 24
"""For each weight: itself, its gradient and a copy of it in float32, a float64 sum, and room for what is computed."""


def gradient_rounding(
    objective: Objective, weights: Mapping[str, torch.Tensor], gradient: Mapping[str, torch.Tensor]
) -> float | None:
    """Measure the rounding of a full-batch gradient.

    The float32 gradient is one at the same weights and data, which are widened exactly, by a copy of the model.

    Args:
        objective: of a model in bfloat16 or float16.
        weights: name -> tensor.
        gradient: name -> the objective's gradient there.

    Returns:
        `||g - g_float32|| / ||g_float32||`; None where the weights are of another dtype, where dropout makes the two
        gradients those of different draws, and where the copy does not fit into memory or does not run.
    """
    if not any(tensor.dtype in _NARROW for tensor in weights.values()) or "dropout" in objective.allowed:
        return None
    if _BYTES * sum(parameter.numel() for parameter in objective.model.parameters()) > free_bytes(objective.device):
        return None
    try:
        with preserved_randomness(objective.device), full_precision(objective.device):
            wide = _gradient(objective, copy.deepcopy(objective.batch_loss).float(), weights)
        size = norm(wide)
        for name in list(wide):  # in place: a third float32 copy need not fit
            wide[name].sub_(gradient[name].to(wide[name].device))
        relative = norm(wide) / size
    except (RuntimeError, TypeError, ValueError, ZeroDivisionError, NotImplementedError, MemoryError, TvgradError):
        return None  # a fact beside the run, which goes on without it
    return relative if math.isfinite(relative) else None


def _gradient(objective: Objective, wide: BatchLoss, weights: Mapping[str, torch.Tensor]) -> Weights:
    parameters = trainable_parameters(wide.model)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    sums = WeightedSum({name: parameter.detach() for name, parameter in parameters.items()})
    for start in range(0, len(objective.samples), objective.chunk_size):
        narrow = objective.samples.batch(start, start + objective.chunk_size, objective.device)
        chunk = map_tensors(narrow, lambda tensor: tensor.float() if tensor.dtype in _NARROW else tensor)
        weight = wide.weight(chunk)
        if weight > 0:
            parts = wide(chunk, lambda loss: gradients(loss, tuple(parameters.values())))
            sums.add(dict(zip(parameters, parts, strict=True)), weight)
    return sums.mean(objective.home)
