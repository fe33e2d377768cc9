"""why_ended, why_raised, why_failed: why a command that came to its end gave no measurement."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path

import tvgrad
from tvgrad.errors import TvgradError
from tvgrad.integrations.measuring.placement import Placement
from tvgrad.problem.ranks import CONNECTION

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


def why_raised(placement: Placement | None) -> str:
    """Say what has ended the command in the middle of a pass, where it raised something.

    Args:
        placement: of the weights; None where the script made no optimizer.

    Returns:
        A sentence with the last line of the command's own; empty where nothing was raised, or no weights are in place.
    """
    error = getattr(sys, "last_value", None)
    if error is None or placement is None or placement.trained is None:
        return ""
    own = [one for one in traceback.extract_tb(error.__traceback__) if _is_own(one.filename)]
    where = f" at line {own[-1].lineno} of {Path(own[-1].filename).name}" if own else ""
    words = " ".join(str(error).split())
    return f"the command raised {type(error).__name__}{where}{f': {words}' if words else ''}"


def why_failed(error: Exception) -> str:
    """Say what went wrong in a pass.

    Args:
        error: what tvgrad's own work raised.

    Returns:
        A sentence.
    """
    words = str(error)
    if isinstance(error, RuntimeError) and any(one in words for one in CONNECTION):
        return (
            "the processes do not come to the end of the epoch together, or one of them has ended: where their loaders "
            "end at different steps, --steps-per-epoch tells the end"
        )
    return words if isinstance(error, TvgradError) else f"{type(error).__name__}: {words}"


def _is_own(filename: str) -> bool:
    """Whether a file is the command's own: none of a library, or of Python."""
    path = Path(filename)
    libraries = (Path(tvgrad.__file__).parent, Path(sysconfig.get_path("stdlib")))
    return (
        not filename.startswith("<")
        and "site-packages" not in path.parts
        and not any(map(path.is_relative_to, libraries))
    )
