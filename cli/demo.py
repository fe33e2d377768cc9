"""`tvgrad demo`: the main job on real data, from fine-tuning to tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import click


@click.command()
@click.option(
    "--out",
    default="tvgrad-demo",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for runs and report.",
)
@click.option("--epochs", default=10, show_default=True, help="Passes over the data.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def demo(out: Path, epochs: int, quiet: bool) -> None:
    """Fine-tune six tasks made of real digit images, verify them, and report them.

    \b
    Examples:
      tvgrad demo
      tvgrad demo --out /tmp/demo --epochs 20
    """
    from tvgrad.cli.terminal import epochs_bar

    from tvgrad.errors import CheckFailed, TvgradError
    from tvgrad.recipes.catalogue import load_recipes
    from tvgrad.record.run import Run
    from tvgrad.record.training import TraceOptions, prepare, trace
    from tvgrad.report.documents import write_tables
    from tvgrad.report.figures import save_figures
    from tvgrad.report.tables import run_tables
    from tvgrad.theory.equivalence import FAILS, check_one_epoch

    mark = out / "made-by-tvgrad-demo"
    if out.exists() and any(out.iterdir()):
        if not mark.exists():
            raise TvgradError(f"{out} holds other files: choose an empty or new folder for --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()
    runs: list[Run] = []
    for recipe in load_recipes("digits"):
        prepared = prepare(recipe, TraceOptions(epochs=epochs, target="digits"))
        with epochs_bar(f"{recipe.name:>9}", prepared.epochs, quiet) as on_epoch:
            runs.append(trace(prepared, out / "runs" / recipe.name, on_epoch))
    made = run_tables(runs)
    write_tables(made.tables, out / "report", ("csv", "md"))
    figures = save_figures(made.tables, out / "report" / "figures")
    click.echo("Is the first task vector minus the learning rate times the full-batch gradient?")
    checks = [check_one_epoch(run) for run in runs]
    for run, check in zip(runs, checks, strict=True):
        click.echo(f"  {run.name:>9}: {check.holds}; {check.verdicts[0].reason}")
    norms = made.tables["norms"]
    first = norms[(norms["group"] == "all") & (norms["epoch"] == 0)]
    shares = ", ".join(f"{row.run} {row.gradient_norm_share:.2f}" for row in first.itertuples())
    click.echo(f"Share of the first epoch in the sum of gradient norms over {epochs} epochs: {shares}")
    click.echo(f"Runs:    {out / 'runs'}")
    click.echo(f"Tables:  {out / 'report'}")
    click.echo(f"Figures: {', '.join(str(path) for path in figures if path.suffix == '.png')}")
    if any(check.holds == FAILS for check in checks):
        raise CheckFailed("a first epoch is not exact")
