"""Spread recording: scripts whose parameters are spread over processes (FSDP2), all of which record together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from tvgrad.integrations.script.continuation import Continuation
from tvgrad.integrations.script.find_trained_module import held_by
from tvgrad.integrations.script.notes import help_silently
from tvgrad.integrations.script.options import ScriptOptions
from tvgrad.record.spread_model import SpreadModel
from tvgrad.record.spread_writer import SpreadWriter
from tvgrad.store.background import BackgroundWriter
from tvgrad.store.layout import MANIFEST
from tvgrad.store.writer import RunWriter
from tvgrad.vectors.spread import is_spread


def helps(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether a process that is not the first takes part in the recording: it holds a part of the parameters.

    Args:
        optimizer: that is about to step.

    Returns:
        Whether it does; from then on it says nothing.
    """
    spread = any(map(is_spread, held_by(optimizer).values()))
    if spread:
        help_silently()
    return spread


def spread_model(parameters: Mapping[str, torch.Tensor]) -> SpreadModel | None:
    """Find out whether parameters are spread over processes.

    Args:
        parameters: name -> parameter, those that are recorded.

    Returns:
        Them, to be gathered; None where every process has all of them.

    Raises:
        TvgradError: they are spread in a way that is not recorded.
    """  # noqa: DOC502 - raised by SpreadModel
    return SpreadModel(parameters) if any(map(is_spread, parameters.values())) else None


def continuation_of(
    parameters: Mapping[str, torch.Tensor], options: ScriptOptions, spread: SpreadModel | None
) -> Continuation | None:
    """Find the run that a script goes on with.

    Args:
        parameters: name -> parameter, those that are recorded.
        options: how to record.
        spread: the parameters, where they are spread over processes: on how many a run was recorded makes no
            difference.

    Returns:
        It; None where there is none to go on with.

    Raises:
        TvgradError: the run that is there does not end with the weights that the script begins with.
    """
    out = Path(options.out)
    if not options.resume:
        return None
    there = (out / MANIFEST).exists()
    if not (there if spread is None else spread.gathered(there)[0]):
        return None
    return Continuation.find(out, parameters, options.record_at.unit, options.keep_gradients, spread)


def writer_of(
    opened: Callable[[], RunWriter], options: ScriptOptions, spread: SpreadModel | None
) -> BackgroundWriter | SpreadWriter:
    """Open the run for writing.

    Args:
        opened: makes the writer.
        options: how to record.
        spread: the parameters, where they are spread over processes.

    Returns:
        A writer in a thread; of several processes one that writes before training goes on.
    """
    if spread is None:
        return BackgroundWriter(opened)
    return SpreadWriter(opened, Path(options.out), spread, options.keep_gradients)
