"""`tvgrad verify`: checksums, completeness, and the exactness of the first epoch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tvgrad.errors import CheckFailed, TvgradError

from . import options

if TYPE_CHECKING:
    from tvgrad.store.run import Run
    from tvgrad.theory.equivalence import StepVerdict


@dataclass
class _Outcome:
    """What the checks of one run found; where files have problems, nothing else is checked."""

    run: str
    points: int = 0
    problems: list[str] = field(default_factory=list)
    verdicts: list[StepVerdict] = field(default_factory=list)
    replay: str | None = None
    passed: bool = False


@click.command()
@options.runs
@click.option("--replay", is_flag=True, help="Compute the recorded gradients again; needs --recipe.")
@click.option("--recipe", "target", help="TARGET of the recipe that made the run.")
@options.as_json
def verify(runs: tuple[Path, ...], replay: bool, target: str | None, as_json: bool) -> None:
    """Check RUNS: every file's checksum, completeness, and whether the first epoch is exact.

    `exact` means that every coordinate of the first task vector is the step that the update rule prescribes, within
    the rounding of one step. Exit code 1 when a file is damaged or an exactness that applies does not hold.

    \b
    Examples:
      tvgrad verify runs/digits
      tvgrad verify runs/digits/rotated runs/digits/parity --json
      tvgrad verify runs/digits --replay --recipe digits
    """
    from tvgrad.cli.open_runs import open_each

    from tvgrad.json_text import json_text
    from tvgrad.report.tables import run_names

    if replay != (target is not None):
        raise TvgradError("--replay and --recipe go together: give `--replay --recipe TARGET`")
    opened = open_each(runs)
    readable = [run for _, run, _ in opened if run is not None]
    names = dict(zip(readable, run_names(readable), strict=True))
    outcomes = []
    for directory, run, problems in opened:
        name = str(directory) if run is None else names[run]
        outcomes.append(_Outcome(name, problems=problems) if run is None else _check(run, name, target))
        if not as_json:
            _show(outcomes[-1])
    if as_json:
        found = {
            "runs": [{key: value for key, value in vars(one).items() if key != "verdicts"} for one in outcomes],
            "equivalence": [verdict.row() for one in outcomes for verdict in one.verdicts],
        }
        click.echo(json_text(found))
    failed = sum(not one.passed for one in outcomes)
    if failed:
        raise CheckFailed(f"{failed} of {len(outcomes)} runs did not pass")


def _check(run: Run, name: str, target: str | None) -> _Outcome:
    from tvgrad.cli.open_runs import problems_of

    from tvgrad.theory.equivalence import FAILS, check_one_epoch
    from tvgrad.theory.replay import replay_gradients

    outcome = _Outcome(name, len(run.epochs), problems_of(run, checksums=True))
    if outcome.problems:
        return outcome
    check = check_one_epoch(run)
    outcome.verdicts = [replace(verdict, run=name) for verdict in check.verdicts]
    outcome.passed = check.holds != FAILS
    if target is not None:
        replayed = replay_gradients(run, target)
        outcome.replay = replayed.sentence
        outcome.passed = outcome.passed and replayed.agrees
    return outcome


def _show(outcome: _Outcome) -> None:
    from tvgrad.theory.equivalence import APPLIES_NOT

    click.echo(f"{outcome.run}: {'damaged' if outcome.problems else f'{outcome.points} points whole'}")
    for problem in outcome.problems:
        click.echo(f"  {problem}")
    for verdict in outcome.verdicts:
        ratio = verdict.worst_ratio_to_budget
        detail = "" if verdict.holds == APPLIES_NOT else f" (worst ratio to budget {ratio:.3f})"
        click.echo(f"  {verdict.rule}: {verdict.holds}{detail}; {verdict.reason}")
    if outcome.replay is not None:
        click.echo(f"  replay: {outcome.replay}")
