"""Verification: a network that was read from a module is also compared with the module itself, in numbers.

What is read does not rest on this: it was written down call by call (module forward_record). It is a second look, by
another way, at the reader and at the classes of `torch.nn` that it trusts. Both are evaluated in float64, so that they
can differ by rounding alone. `passes` bounds the rounding of one evaluation, in whatever order it sums; the module sums
in another order and does not fold BatchNorm, which makes the difference a few times that bound at most.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from tvgrad.bounds.losses.elementwise import SquaredError
from tvgrad.bounds.network.network import Network, UnsupportedNetwork
from tvgrad.bounds.rounding import passes

SAMPLES = 16
SLACK = 1000.0


def verify(network: Network, module: nn.Module, inputs: torch.Tensor) -> None:
    """Compare outputs, and the gradient of the squared distance from a fixed target, on the first samples.

    Args:
        network: what was read.
        module: what it was read from; a copy is run.
        inputs: the samples, (n, ...).

    Raises:
        UnsupportedNetwork: the module does not run on the samples, or the two differ.
    """
    samples = inputs[:SAMPLES].detach().cpu().double()
    if samples[0].numel() != network.inputs or not len(samples) or not bool(torch.isfinite(samples).all()):
        return  # refused with the data, in better words
    targets = -1.0 - torch.arange(network.outputs, dtype=torch.float64).repeat(len(samples), 1)
    chunk = passes.Pass(network, SquaredError(half=True, reduction="sum"), samples.flatten(1), targets)
    try:
        outputs, gradient = _evaluated(copy.deepcopy(module).cpu().double(), network, samples, targets)
    except Exception as error:  # whatever a user's forward raises
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedNetwork(
            f"the model does not run in float64 on the data ({first}): repair its forward"
        ) from None
    if outputs.shape != targets.shape:
        raise UnsupportedNetwork(
            f"the model returns shape {tuple(outputs.shape)} for {len(samples)} samples: return logits of shape "
            f"{tuple(targets.shape)}"
        )
    apart = (outputs - chunk.logits).norm(dim=1)
    found = passes.gradient(network, [chunk], 1.0)
    if not bool((apart <= SLACK * chunk.logit_errors).all()):
        what = f"outputs that differ by {float(apart.max()):.2g}"
    elif not float((gradient - found.value).norm()) <= SLACK * found.error:
        what = f"the same outputs and a gradient that differs by {float((gradient - found.value).norm()):.2g}"
    else:
        return
    raise UnsupportedNetwork(
        f"the model was read as a network with {what} on the data: leave whatever is no layer, activation or sum out "
        "of its forward"
    )


def _evaluated(
    module: nn.Module, network: Network, samples: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the module gives, and the gradient of half the squared distance, in the network's order."""
    parameters = dict(module.named_parameters())
    chosen = [parameters[name] for name in network.names]
    with torch.enable_grad():
        outputs = module(samples)
        if outputs.shape != targets.shape:
            return outputs, torch.zeros(0)
        value = (outputs - targets).square().sum() / 2
        parts = torch.autograd.grad(value, chosen, materialize_grads=True)
    return outputs.detach(), torch.cat([part.flatten() for part in parts])
