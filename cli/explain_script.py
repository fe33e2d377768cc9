"""`tvgrad explain RUN -- COMMAND ...`: the error budget of a script's run, without a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from tvgrad.errors import TvgradError

from . import options


@click.command()
@click.argument("run", type=options.PATH)
@click.option("--epochs", default="1", show_default=True, help="Epochs whose error budget is made, by commas.")
@options.steps_per_epoch
@options.model
@options.patience
@click.pass_context
def explain_script(
    ctx: click.Context, run: Path, epochs: str, steps_per_epoch: int | None, model: str | None, patience: float | None
) -> None:
    """Explain RUN, a script's, by starting COMMAND again: why its task vectors are not exactly the gradient.

    COMMAND is the one that was traced. It is started twice, up to the end of the last epoch explained: once it trains
    as it did, and once it goes through the same batches at the pretrained weights. Two more starts for each epoch
    explained, of one epoch, estimate the curvature. The full-batch gradient at the pretrained weights is measured
    first, where it was not before. Everything is kept in RUN/results, where `tvgrad report` finds it.

    \b
    Examples:
      tvgrad explain runs/mine -- python finetune.py --lr 1e-4
      tvgrad explain runs/mine --epochs 1,3 -- python finetune.py --lr 1e-4
    """
    from tvgrad.cli.explain import close, show
    from tvgrad.cli.measure import check_command, measure_points

    from tvgrad.integrations.measuring.curvature_passes import curvature_passes
    from tvgrad.integrations.measuring.explain_passes import explain_passes
    from tvgrad.integrations.script.notes import say
    from tvgrad.problem.evaluations import Evaluations
    from tvgrad.store.run import Run
    from tvgrad.theory.explain import Explanation, write_results
    from tvgrad.theory.script_budget import followed_epochs, script_budget, step_plan
    from tvgrad.wording import counted

    command: tuple[str, ...] = tuple(ctx.obj or ())
    check_command(command)
    try:
        wanted = [int(part) for part in epochs.split(",")]
    except ValueError:
        raise TvgradError(f"--epochs {epochs!r} is no list of numbers: give --epochs 1,5,10") from None
    opened = Run.open(run)
    plan = step_plan(opened, wanted)
    given = {"steps_per_epoch": steps_per_epoch, "model": model, "patience": patience}
    if 0 not in opened.having("gradient"):
        measure_points(opened, command, [0], **given)  # type: ignore[arg-type]
        opened = Run.open(run)
    last = len(plan.ends) - 1
    say(
        f"explaining: two starts of the command, each of {counted(last, 'epoch')} of forward and backward, and up to "
        f"{2 * len(plan.weights)} more of one epoch"
    )
    found = explain_passes(opened, command, plan, **given)  # type: ignore[arg-type]
    followed = followed_epochs(opened, found.trained, found.same_batches)
    bent = curvature_passes(opened, command, plan, found, followed, **given)  # type: ignore[arg-type]
    sums = found.trained, found.at_start, found.same_batches
    budget = script_budget(opened, plan, *sums, products=bent.products, said=bent.sentences)
    made = Explanation((), budget, Evaluations(), Evaluations(), budget.sentences)
    write_results(opened, made)
    show(opened.name, made)
    click.echo(f"kept in {opened.root / 'results'}")
    close(opened.name, made)
