"""`tvgrad verify`: checksums, completeness, and the exactness of the first epoch."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--replay", is_flag=True, help="Compute the recorded gradients again; needs --recipe.")
@click.option("--recipe", "target", help="TARGET of the recipe that made the run.")
def verify(runs: tuple[Path, ...], replay: bool, target: str | None) -> None:
    """Check RUNS: every file's checksum, completeness, and whether the first epoch is exact.

    `exact` means that every coordinate of the first task vector is the step that the update rule prescribes, within
    the rounding of one step. Exit code 1 when a file is damaged or an exactness that applies does not hold.

    \b
    Examples:
      tvgrad verify runs/digits
      tvgrad verify runs/digits/rotated runs/digits/parity
      tvgrad verify runs/digits --replay --recipe digits
    """
    from tvgrad.cli.open_runs import open_each, problems_of

    from tvgrad.errors import CheckFailed, TvgradError
    from tvgrad.report.tables import run_names
    from tvgrad.theory.equivalence import APPLIES_NOT, FAILS, check_one_epoch
    from tvgrad.theory.replay import replay_gradients

    if replay != (target is not None):
        raise TvgradError("--replay and --recipe go together: give `--replay --recipe TARGET`")
    opened = open_each(runs)
    readable = [run for _, run, _ in opened if run is not None]
    names = dict(zip(readable, run_names(readable), strict=True))
    failed = 0
    for directory, run, found in opened:
        name = str(directory) if run is None else names[run]
        problems = found if run is None else problems_of(run, checksums=True)
        if run is None or problems:
            failed += 1
            click.echo(f"{name}: damaged")
            for problem in problems:
                click.echo(f"  {problem}")
            continue
        click.echo(f"{name}: {len(run.epochs)} points whole")
        check = check_one_epoch(run)
        passed = check.holds != FAILS
        for verdict in check.verdicts:
            ratio = verdict.worst_ratio_to_budget
            detail = "" if verdict.holds == APPLIES_NOT else f" (worst ratio to budget {ratio:.3f})"
            click.echo(f"  {verdict.rule}: {verdict.holds}{detail}; {verdict.reason}")
        if target is not None:
            outcome = replay_gradients(run, target)
            passed = passed and outcome.agrees
            click.echo(f"  replay: {outcome.sentence}")
        failed += not passed
    if failed:
        raise CheckFailed(f"{failed} of {len(opened)} runs did not pass")
