"""`tvgrad verify`: checksums, completeness, and the exactness of the first epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tvgrad.errors import CheckFailed, DamagedRun, TvgradError

from . import options

if TYPE_CHECKING:
    from tvgrad.store.run import Run
    from tvgrad.theory.verdicts import EquivalenceRow


@dataclass
class _Outcome:
    """What the checks of one run found; where files have problems, nothing else is checked."""

    run: str
    points: int = 0
    problems: list[str] = field(default_factory=list)
    verdicts: list[EquivalenceRow] = field(default_factory=list)
    replay: str | None = None
    chunks: str | None = None
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

    from tvgrad.report.tables import run_names
    from tvgrad.results import json_text
    from tvgrad.wording import printable

    if replay != (target is not None):
        raise TvgradError("--replay and --recipe go together: give `--replay --recipe TARGET`")
    opened = open_each(runs)
    readable = [run for _, run, _ in opened if run is not None]
    names = dict(zip(readable, run_names(readable), strict=True))
    outcomes = [
        _Outcome(printable(str(directory)), problems=problems) if run is None else _check(run, names[run], target)
        for directory, run, problems in opened
    ]
    if not as_json:
        _show_all(outcomes)
    else:
        found = {
            "runs": [{key: value for key, value in vars(one).items() if key != "verdicts"} for one in outcomes],
            "equivalence": [verdict.row() for one in outcomes for verdict in one.verdicts],
        }
        click.echo(json_text(found))
    failed = sum(not one.passed for one in outcomes)
    if not failed and not as_json:
        click.echo(f"{'The run passes' if len(outcomes) == 1 else f'All {len(outcomes)} runs pass'}.")
    if failed:
        raise CheckFailed(f"{failed} of {len(outcomes)} runs did not pass")


def _check(run: Run, name: str, target: str | None) -> _Outcome:
    from tvgrad.cli.open_runs import problems_of

    from tvgrad.theory.equivalence import FAILS
    from tvgrad.theory.replay import replay_gradients
    from tvgrad.theory.verdicts import verdict_rows

    outcome = _Outcome(name, len(run.epochs), problems_of(run, checksums=True))
    if outcome.problems:
        return outcome
    try:
        outcome.verdicts = list(verdict_rows(run, name))
    except DamagedRun as error:  # the files are as they were written, and what was written is no run's
        outcome.problems.append(str(error))
        return outcome
    outcome.passed = all(row.holds != FAILS for row in outcome.verdicts)
    if target is not None:
        replayed = replay_gradients(run, target)
        outcome.replay = replayed.sentence
        outcome.passed = outcome.passed and replayed.agrees
        if replayed.chunks is not None:
            outcome.chunks = replayed.chunks.sentence
            outcome.passed = outcome.passed and replayed.chunks.agrees
    return outcome


def _show_all(outcomes: list[_Outcome]) -> None:
    """What must be known in the first line: damage, then both verdicts."""
    from tvgrad.cli.terminal import say

    from tvgrad.theory.verdicts import headline
    from tvgrad.wording import listed

    damaged = [outcome.run for outcome in outcomes if outcome.problems]
    rows = [row for outcome in outcomes for row in outcome.verdicts]
    say(" ".join([*([f"Damaged: {listed(damaged, 5)}."] if damaged else []), *([headline(rows)] if rows else [])]))
    for outcome in outcomes:
        _show(outcome)


def _show(outcome: _Outcome) -> None:
    from tvgrad.cli.terminal import say

    from tvgrad.theory.equivalence import APPLIES_NOT
    from tvgrad.theory.verdicts import UNKNOWN
    from tvgrad.wording import counted, printable

    say(f"{outcome.run}: {'damaged' if outcome.problems else counted(outcome.points, 'point') + ' whole'}")
    for problem in outcome.problems:
        say(f"  {printable(problem)}")
    for verdict in outcome.verdicts:
        ratio = verdict.worst_ratio_to_budget
        detail = "" if verdict.holds == APPLIES_NOT else f" (worst ratio to the rounding bound {ratio:.3f})"
        say(f"  {verdict.rule}: {verdict.holds}{detail}; {verdict.reason}", verdict.holds)
    for said in dict.fromkeys((row.gradient_holds, row.far, row.cause, row.trouble) for row in outcome.verdicts):
        holds, far, cause, trouble = said
        words = [*([] if holds == UNKNOWN else [far]), *([cause] if cause else [])]
        say(f"  tau_1 = -lr x full-batch gradient: {holds}; {'; '.join(words)}", holds)
        if trouble:
            say(f"  trouble: {trouble}")
    if outcome.replay is not None:
        say(f"  replay: {outcome.replay}")
    if outcome.chunks is not None:
        say(f"  chunks: {outcome.chunks}")
