"""`tvgrad explain RUN -- COMMAND ...`: the error budget of a script's run, without a recipe."""

from __future__ import annotations

from dataclasses import replace
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
@click.option("--curvature/--no-curvature", default=True, show_default=True, help="Estimate it, by two more starts.")
@click.option("--one-sided", is_flag=True, help="Estimate the curvature by one more start, whose error is not known.")
@click.pass_context
def explain_script(
    ctx: click.Context,
    run: Path,
    epochs: str,
    steps_per_epoch: int | None,
    model: str | None,
    patience: float | None,
    curvature: bool,
    one_sided: bool,
) -> None:
    """Explain RUN, a script's, by starting COMMAND again: why its task vectors are not exactly the gradient.

    COMMAND is the one that was traced. It is started twice, up to the end of the last epoch explained: once it trains
    as it did, and once it goes through the same batches at the pretrained weights. Two more starts for each epoch
    explained, of one epoch, estimate the curvature (one with --one-sided); without them it is one row with others.
    Where the full-batch gradient at the pretrained weights was not measured before, the second of these starts measures
    it too, with up to two more that confirm it. Everything is kept in RUN/results, where `tvgrad report` finds it.

    \b
    Examples:
      tvgrad explain runs/mine -- python finetune.py --lr 1e-4
      tvgrad explain runs/mine --epochs 1,3 -- python finetune.py --lr 1e-4
    """
    from tvgrad.cli.explain import close, show
    from tvgrad.cli.measure import check_command

    from tvgrad.integrations.measuring.curvature_passes import curvature_passes
    from tvgrad.integrations.measuring.explain_passes import explain_passes
    from tvgrad.integrations.measuring.passes import folder_of_passes
    from tvgrad.integrations.measuring.starts import Starts
    from tvgrad.integrations.script.notes import say
    from tvgrad.problem.evaluations import Evaluations
    from tvgrad.store.run import Run
    from tvgrad.theory.explain import Explanation, require_place_for_results, write_results
    from tvgrad.theory.script_budget import followed_epochs, script_budget, step_plan
    from tvgrad.wording import counted, printable

    command: tuple[str, ...] = tuple(ctx.obj or ())
    check_command(command)
    if one_sided and not curvature:
        raise TvgradError("--one-sided is how the curvature is estimated, which --no-curvature leaves out: give one")
    try:
        wanted = [int(part) for part in epochs.split(",")]
    except ValueError:
        raise TvgradError(f"--epochs {epochs!r} is no list of numbers: give --epochs 1,5,10") from None
    opened = Run.open(run)
    require_place_for_results(opened)
    plan = step_plan(opened, wanted, curvature)
    unmeasured = 0 not in opened.having("gradient")
    last = len(plan.ends) - 1
    starts_an_epoch = 1 if one_sided else 2
    more = f", and up to {starts_an_epoch * len(plan.weights)} more of one epoch" if curvature else ""
    first = "; the gradient at the pretrained weights takes up to two more" if unmeasured else ""
    say(f"explaining: two starts of the command, each of {counted(last, 'epoch')} of forward and backward{more}{first}")
    with folder_of_passes() as folder:
        starts = Starts(opened, command, folder, model, steps_per_epoch, patience)
        found = explain_passes(starts, plan, on_measured=lambda made: say(f"gradient at epoch 0: {made.sentence}"))
        opened = Run.open(run)
        followed = followed_epochs(opened, found.trained, found.same_batches) if curvature else []
        bent = curvature_passes(replace(starts, run=opened), plan, found, followed, one_sided=one_sided)
        sums = found.trained, found.at_start, found.same_batches
        budget = script_budget(opened, plan, *sums, products=bent.products, said=bent.sentences)
    made = Explanation((), budget, Evaluations(), Evaluations(), budget.sentences)
    write_results(opened, made)
    show(opened.name, made)
    click.echo(f"kept in {printable(str(opened.root / 'results'))}")
    close(opened.name, made)
