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
    from tvgrad.errors import CheckFailed, TvgradError
    from tvgrad.record.run import open_runs
    from tvgrad.report.tables import run_names
    from tvgrad.theory.equivalence import FAILS, check_one_epoch
    from tvgrad.theory.replay import replay_gradients

    if replay != (target is not None):
        raise TvgradError("--replay and --recipe go together: give `--replay --recipe TARGET`")
    opened = open_runs(runs)
    failed = 0
    for run, name in zip(opened, run_names(opened), strict=True):
        problems = run.problems()
        if problems:
            failed += 1
            click.echo(f"{name}: damaged")
            for problem in problems:
                click.echo(f"  {problem}")
            continue
        click.echo(f"{name}: {len(run.epochs)} points whole")
        check = check_one_epoch(run)
        failed += check.holds == FAILS
        for verdict in check.verdicts:
            ratio = verdict.worst_ratio_to_budget
            detail = f" (worst ratio to budget {ratio:.3f})" if verdict.holds != "does not apply" else ""
            click.echo(f"  {verdict.rule}: {verdict.holds}{detail}; {verdict.reason}")
        if target is not None:
            outcome = replay_gradients(run, target)
            failed += not outcome.agrees
            click.echo(f"  replay: {outcome.sentence}")
    if failed:
        raise CheckFailed(f"{failed} of {len(opened)} runs did not pass")
