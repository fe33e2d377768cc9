"""`tvgrad report`: tables and figures of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tvgrad.errors import TvgradError

from . import options

if TYPE_CHECKING:
    import pandas as pd

    from tvgrad.store.run import Run

DEFAULT_FORMATS = ("csv", "html")


@click.command()
@options.runs
@click.option(
    "--pretrained",
    type=options.PATH,
    help="A checkpoint: RUNS are then checkpoints that were fine-tuned from it, without a run behind them.",
)
@click.option("--out", type=options.PATH, help="Folder for tables and figures (default: the terminal).")
@click.option("--format", "formats", multiple=True, help="csv, md, json, latex or html; may be repeated.")
@options.groups
@click.option("--skip-damaged", is_flag=True, help="Leave damaged runs out, with a warning.")
def report(
    runs: tuple[Path, ...],
    pretrained: Path | None,
    out: Path | None,
    formats: tuple[str, ...],
    groups: str | None,
    skip_damaged: bool,
) -> None:
    """Make tables and figures of RUNS (run directories, or directories of runs).

    \b
    Tables: norms, directions, equivalence, cross_task, second_order, error_budget. Group `all` is the whole model.
    The default formats are csv and html; html is one self-contained page with all tables and figures.
    With --pretrained, RUNS are checkpoints: safetensors (one file or shards with their index), files of torch.save that
    hold tensors only, or folders with one of them. Norms, directions and cross_task are then made of their weights.
    \b
    Examples:
      tvgrad report runs/digits
      tvgrad report runs/digits --out report
      tvgrad report runs/digits --out report --format csv --format latex
      tvgrad report runs/digits --groups 'encoder\\.(\\d+)'
      tvgrad report --pretrained base.safetensors tuned-a.safetensors tuned-b --out report
    """
    from tvgrad.report.documents import check_formats

    check_formats(formats)
    if formats and out is None:
        raise TvgradError("--format says how files are written: give --out too")
    if out is not None and out.exists() and not out.is_dir():
        raise TvgradError(f"{out} is a file: choose a folder for --out")
    if pretrained is None:
        _report_runs(runs, out, formats or DEFAULT_FORMATS, groups, skip_damaged)
    elif skip_damaged:
        raise TvgradError("--skip-damaged is about runs: leave it out with --pretrained")
    else:
        _report_checkpoints(pretrained, runs, out, formats or DEFAULT_FORMATS, groups)


def _report_runs(
    paths: tuple[Path, ...], out: Path | None, formats: tuple[str, ...], groups: str | None, skip_damaged: bool
) -> None:
    from tvgrad.cli.open_runs import whole_runs

    from tvgrad.report.tables import runs_of_each_model

    whole, damaged = whole_runs(paths, checksums=skip_damaged)
    for directory, problem in damaged:
        if not skip_damaged:
            raise TvgradError(
                f"{directory} is damaged: {problem}; see `tvgrad verify`, or leave it out by --skip-damaged"
            )
        click.echo(f"{directory} is left out: {problem}", err=True)
    if not whole:
        raise TvgradError("every run is damaged and left out, so there is nothing to report on: trace them again")
    models = runs_of_each_model(whole)
    if len(models) > 1:
        click.echo(f"The runs are of {len(models)} different models: a report on each follows.")
    for one, place in zip(models, _places(out, models), strict=True):
        _report_model(one, place, formats, groups)


def _places(out: Path | None, models: list[list[Run]]) -> list[Path | None]:
    """A folder for the report on each model: --out itself for a single one, else one named after its first run."""
    from tvgrad.report.tables import run_names

    if out is None or len(models) == 1:
        return [out] * len(models)
    names = run_names([runs[0] for runs in models])
    return [out / name.strip("/").replace("/", "-") for name in names]


def _report_model(runs: list[Run], out: Path | None, formats: tuple[str, ...], groups: str | None) -> None:
    """Report on runs of one model."""
    from tvgrad.cli.terminal import percent_bar

    from tvgrad.report.empty_columns import missing_results
    from tvgrad.report.lora_relation import IN_FACTORS
    from tvgrad.report.summary import summary_of
    from tvgrad.report.tables import run_tables

    with percent_bar("reading") as progress:
        made = run_tables(runs, groups, progress)
    click.echo(summary_of(made.tables)[0])
    if "weight_change_norm" in made.tables["norms"]:
        click.echo(f"LoRA: {IN_FACTORS}")
    if out is None:
        _print(made.tables, bool(groups))
        for sentence in missing_results(made.tables, made.refused):
            click.echo(sentence)
    else:
        from tvgrad.report.publishing import publish

        _list(publish(made, runs, out, formats), out)


def _report_checkpoints(
    pretrained: Path, tuned: tuple[Path, ...], out: Path | None, formats: tuple[str, ...], groups: str | None
) -> None:
    from tvgrad.cli.terminal import percent_bar

    from tvgrad.report.checkpoints import checkpoint_tables

    with percent_bar("reading") as progress:
        made = checkpoint_tables(pretrained, tuned, groups, progress)
    for sentence in made.left_out:
        click.echo(sentence, err=True)
    if out is None:
        _print(made.tables, bool(groups))
    else:
        from tvgrad.report.publishing import publish_checkpoints

        _list(publish_checkpoints(made, str(pretrained), out, formats), out)


def _print(tables: dict[str, pd.DataFrame], grouped: bool) -> None:
    """Tables on the terminal, of the whole model where no groups were asked for."""
    from tvgrad.cli.terminal import print_table

    from tvgrad.report.empty_columns import without_empty_columns

    for name, table in tables.items():
        short = table[table["group"] == "all"].drop(columns="group") if "group" in table and not grouped else table
        if len(short):
            print_table(name, without_empty_columns(short))


def _list(files: list[Path], out: Path) -> None:
    click.echo(f"{len(files)} files in {out}")
    for path in files:
        if path.suffix == ".html":
            click.echo(f"Page: {path}")
