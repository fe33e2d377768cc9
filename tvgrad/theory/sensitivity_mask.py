r"""TaLoS masks: only the weights to which the outputs are least sensitive are tuned (arXiv 2504.02620).

The sensitivity of weight j is $\mathbb{E}_x \mathbb{E}_{y \sim p(y|x)} (\partial_j \log p(y|x))^2$ at the pretrained
weights, the diagonal of Fisher's matrix; here it is that expectation, by one backward pass for each output. The paper
finds its mask in four rounds that keep ever fewer weights; sensitivities at the pretrained weights do not change from
one to the next, so that the last round's mask is found at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import positive
from tvgrad.vectors.algebra import flatten
from tvgrad.vectors.parameters import Weights

TUNED = 0.1
"""The published share of the weights that are tuned."""


def least_sensitive(sensitivity: Mapping[str, torch.Tensor], share: float = TUNED) -> Weights:
    """Mark the weights of least sensitivity, over all tensors together.

    Args:
        sensitivity: name -> tensor: `objective.fisher_diagonal()`.
        share: of the weights that are marked: exactly floor(share times their number), of equal ones the first.

    Returns:
        Name -> boolean tensor, True where a weight is tuned.

    Raises:
        TvgradError: the share is so small that it is none, or a value is not finite.

    Examples:
        >>> import torch
        >>> from tvgrad.theory.sensitivity_mask import least_sensitive
        >>> least_sensitive({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([0.0, 1.0])}, share=0.5)
        {'a': tensor([False,  True]), 'b': tensor([ True, False])}
    """
    values = flatten(sensitivity)
    if positive(share, "share") > 1:
        raise TvgradError(f"share must be at most 1, not {share!r}")
    count = int(share * values.size)
    if count < 1:
        raise TvgradError(f"a share of {share:g} of {values.size} weights is none: give a larger one")
    if not np.isfinite(values).all():
        raise TvgradError("a sensitivity holds a NaN or an infinity: give finite ones")
    chosen = np.zeros(values.size, dtype=bool)
    chosen[np.argsort(values, kind="stable")[:count]] = True
    parts = torch.from_numpy(chosen).split([part.numel() for part in sensitivity.values()])
    return {name: mask.reshape(part.shape) for (name, part), mask in zip(sensitivity.items(), parts, strict=True)}


def sensitivity_mask(objective: Objective, share: float = TUNED) -> Weights:
    """Find the mask of a task at the pretrained weights.

    Args:
        objective: of the task; its loss says a distribution of targets (cross-entropy, MSE, binary cross-entropy).
        share: of the weights that are tuned.

    Returns:
        Name -> boolean tensor.

    Raises:
        TvgradError: the loss is no known likelihood, or the share is none.

    Examples:
        >>> import torch, tvgrad
        >>> from tvgrad.theory.sensitivity_mask import sensitivity_mask
        >>> model, data = torch.nn.Linear(2, 1, bias=False).double(), (torch.tensor([[1.0, 5.0]]).double(), torch.ones(1, 1).double())
        >>> sensitivity_mask(tvgrad.Objective(model, torch.nn.MSELoss(), data), share=0.5)
        {'weight': tensor([[ True, False]])}
    """  # noqa: DOC502, E501 - raised by what it calls; a doctest
    return least_sensitive(objective.fisher_diagonal(), share)


def keep_off_mask(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor]
) -> torch.utils.hooks.RemovableHandle:
    """Make an optimizer leave weights off a mask as they are, to the bit.

    After each step they are put back: step, momentum and decay are masked alike, whatever the optimizer.

    Args:
        optimizer: of PyTorch, whose steps treat every weight by itself.
        parameters: name -> parameter that it tunes.
        masks: name -> boolean tensor, True where a weight is tuned.

    Returns:
        A handle, whose `remove()` ends this.

    Raises:
        TvgradError: a parameter has no mask of its shape.

    Examples:
        >>> import torch
        >>> from tvgrad.theory.sensitivity_mask import keep_off_mask
        >>> weight = torch.tensor([1.0, 1.0], requires_grad=True)
        >>> optimizer = torch.optim.SGD([weight], lr=0.5, weight_decay=0.1)
        >>> handle = keep_off_mask(optimizer, {"w": weight}, {"w": torch.tensor([True, False])})
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> [round(one, 4) for one in weight.tolist()]
        [0.45, 1.0]
    """
    for name, parameter in parameters.items():
        if name not in masks or masks[name].shape != parameter.shape or masks[name].dtype != torch.bool:
            raise TvgradError(f"{name!r} has no boolean mask of its shape: give one for every parameter")
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def put_back(*_: object) -> None:
        for name, parameter in parameters.items():
            parameter.copy_(torch.where(masks[name].to(parameter.device), parameter, start[name]))

    return optimizer.register_step_post_hook(put_back)
