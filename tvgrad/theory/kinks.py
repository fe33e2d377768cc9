"""Kinks: does the loss go through a function whose derivative jumps, such as ReLU?

A Taylor expansion round theta_0 does not see a gate that flips during training. Automatic differentiation gives a
Hessian all the same, that of the smooth piece: predictions are made as estimates, with a sentence that says so.
"""

from __future__ import annotations

import torch
from torch.func import functional_call

from tvgrad.numerics.autograd import operation_names
from tvgrad.numerics.precision import seeded
from tvgrad.problem.objective import Objective

# What the nodes of an autograd graph are called, without their ending `Backward0`.
KINKED = {
    "Abs": "abs",
    "Clamp": "clamp",
    "ClampMin": "clamp",
    "ClampMax": "clamp",
    "Elu": "ELU",  # its second derivative jumps
    "Hardtanh": "Hardtanh",
    "Hardsigmoid": "Hardsigmoid",
    "Hardswish": "Hardswish",
    "LeakyRelu": "LeakyReLU",
    "MaxPool2DWithIndices": "max pooling",
    "MaxPool3DWithIndices": "max pooling",
    "Maximum": "maximum",
    "Minimum": "minimum",
    "PreluKernel": "PReLU",
    "Relu": "ReLU",
    "Rrelu": "RReLU",
    "Softshrink": "Softshrink",
    "Threshold": "Threshold",
}


def kinks_of(objective: Objective) -> tuple[str, ...]:
    """Find the functions with kinks that the loss of one sample goes through, wherever they are called.

    Args:
        objective: model, loss and data; nothing in it is changed.

    Returns:
        Their names, sorted.
    """
    loss_of, device = objective.batch_loss, objective.device
    batch = objective.samples.batch(0, 1, device)
    buffers = {name: buffer.clone() for name, buffer in loss_of.named_buffers()}
    with seeded(0, device), torch.enable_grad():
        value: torch.Tensor = functional_call(loss_of, buffers, (batch,))
    plain = {name.rstrip("0123456789").removesuffix("Backward") for name in operation_names([value])}
    return tuple(sorted({KINKED[name] for name in plain & KINKED.keys()}))


def kink_sentence(objective: Objective) -> str | None:
    """Say what kinks do to a prediction.

    Args:
        objective: model, loss and data.

    Returns:
        One sentence, or None where the loss has none.
    """
    kinks = kinks_of(objective)
    if not kinks:
        return None
    return (
        f"the model uses {', '.join(kinks)}, whose derivative jumps at kinks: the expansion leaves out every gate that "
        "flips on the way, so that even for small rates these predictions are estimates without an order of accuracy"
    )
