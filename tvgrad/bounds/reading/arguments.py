"""What users pass as samples: mistakes are said with the order of the arguments."""

from __future__ import annotations

import torch

from tvgrad.errors import TvgradError


def check_samples(inputs: object, targets: object) -> None:
    """Refuse samples that are no tensors, before a model is read.

    Args:
        inputs: what was passed as inputs.
        targets: what was passed as targets.

    Raises:
        TvgradError: the inputs are no tensor of samples, or the targets are neither a tensor nor None.
    """
    if not isinstance(inputs, torch.Tensor) or inputs.ndim < 2:
        shape = tuple(inputs.shape) if isinstance(inputs, torch.Tensor) else type(inputs).__name__
        raise TvgradError(f"the inputs are {shape}: give a tensor of shape (samples, features)")
    if targets is not None and not isinstance(targets, torch.Tensor):
        what = repr(targets) if isinstance(targets, str) else f"a {type(targets).__name__}"
        raise TvgradError(
            f"the targets are {what}: the order is (module, inputs, targets, loss), where targets=None gives bounds "
            "that hold for any targets"
        )
