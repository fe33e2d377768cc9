"""`tvgrad trace --from-checkpoints CKPT ... --recipe TARGET --out DIR`: gradients at weights that exist already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tvgrad.errors import TvgradError
from tvgrad.wording import printable

from . import options


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--from-checkpoints", is_flag=True, required=True, help="Record CHECKPOINTS, the pretrained one first.")
@click.option("--recipe", required=True, help="TARGET of the recipe with model, loss and data.")
@click.option("--tasks", help="Which task, where the recipe has several.")
@options.run_directory
@options.dtype
@options.device
@options.groups
@options.chunk_size
@options.allow
@options.overwrite
@click.option("--quiet", is_flag=True, help="Say nothing.")
@click.pass_context
def trace_checkpoints(
    context: click.Context,
    checkpoints: tuple[Path, ...],
    from_checkpoints: bool,
    recipe: str,
    tasks: str | None,
    out: Path,
    allow: str | None,
    overwrite: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Record CHECKPOINTS as the epochs of a run, with the full-batch gradient at each.

    A checkpoint is a safetensors file, a state_dict written by torch.save, or a folder with one of them. Code in files
    is never run.

    \b
    Examples:
      tvgrad trace --from-checkpoints base.safetensors tuned.safetensors \\
        --recipe my_recipe.py --out runs/mine
    """
    from tvgrad.integrations.checkpoints import trace_checkpoints as record
    from tvgrad.recipes.catalogue import load_recipes
    from tvgrad.record.options import TraceOptions
    from tvgrad.record.training_loop import check_directory, prepare

    chosen = load_recipes(recipe, options.names_in(tasks))
    if len(chosen) != 1:
        raise TvgradError(
            f"{recipe} has {len(chosen)} tasks: pick one by --tasks ({', '.join(r.name for r in chosen)})"
        )
    out = options.free_place(context, out, chosen[0].name, replaced=overwrite)
    check_directory(out, resume=False, overwrite=overwrite)
    prepared = prepare(chosen[0], TraceOptions(target=recipe, allow=options.names_in(allow), **given))
    run = record(checkpoints, prepared, out, recipe, overwrite=overwrite)
    if not quiet:
        click.echo(f"{printable(str(out))}: {len(run.epochs)} points")
