"""Continuation: a script that loads its own checkpoint goes on with the run that its earlier part was recorded in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.integrations.script.notes import say
from tvgrad.integrations.script.weights_watch import differ
from tvgrad.numerics.device import distributed_count
from tvgrad.record.run_header import read_rule
from tvgrad.record.spread_model import SpreadModel
from tvgrad.store.kept_gradients import ALL_GRADIENTS, KeptGradients
from tvgrad.store.run import Run
from tvgrad.store.writer import RunWriter
from tvgrad.vectors.spread import own_part

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
        cls,
        out: Path,
        parameters: Mapping[str, torch.Tensor],
        unit: str,
        gradients: KeptGradients,
        spread: SpreadModel | None = None,
    ) -> Continuation:
        """Compare a script's weights with those that a run ends with.

        Args:
            out: the run directory.
            parameters: name -> parameter that the script trains.
            unit: what its points would count, epoch or step.
            gradients: how they are to be kept.
            spread: the parameters where several processes hold parts of them: each compares what it keeps.

        Returns:
            The run to go on with.

        Raises:
            TvgradError: the run is of another model, ends with other weights, or its points count something else; of
                several processes in all of them.
        """
        present = parameters if spread is None else spread.whole(lambda name: own_part(parameters[name]))

        def compared() -> tuple[Run, bool]:
            run = _of_this_model(out, parameters, unit, gradients)
            return run, _has(run, run.points[-1].number, present)

        def beginnings() -> set[int]:
            return {number for number in run.epochs[:-1] if _has(run, number, present)}

        if spread is None:
            run, at_end = compared()
            begins = set() if at_end else beginnings()
        else:
            run, own_at_end = spread.tried(compared)
            at_end = all(spread.gathered(own_at_end))
            begins = set() if at_end else set.intersection(*spread.gathered(spread.tried(beginnings)))
        if not at_end:
            raise TvgradError(_elsewhere(run, begins))
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
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        parameters: Mapping[str, nn.Parameter],
        spread: SpreadModel | None = None,
    ) -> dict[str, Any]:
        """Say what is new in the run's description.

        Args:
            optimizers: those that go on.
            parameters: name -> parameter.
            spread: the parameters, where they are spread over processes now.

        Returns:
            Facts for run.json.
        """
        info = self.run.info
        facts: dict[str, Any] = {
            "resumed_at": [*info.get("resumed_at", ()), self.number],
            "stopped": None,
            "steps_unrecorded": None,
        }
        if spread is not None or distributed_count() > 1 or "processes" in info:
            facts["processes"] = distributed_count()
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


def _of_this_model(out: Path, names: Collection[str], unit: str, gradients: KeptGradients) -> Run:
    """Open a run that a script may go on with, but for its weights."""
    run = Run.open(out)
    if run.unit != unit:
        raise TvgradError(f"{out} was recorded at {run.unit}s and cannot go on at {unit}s: give --record-at as before")
    before = run.info.get("keep_gradients", ALL_GRADIENTS)
    if before != gradients:
        raise TvgradError(
            f"{out} was recorded with --keep-gradients {before} and cannot go on with {gradients}: give "
            "--keep-gradients as before"
        )
    odd = sorted(run.parameters.keys() ^ set(names))
    if odd:
        raise TvgradError(f"{out} records another model ({odd[0]} is in one of them): give another --out")
    last = run.points[-1].number
    if last not in run.epochs:
        raise TvgradError(f"{out} keeps no weights at its end, {unit} {last}: give another --out")
    return run


def _has(run: Run, number: int, present: Mapping[str, torch.Tensor]) -> bool:
    """Whether a point has these weights, of which it may have more."""
    with run.file("weights", number) as file:
        return not any(differ({name: file.read(name)}, present) for name in present)


def _elsewhere(run: Run, begins: Collection[int]) -> str:
    """Where a script begins, if not at the end of the run."""
    where = f"those of {run.unit} {min(begins)}" if begins else "others"
    return (
        f"{run.root} ends with the weights of {run.unit} {run.points[-1].number}, and the script begins with {where}: "
        "load the checkpoint that was saved there, or give another --out"
    )


def _without_rates(rule: Any) -> Any:
    """A rule as plain values, without its rates: a schedule has changed them."""
    if isinstance(rule, dict):
        return {name: _without_rates(value) for name, value in rule.items() if name != "lr"}
    return [_without_rates(one) for one in rule] if isinstance(rule, list) else rule
