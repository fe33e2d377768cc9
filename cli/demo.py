"""`tvgrad demo`: the main job on real data, from fine-tuning to tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from tvgrad.errors import CheckFailed, TvgradError
from tvgrad.files.writable import refusal, require_folder

from . import options


@click.command()
@click.option("--out", default="tvgrad-demo", show_default=True, type=options.PATH, help="Folder for runs and report.")
@click.option("--epochs", default=10, show_default=True, help="Passes over the data.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def demo(out: Path, epochs: int, quiet: bool) -> None:
    """Fine-tune six tasks made of real digit images, verify them, and report them.

    \b
    Examples:
      tvgrad demo
      tvgrad demo --out my-demo --epochs 20
    """
    from tvgrad.cli.terminal import epochs_bar

    from tvgrad.recipes.catalogue import load_recipes
    from tvgrad.record.options import TraceOptions
    from tvgrad.record.training_loop import prepare, trace
    from tvgrad.report.publishing import publish
    from tvgrad.report.tables import run_tables
    from tvgrad.store.run import Run
    from tvgrad.theory.equivalence import FAILS, check_one_epoch
    from tvgrad.wording import printable

    mark = out / "made-by-tvgrad-demo"
    require_folder(out)
    if out.is_dir() and any(out.iterdir()) and not mark.exists():
        raise TvgradError(f"{out} holds other files: choose an empty or new folder for --out")
    ready = [prepare(recipe, TraceOptions(epochs=epochs, target="digits")) for recipe in load_recipes("digits")]
    try:
        for own in ("runs", "report"):  # what else the user keeps in the folder stays
            if (out / own).exists():
                shutil.rmtree(out / own)
        out.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise refusal(error, out) from None
    runs: list[Run] = []
    for prepared in ready:
        name = prepared.recipe.name
        with epochs_bar(f"{name:>9}", prepared.epochs, quiet) as on_epoch:
            runs.append(trace(prepared, out / "runs" / name, on_epoch))
    made = run_tables(runs)
    files = publish(made, runs, out / "report", ("csv", "md", "latex", "html"))
    click.echo("Is the first task vector minus the learning rate times the full-batch gradient?")
    checks = [check_one_epoch(run) for run in runs]
    for run, check in zip(runs, checks, strict=True):
        click.echo(f"  {run.name:>9}: {check.holds}; {check.verdicts[0].reason}")
    norms = made.tables["norms"]
    first = norms[(norms["group"] == "all") & (norms["epoch"] == 0)]
    shares = ", ".join(f"{row.run} {row.gradient_norm_share:.2f}" for row in first.itertuples())
    click.echo(f"Share of the first epoch in the sum of gradient norms over {epochs} epochs: {shares}")
    page = next(path for path in files if path.suffix == ".html")
    places = {"Runs": out / "runs", "Tables": out / "report", "Figures": out / "report" / "figures", "Page": page}
    for name, place in places.items():
        click.echo(f"{name + ':':<8} {printable(str(place))}")
    if any(check.holds == FAILS for check in checks):
        raise CheckFailed("a first epoch is not exact")
