"""`tvgrad trace --out DIR -- COMMAND ...`: run any PyTorch training script, unchanged, and record it.

This module imports no torch: the script should not wait for that twice.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from tvgrad.errors import TvgradError
from tvgrad.integrations.script.launch import check, end_like, later_trainings, launch, name_of
from tvgrad.integrations.script.notes import say
from tvgrad.integrations.script.options import ScriptOptions

from . import options

RECORDED = "epoch-gradients"


@click.command()
@options.run_directory
@options.steps_per_epoch
@options.record_at
@click.option(
    "--record",
    default=RECORDED,
    show_default=True,
    help="epoch-gradients, gradient-norms (of each step), or none; weights always, gradients by --recipe.",
)
@options.keep
@options.keep_gradients
@options.groups
@options.model
@click.option("--frozen", is_flag=True, help="Record frozen parameters too: for scripts that train them later.")
@click.option("--gradients", help="Points whose full-batch gradient is measured afterwards: numbers, last or all.")
@options.patience
@click.option("--recipe", help="TARGET of a recipe: adds full-batch gradients at the recorded weights afterwards.")
@options.overwrite
@click.option("--resume", is_flag=True, help="Go on with the run in --out: the script loads its own checkpoint.")
@click.option("--strict", is_flag=True, help="End the script where recording fails (exit code 2).")
@click.option("--quiet", is_flag=True, help="Say nothing where all is well.")
@click.pass_context
def trace_script(
    ctx: click.Context,
    out: Path,
    recipe: str | None,
    gradients: str | None,
    patience: float | None,
    quiet: bool,
    record: str,
    strict: bool,
    **given: object,
) -> None:
    """Run COMMAND, any PyTorch training script, and record weights and gradients at the end of every epoch.

    The script's output, numbers and exit code stay as they are. What tvgrad has to say goes to standard error.

    \b
    Examples:
      tvgrad trace --out runs/mine -- python finetune.py --lr 1e-4
      tvgrad trace --out runs/ -- python finetune.py
      tvgrad trace --out runs/mine \\
        --resume -- python finetune.py --from checkpoint.pt
      tvgrad trace --out runs/mine \\
        --steps-per-epoch 500 -- python -m mypackage.train
      tvgrad trace --out runs/gan --model generator -- python gan.py
      tvgrad trace --out runs/mine --recipe my_recipe.py -- bash run.sh
      tvgrad trace --out runs/mine --gradients 0,1,last -- python finetune.py

    --gradients starts COMMAND again, twice for each point, for one epoch of forward and backward at the recorded
    weights (`tvgrad measure` does so later).
    """
    command: tuple[str, ...] = tuple(ctx.obj or ())
    kinds = tuple(part.strip() for part in record.split(",") if part.strip() not in {"", "none"})
    replaced = bool(given["overwrite"] or given["resume"])
    out = options.free_place(ctx, out, name_of(command), replaced=replaced)
    target = os.path.abspath(out)
    wanted = ScriptOptions(
        out=target,
        notes="",
        command=command,
        record=tuple(kind for kind in kinds if kind != "gradients"),
        recipe=recipe,
        strict=strict,
        quiet=quiet,
        **given,  # type: ignore[arg-type]
    )
    check(wanted)
    if gradients is not None:
        _check_gradients(gradients, recipe)
    elif "gradients" in kinds and recipe is None:
        raise TvgradError(
            "full-batch gradients need the data: give --gradients 0,1,last, which starts the command again, or "
            "--recipe TARGET"
        )
    if gradients is not None:
        points, model = gradients, given.get("model")
        end_like(launch(wanted, lambda: _measure(out, command, points, patience, quiet, model)))
        return
    if recipe is None:
        end_like(launch(wanted))
        return
    from tvgrad.integrations.checkpoints import add_gradients
    from tvgrad.recipes.catalogue import load_recipes

    names = [one.name for one in load_recipes(recipe)]  # a mistake in it should show before the training
    if len(names) > 1 and out.name not in names:
        raise TvgradError(f"{recipe} has {len(names)} tasks: end --out with the name of one ({', '.join(names)})")
    end_like(launch(wanted, lambda: add_gradients(out, recipe)))


def _check_gradients(gradients: str, recipe: str | None) -> None:
    from tvgrad.integrations.measuring.check_points import check_points

    check_points(gradients)
    if recipe is not None:
        raise TvgradError("--gradients and --recipe are two ways to the same gradients: leave one of them out")


def _measure(
    out: Path, command: tuple[str, ...], gradients: str, patience: float | None, quiet: bool, model: object
) -> None:
    """Measure at the points of the run that has just been recorded."""
    from tvgrad.cli.measure import measure_points

    from tvgrad.integrations.measuring.measure import points_of
    from tvgrad.store.run import Run

    run = Run.open(out)
    name = None if model is None else str(model)
    measure_points(run, command, points_of(run, gradients), model=name, patience=patience, quiet=quiet)
    later = [one.name for one in later_trainings(out)]
    if later:
        which = "it is a later training" if len(later) == 1 else "they are later trainings"
        say(f"no gradient of {', '.join(later)} was measured: {which} of the command, and passes go through the first")
