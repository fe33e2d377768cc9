"""What a recorder can record, of what it was given."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Objective
from tvgrad.record.loop_gradients import LoopGradients
from tvgrad.record.run_header import RECORDABLE
from tvgrad.wording import near


def several(
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
) -> tuple[torch.optim.Optimizer, ...]:
    """List the optimizers that were passed.

    Args:
        optimizer: one, several or none.

    Returns:
        They.

    Raises:
        TvgradError: something else was passed.
    """
    if optimizer is None:
        return ()
    listed = (optimizer,) if isinstance(optimizer, (str, torch.optim.Optimizer)) else tuple(optimizer)
    for one in listed:
        if not isinstance(one, torch.optim.Optimizer):
            raise TvgradError(f"{one!r} is no optimizer: pass the torch.optim.Optimizer of the model, or several")
    return listed


def recorded_kinds(
    record: Sequence[str] | None,
    optimizers: Sequence[torch.optim.Optimizer],
    objective: Objective | LoopGradients | None,
) -> tuple[str, ...]:
    """Choose the kinds of tensors to record besides weights: those asked for, or those that there is a source of.

    Args:
        record: what was asked for; None leaves the choice open.
        optimizers: of the training.
        objective: where full-batch gradients come from.

    Returns:
        The kinds.

    Raises:
        TvgradError: one is not known, or has no source.
    """
    default = [*(["gradients"] if objective else []), *(["epoch-gradients"] if optimizers else [])]
    kinds = tuple(default if record is None else record)
    for kind in kinds:
        if kind not in RECORDABLE:
            raise TvgradError(
                f"nothing called {kind!r} can be recorded: choose from {', '.join(RECORDABLE)}{near(kind, RECORDABLE)}"
            )
    if "gradients" in kinds and objective is None:
        raise TvgradError(
            "full-batch gradients need an objective: pass objective=tvgrad.Objective(model, loss, data), or the loop's "
            "own data= and loss="
        )
    if "epoch-gradients" in kinds and not optimizers:
        raise TvgradError("epoch gradients are read from the optimizer: pass optimizer=")
    return kinds
