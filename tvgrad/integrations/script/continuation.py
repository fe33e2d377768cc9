"""Continuation: a script that loads its own checkpoint goes on with the run that its earlier part was recorded in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.integrations.script.notes import say
from tvgrad.integrations.script.weights_watch import differ
from tvgrad.record.run_header import read_rule
from tvgrad.store.kept_gradients import ALL_GRADIENTS, KeptGradients
from tvgrad.store.run import Run
from tvgrad.store.writer import RunWriter

BEGUN = "the optimizer began with the state of an earlier training"


@dataclass(frozen=True)
class Continuation:
    """A run whose last point has the weights that a script begins with.

    Attributes:
        run: the run, as it was.
    """

    run: Run

    @classmethod
    def find(
        cls, out: Path, parameters: Mapping[str, nn.Parameter], unit: str, gradients: KeptGradients
    ) -> Continuation:
        """Compare a script's weights with those that a run ends with.

        Args:
            out: the run directory.
            parameters: name -> parameter that the script trains.
            unit: what its points would count, epoch or step.
            gradients: how they are to be kept.

        Returns:
            The run to go on with.

        Raises:
            TvgradError: the run is of another model, ends with other weights, or its points count something else.
        """
        run = Run.open(out)
        if run.unit != unit:
            raise TvgradError(
                f"{out} was recorded at {run.unit}s and cannot go on at {unit}s: give --record-at as before"
            )
        before = run.info.get("keep_gradients", ALL_GRADIENTS)
        if before != gradients:
            raise TvgradError(
                f"{out} was recorded with --keep-gradients {before} and cannot go on with {gradients}: give "
                "--keep-gradients as before"
            )
        odd = sorted(run.parameters.keys() ^ parameters.keys())
        if odd:
            raise TvgradError(f"{out} records another model ({odd[0]} is in one of them): give another --out")
        last = run.points[-1].number
        if last not in run.epochs:
            raise TvgradError(f"{out} keeps no weights at its end, {unit} {last}: give another --out")
        if differ(run.weights(last), parameters):
            raise TvgradError(_elsewhere(run, parameters, last))
        return cls(run)

    @property
    def number(self) -> int:
        """Of the last point."""
        return self.run.points[-1].number

    @property
    def steps(self) -> int:
        """Optimizer steps up to the last point."""
        return self.run.points[-1].steps

    @property
    def groups(self) -> list[dict[str, Any]] | None:
        """The options of the parameter groups at the first step of all."""
        return self.run.info.get("optimizer_groups")

    @property
    def moved(self) -> int:
        """How often weights were seen to move outside the steps, up to the last point."""
        return int(self.run.info.get("moved_outside_steps") or 0)

    def writer(self) -> RunWriter:
        """Open the run for writing.

        Returns:
            The writer.
        """
        return RunWriter.resume(self.run.root)

    def facts(
        self, optimizers: Sequence[torch.optim.Optimizer], parameters: Mapping[str, nn.Parameter]
    ) -> dict[str, Any]:
        """Say what is new in the run's description.

        Args:
            optimizers: those that go on.
            parameters: name -> parameter.

        Returns:
            Facts for run.json.
        """
        info = self.run.info
        facts: dict[str, Any] = {
            "resumed_at": [*info.get("resumed_at", ()), self.number],
            "stopped": None,
            "steps_unrecorded": None,
        }
        if info.get("rule") is not None:
            now = read_rule(optimizers, parameters)["rule"]
            if _without_rates(now) != _without_rates(info["rule"]):
                reason = f"the script went on with other options of its optimizer after step {self.steps}"
                facts |= {"rule": None, "rule_reason": reason}
        return facts

    def announce(self) -> None:
        """Say that the run goes on."""
        say(f"{self.run.root} goes on from {self.run.unit} {self.number}, whose weights the script begins with")


def begun_before(optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Tell whether optimizers have stepped before the step that they are about to take.

    Args:
        optimizers: of a script.

    Returns:
        Whether one holds a count of steps or a momentum, as one does whose state was loaded from a checkpoint.
    """
    states = [state for optimizer in optimizers for state in optimizer.state.values() if isinstance(state, dict)]
    return any(float(state.get("step") or 0) > 0 or state.get("momentum_buffer") is not None for state in states)


def announce_begun(out: Path) -> dict[str, Any]:
    """Say that a script goes on from a training that is not in its run.

    Args:
        out: its run.

    Returns:
        Facts for run.json: the rule's formulas begin with an empty state.
    """
    say(
        f"{BEGUN}, so that epoch 0 of {out} is where this part of it begins, and no update rule is recorded; `tvgrad "
        "trace --resume --out RUN -- COMMAND` adds a script that loads its checkpoint to the RUN of its earlier part"
    )
    return {"rule": None, "rule_reason": BEGUN}


def _elsewhere(run: Run, parameters: Mapping[str, nn.Parameter], last: int) -> str:
    """Where the script begins, if not at the end of the run."""
    begins = next((number for number in run.epochs[:-1] if not differ(run.weights(number), parameters)), None)
    where = f"those of {run.unit} {begins}" if begins is not None else "others"
    return (
        f"{run.root} ends with the weights of {run.unit} {last}, and the script begins with {where}: load the "
        "checkpoint that was saved there, or give another --out"
    )


def _without_rates(rule: Any) -> Any:
    """A rule as plain values, without its rates: a schedule has changed them."""
    if isinstance(rule, dict):
        return {name: _without_rates(value) for name, value in rule.items() if name != "lr"}
    return [_without_rates(one) for one in rule] if isinstance(rule, list) else rule
