"""`tvgrad measure RUN -- COMMAND ...`: full-batch gradients of an unchanged script, at recorded weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tvgrad.errors import TvgradError

from . import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvgrad.store.run import Run


@click.command()
@click.argument("run", type=options.PATH)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--at", default="0", show_default=True, help="Points: numbers, last or all, as in 0,1,last.")
@options.steps_per_epoch
@options.model
@options.patience
@click.option("--quiet", is_flag=True, help="Say nothing where all is well.")
def measure(
    run: Path,
    command: tuple[str, ...],
    at: str,
    steps_per_epoch: int | None,
    model: str | None,
    patience: float | None,
    quiet: bool,
) -> None:
    """Measure the full-batch gradient at points of RUN, by passes of COMMAND at the weights recorded there.

    COMMAND is the one that was traced, as it stands. It is started twice at the first point, and once at each later one
    where that gave the exact full batch's gradient: the recorded weights are put into its model, its optimizer changes
    nothing, and it is ended after one epoch. What it writes before that, it writes again.

    \b
    Examples:
      tvgrad measure runs/mine --at 0,1,last -- python finetune.py --lr 1e-4
      tvgrad measure runs/gan --at 0 --model generator -- python gan.py
    """
    from tvgrad.integrations.measuring.measure import points_of
    from tvgrad.store.run import Run

    check_command(command)
    opened = Run.open(run)
    measure_points(
        opened,
        command,
        points_of(opened, at),
        steps_per_epoch=steps_per_epoch,
        model=model,
        patience=patience,
        quiet=quiet,
    )


def check_command(command: Sequence[str]) -> None:
    """Refuse a command that is not there, before long work.

    Args:
        command: the words after `--`.

    Raises:
        TvgradError: there are none, or the first is no program.
    """
    if not command:
        raise TvgradError(
            "there is no command after `--`: give the one that was traced, as in `RUN -- python train.py`"
        )
    if shutil.which(command[0]) is None:
        raise TvgradError(f"the command {command[0]!r} is not found: give one that your shell would find")


def measure_points(
    run: Run,
    command: Sequence[str],
    points: Sequence[int],
    *,
    steps_per_epoch: int | None = None,
    model: str | None = None,
    patience: float | None = None,
    quiet: bool = False,
) -> None:
    """Say what measuring costs, measure, and say what was measured.

    Args:
        run: the run.
        command: as the user gives it.
        points: where.
        steps_per_epoch: optimizer steps in an epoch, where they are not those recorded.
        model: the model's name, where several have the run's parameters.
        patience: seconds until the command's first backward pass.
        quiet: say nothing where all is well.
    """
    from tvgrad.integrations.measuring.measure import cost_sentence
    from tvgrad.integrations.measuring.measure import measure as measured
    from tvgrad.integrations.script.notes import say
    from tvgrad.record.measurement import Measurement

    def show(number: int, made: Measurement) -> None:
        if not quiet:
            say(f"gradient at {run.unit} {number}: {made.sentence}")

    if not quiet:
        say(f"measuring gradients: {cost_sentence(run, points)}")
    measured(run.root, command, points, model=model, steps_per_epoch=steps_per_epoch, patience=patience, on_point=show)
