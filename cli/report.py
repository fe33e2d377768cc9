"""`tvgrad report`: tables and figures of runs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder for tables and figures (default: the terminal).")
@click.option("--format", "formats", multiple=True, help="csv, md or json; may be repeated (default: csv).")
@click.option("--groups", help="Regular expression that groups parameters.")
@click.option("--skip-damaged", is_flag=True, help="Leave damaged runs out, with a warning.")
def report(
    runs: tuple[Path, ...], out: Path | None, formats: tuple[str, ...], groups: str | None, skip_damaged: bool
) -> None:
    """Make tables and figures of RUNS (run directories, or directories of runs).

    \b
    Tables: norms, directions, equivalence, cross_task. Group `all` is the whole model.
    \b
    Examples:
      tvgrad report runs/digits
      tvgrad report runs/digits --out report --format csv --format md
      tvgrad report runs/digits --groups 'encoder\\.(\\d+)'
    """
    from tvgrad.cli.terminal import bytes_bar, print_table

    from tvgrad.errors import TvgradError
    from tvgrad.record.run import open_runs
    from tvgrad.report.documents import FORMATS, write_tables
    from tvgrad.report.tables import run_tables

    for name in formats:
        if name not in FORMATS:
            raise TvgradError(f"unknown format {name!r}: choose from {', '.join(FORMATS)}")
    if formats and out is None:
        raise TvgradError("--format says how files are written: give --out too")
    opened = open_runs(runs)
    whole = []
    for run in opened:
        problems = run.problems(checksums=False)
        if not problems:
            whole.append(run)
        elif skip_damaged:
            click.echo(f"{run.root} is left out: {problems[0]}", err=True)
        else:
            raise TvgradError(
                f"{run.root} is damaged: {problems[0]}; see `tvgrad verify`, or leave it out by --skip-damaged"
            )
    with bytes_bar("reading") as progress:
        made = run_tables(whole, groups, progress)
    if out is None:
        for name, table in made.tables.items():
            short = table[table["group"] == "all"].drop(columns="group") if "group" in table and not groups else table
            if len(short):
                print_table(name, short)
        return
    files = write_tables(made.tables, out, formats or ("csv",))
    from tvgrad.report.figures import save_figures

    files += save_figures(made.tables, out / "figures")
    click.echo(f"{len(files)} files in {out}")
