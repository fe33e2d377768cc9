"""Options that several commands share, each said once; and what they mean where they hold several names."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tvgrad.files.writable import require_file
from tvgrad.store.layout import MANIFEST

PATH = click.Path(path_type=Path)

runs = click.argument("runs", nargs=-1, required=True, type=PATH)
FOLDER = "tvgrad.folder"
"""Key of a click context under which stands whether --out ends with a separator, which paths do not keep."""


def _noting_a_separator(ctx: click.Context, _: click.Parameter, given: str) -> Path:
    ctx.meta[FOLDER] = given.endswith(("/", os.sep))
    return Path(given)


run_directory = click.option(
    "--out",
    required=True,
    callback=_noting_a_separator,
    help="Run directory to make; a folder of runs, or a path that ends with /, gets a new directory in it.",
)
overwrite = click.option(
    "--overwrite", is_flag=True, help="Replace the run in --out; nothing but a run of tvgrad is ever deleted."
)
tasks = click.option("--tasks", help="Only these tasks, separated by commas.")
lr = click.option("--lr", type=float, help="Learning rate.")
momentum = click.option("--momentum", type=float, help="For momentum and nesterov (default 0.9).")
dtype = click.option("--dtype", type=click.Choice(["float32", "float64", "bfloat16"]), help="Casts model and data.")
device = click.option("--device", default="auto", show_default=True, help="A torch device.")
record_at = click.option("--record-at", default="epochs", show_default=True, help="epochs, or steps:1,10,100.")
keep = click.option(
    "--keep", default="all", show_default=True, help="all, last:N or epochs:0,1,5: whose tensors are kept."
)
keep_gradients = click.option(
    "--keep-gradients", default="all", show_default=True, help="all, or sketch:65536: norms and estimates of cosines."
)
groups = click.option("--groups", help="Regular expression that groups parameters.")
chunk_size = click.option("--chunk-size", type=int, help="Samples evaluated at once (default: measured).")
steps_per_epoch = click.option(
    "--steps-per-epoch", type=click.IntRange(min=1), help="Where epochs cannot be read off DataLoaders."
)
model = click.option("--model", help="Which model, where the script trains several.")
patience = click.option(
    "--patience",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds until the first backward pass of a measuring pass (default: 600, or an epoch of the run).",
)
allow = click.option(
    "--allow", help="Checks to switch off: dropout, batchnorm, augmentation, count; reports repeat them."
)
cost = click.option("--cost", is_flag=True, help="Tell what it takes of time, memory and disk, and stop.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON; numbers that are not finite are null.")


def file_to_write(path: Path | None, option: str = "--out") -> Path | None:
    """Refuse, before long work, a path where no file can be written.

    Args:
        path: the option's value; None where it was not given.
        option: its name.

    Returns:
        Where the file goes: what the path leads to, where it is a link.
    """
    return None if path is None else require_file(path, option)


def names_in(text: str | None) -> tuple[str, ...]:
    """Split names at commas.

    Args:
        text: the option's value; None where it was not given.

    Returns:
        The names, without spaces; none where there is no text.
    """
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def free_place(ctx: click.Context, out: Path, name: str, *, replaced: bool) -> Path:
    """Choose the run directory: --out itself, or a new one in it where it is a folder of runs.

    Args:
        ctx: click's context, in which --out was read.
        out: the value of --out.
        name: what the run is called where a name is chosen for it.
        replaced: whether a run of that name may be used again: it is resumed or overwritten.

    Returns:
        `out`; or `out/name`, `out/name-2` and so on, the first that does not exist.
    """
    if (out / MANIFEST).exists() or not (ctx.meta.get(FOLDER) or any(out.glob(f"*/{MANIFEST}"))):
        return out
    number, place = 1, out / name
    while place.exists() and not replaced:
        number += 1
        place = out / f"{name}-{number}"
    return place
