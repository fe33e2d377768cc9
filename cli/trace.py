"""`tvgrad trace`: fine-tune a recipe and record it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import OPTIMIZERS
from tvgrad.wording import printable

from . import options

if TYPE_CHECKING:
    from tvgrad.problem.crew import Crew
    from tvgrad.problem.recipe import Recipe
    from tvgrad.record.training_loop import Prepared
    from tvgrad.store.run import Run


@click.command()
@click.argument("target")
@options.run_directory
@options.tasks
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), help="gd is full-batch gradient descent.")
@options.lr
@options.momentum
@click.option("--weight-decay", type=float, help="Coupled; decoupled for adamw.")
@click.option("--epochs", type=int, help="Passes over the data.")
@click.option("--batch-size", type=int, help="Samples in a mini-batch (every optimizer but gd).")
@options.dtype
@options.device
@click.option("--seed", type=int, default=0, show_default=True, help="Orders of mini-batches.")
@click.option(
    "--record", default="gradients", show_default=True, help="gradients, epoch-gradients, batches; weights always."
)
@options.record_at
@options.keep
@options.keep_gradients
@options.groups
@options.chunk_size
@options.allow
@click.option("--resume", is_flag=True, help="Go on with an interrupted run; options not given again are as they were.")
@options.overwrite
@options.cost
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.pass_context
def trace(
    context: click.Context,
    target: str,
    out: Path,
    tasks: str | None,
    quiet: bool,
    record: str,
    allow: str | None,
    overwrite: bool,
    cost: bool,
    **given: Any,
) -> None:
    """Fine-tune TARGET and record weights and full-batch gradients after every epoch.

    TARGET is a built-in recipe, file.py, file.py:function or package.module:function; the function (default name:
    recipe) returns a tvgrad.Recipe or a list of them. One task is recorded in OUT, several in OUT/<task>.

    \b
    Examples:
      tvgrad trace digits --out runs/digits
      tvgrad trace digits --out runs/adam --optimizer adam --lr 1e-3 \\
        --batch-size 64 --record gradients,epoch-gradients
      tvgrad trace my_recipe.py --out runs/mine --epochs 5 --dtype float64
      tvgrad trace digits --out runs/digits --resume
      tvgrad trace digits --out runs/digits --cost

    \b
    Several processes share every pass over the data:
      torchrun --nproc-per-node 2 -m tvgrad trace my_recipe.py --out runs/mine

    \b
    Any script, unchanged (options: `tvgrad trace --help --`):
      tvgrad trace --out runs/mine -- python finetune.py
    \b
    Weights that exist already:
      tvgrad trace --from-checkpoints base.safetensors tuned.safetensors \\
        --recipe my_recipe.py --out runs/old
    """
    from tvgrad.cli.launcher_ranks import crew_of_launcher
    from tvgrad.cli.terminal import epochs_bar

    from tvgrad.record.options import TraceOptions, as_started
    from tvgrad.record.training_loop import check_directory, check_space, prepare
    from tvgrad.record.training_loop import trace as run_trace
    from tvgrad.store.layout import MANIFEST

    wanted = TraceOptions(target=target, record=options.names_in(record), allow=options.names_in(allow), **given)
    if overwrite and wanted.resume:
        raise TvgradError("a run is either resumed or overwritten: give one of --resume and --overwrite")
    said = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    with crew_of_launcher() as crew:
        chosen = _recipes(target, options.names_in(tasks), crew)
        if len(chosen) == 1:
            out = options.free_place(context, out, chosen[0].name, replaced=overwrite or wanted.resume)
        places = {recipe.name: out if len(chosen) == 1 else out / recipe.name for recipe in chosen}
        if len(chosen) > 1 and (out / MANIFEST).exists():
            taken = f"{out} holds the run of one task and {target} has several"
            raise TvgradError(f"{taken}: choose another --out, or --tasks")
        if crew is None or crew.leads:
            for place in places.values():
                check_directory(place, wanted.resume, overwrite)
        if crew is not None and not crew.begin():
            return
        prepared = [prepare(recipe, as_started(wanted, places[recipe.name], said), crew) for recipe in chosen]
        if crew is not None and not crew.leads:
            crew.serve([one.objective for one in prepared])
            return
        if cost:
            _tell_costs(prepared)
            return
        check_space([(one, places[one.recipe.name]) for one in prepared])
        for one in prepared:
            place = places[one.recipe.name]
            with epochs_bar(one.recipe.name, one.epochs, quiet) as on_epoch:
                run = run_trace(one, place, on_epoch, overwrite=overwrite)
            if not quiet:
                click.echo(_done(place, run))
    if not quiet:
        shown = printable(shlex.quote(str(out)))
        click.echo(f"Next: `tvgrad verify {shown}` checks it, `tvgrad report {shown} --out report` shows it.")


def _recipes(target: str, tasks: tuple[str, ...], crew: Crew | None) -> list[Recipe]:
    """The recipes; of several processes all must have the same."""
    from tvgrad.recipes.catalogue import load_recipes

    if crew is None:
        return load_recipes(target, tasks)
    return crew.same(lambda: load_recipes(target, tasks), lambda made: {"recipe": "; ".join(map(_described, made))})


def _described(recipe: Recipe) -> str:
    """What recipes of several processes may differ in before their models and data are compared."""
    plan = f"{recipe.optimizer}, lr {recipe.lr:g}, {recipe.epochs} epochs, batch size {recipe.batch_size or 'all'}"
    return f"{recipe.name}: {plan}, {len(recipe.train)} samples"


def _done(place: Path, run: Run) -> str:
    """What was recorded, in one sentence."""
    last = run.points[-1]
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in last.metrics.items() if name != "seconds")
    points = f"{len(run.epochs)} points, {run.unit} {last.number}"
    return f"{printable(str(place))}: {points}{': ' + numbers if numbers else ''}"


def _tell_costs(prepared: list[Prepared]) -> None:
    """A sentence for each task."""
    from tvgrad.record.trace_cost import trace_cost
    from tvgrad.theory.budget_plan import gradient_seconds

    for one in prepared:
        click.echo(trace_cost(one, gradient_seconds(one.objective)).sentence)
