"""Starts: one command, started again and again for passes at the weights of one run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvgrad.errors import TvgradError
from tvgrad.integrations.measuring.pass_options import PassOptions
from tvgrad.integrations.measuring.passes import PATIENCE, PassOutcome, run_pass
from tvgrad.integrations.measuring.placement import ANOTHER, PART
from tvgrad.integrations.measuring.why_ended import WITHOUT
from tvgrad.integrations.script.options import ScriptOptions
from tvgrad.store.run import Run


@dataclass(frozen=True)
class Starts:
    """How a run's command is started.

    Attributes:
        run: the run.
        command: as the user gives it; the one that the run names is never started.
        folder: where what the passes find is kept in files.
        model: the model's name, where several have the run's parameters; None as recorded.
        steps_per_epoch: optimizer steps in an epoch; None as recorded.
        patience: seconds until the command's first backward pass; None for a default that its epochs give.
    """

    run: Run
    command: Sequence[str]
    folder: Path
    model: str | None = None
    steps_per_epoch: int | None = None
    patience: float | None = None

    def pass_at(self, number: int, **plan: Any) -> PassOutcome:
        """Start the command for one pass.

        Args:
            number: of the point whose weights are put in.
            plan: more of `PassOptions`.

        Returns:
            What it has found.

        Raises:
            TvgradError: it has found nothing; the sentence says why.
        """
        steps, out = self.steps_per_epoch or self.run.info.get("steps_per_epoch"), str(self.run.root.absolute())
        options = ScriptOptions(out=out, notes="", command=tuple(self.command), steps_per_epoch=steps)
        model = self.model or self.run.info.get("model")
        trial = int(self.run.info.get("trial_steps", 0))
        told = PassOptions(run=out, number=number, parent=os.getpid(), model=model, trial=trial, **plan)
        longest = max((point.metrics.get("seconds", 0.0) for point in self.run.points), default=0.0)
        try:
            return run_pass(options, told, self.patience or max(PATIENCE, longest), self.folder)
        except TvgradError as error:
            later = later_training(self.run)
            if later and any(sign in str(error) for sign in (ANOTHER, PART, WITHOUT)):
                raise TvgradError(f"{error}{later}") from None
            raise


def later_training(run: Run) -> str:
    """Say why passes cannot measure a run that is not of its command's first training.

    Args:
        run: the run.

    Returns:
        The end of a sentence; nothing for a first training.
    """
    number = run.info.get("training", 1)
    if number == 1:
        return ""
    return (
        f"; the run is of training {number} of its command, and a measuring pass goes through the first: give a "
        "command that begins with this one (a fold of its own, say)"
    )
