"""`tvgrad report`: tables and figures of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tvgrad.errors import DamagedRun, NotFinite, TvgradError
from tvgrad.files.writable import require_folder
from tvgrad.wording import near, printable

from . import options, table_formats

if TYPE_CHECKING:
    import pandas as pd

    from tvgrad.problem.crew import Crew
    from tvgrad.report.tables import RunTables
    from tvgrad.report.wanted_products import Extent
    from tvgrad.store.run import Run
    from tvgrad.streaming.shared_pass import SharedPass

DEFAULT_FORMATS = ("csv", "html")


@click.command()
@options.runs
@click.option(
    "--pretrained",
    type=options.PATH,
    help="A checkpoint: RUNS are then checkpoints that were fine-tuned from it, without a run behind them.",
)
@click.option("--out", type=options.PATH, help="Folder for tables and figures (default: the terminal).")
@click.option(
    "--format",
    "formats",
    multiple=True,
    metavar="[csv|md|json|latex|html]",
    help="Of files, may be repeated; without --out one of csv, md, json and latex, on standard output.",
)
@click.option("--table", "only", multiple=True, help="Only this table: norms, directions, equivalence, cross_task ...")
@options.groups
@options.cost
@click.option("--skip-damaged", is_flag=True, help="Leave damaged runs out, with a warning.")
@click.pass_context
def report(
    context: click.Context,
    runs: tuple[Path, ...],
    pretrained: Path | None,
    out: Path | None,
    formats: tuple[str, ...],
    only: tuple[str, ...],
    groups: str | None,
    skip_damaged: bool,
    cost: bool,
) -> None:
    """Make tables and figures of RUNS (run directories, or directories of runs).

    Tables: norms, directions, equivalence, cross_task, second_order, error_budget. Group `all` is the whole model.
    The default formats are csv and html; html is one self-contained page with all tables and figures.

    Inner products are kept in the user's cache folder ($TVGRAD_CACHE): a report on a run that has grown reads what is
    new and what that is compared with. On the terminal, without figures, that is the same few files for each epoch.

    Under torchrun all processes read and multiply, each some groups of parameters, with the same bits; the first one
    reports. Where they are on several machines, all must see the files at the same paths.

    With --pretrained, RUNS are checkpoints: safetensors (one file or shards with their index), files of torch.save that
    hold tensors only, or folders with one of them. Norms, directions and cross_task are then made of their weights.

    \b
    Examples:
      tvgrad report runs/digits
      tvgrad report runs/digits --out report
      tvgrad report runs/digits --out report --format csv --format latex
      tvgrad report runs/digits --table norms --format csv
      tvgrad report runs/digits --groups 'encoder\\.(\\d+)'
      tvgrad report --pretrained base.safetensors tuned-a.safetensors tuned-b \\
        --out report
    """
    from tvgrad.cli.launcher_ranks import crew_of_launcher

    with crew_of_launcher() as crew:
        if crew is None or crew.leads:
            _report(
                context, runs, pretrained, out, formats, only, groups, skip_damaged=skip_damaged, cost=cost, crew=crew
            )
        else:
            _shared(crew).serve()


def _report(
    context: click.Context,
    runs: tuple[Path, ...],
    pretrained: Path | None,
    out: Path | None,
    formats: tuple[str, ...],
    only: tuple[str, ...],
    groups: str | None,
    crew: Crew | None,
    *,
    skip_damaged: bool,
    cost: bool,
) -> None:
    from tvgrad.report.documents import check_formats

    check_formats(formats)
    if out is None:
        _to_standard_output(context, formats)
    elif only:
        raise TvgradError("--table is for the terminal: files hold all tables; leave it out")
    if out is not None:
        require_folder(out, "choose a folder for --out")
    if pretrained is None:
        _report_runs(runs, out, formats or DEFAULT_FORMATS, groups, skip_damaged, only=only, cost=cost, crew=crew)
    elif cost:
        raise TvgradError("--cost is told of recorded runs: leave it out with --pretrained")
    elif skip_damaged:
        raise TvgradError("--skip-damaged is about runs: leave it out with --pretrained")
    else:
        _report_checkpoints(pretrained, runs, out, formats or DEFAULT_FORMATS, groups, only=only)


def _to_standard_output(context: click.Context, formats: tuple[str, ...]) -> None:
    """Print tables in the one format that was asked for, if any."""
    if len(formats) > 1 or "html" in formats:
        raise TvgradError("without --out one format of csv, md, json and latex is printed: give --out for files")
    for one in formats:
        table_formats.begin(context, one)


def _report_runs(
    paths: tuple[Path, ...],
    out: Path | None,
    formats: tuple[str, ...],
    groups: str | None,
    skip_damaged: bool,
    *,
    only: tuple[str, ...],
    cost: bool,
    crew: Crew | None = None,
) -> None:
    from tvgrad.cli.open_runs import whole_runs

    from tvgrad.report.tables import runs_of_each_model

    whole, damaged = whole_runs(paths, checksums=skip_damaged)
    for directory, problem in damaged:
        if not skip_damaged:
            raise TvgradError(
                f"{directory} is damaged: {problem}; see `tvgrad verify`, or leave it out by --skip-damaged"
            )
        click.echo(f"{printable(str(directory))} is left out: {printable(problem)}", err=True)
    whole = [run for run in whole if _has_whole_results(run, skip_damaged)]
    if not whole:
        raise TvgradError("every run is damaged and left out, so there is nothing to report on: trace them again")
    models = runs_of_each_model(whole)
    if cost:
        from tvgrad.report.report_cost import report_cost

        for one in models:
            click.echo(report_cost(one, groups, "tables" if out is None else "figures").sentence)
        return
    if len(models) > 1:
        click.echo(f"The runs are of {len(models)} different models: a report on each follows.")
    left_out: list[NotFinite] = []
    for one, place in zip(models, _places(out, models), strict=True):
        try:
            _report_model(one, place, formats, groups, only=only, crew=crew)
        except NotFinite as error:  # of all runs of this model
            left_out.append(error)
            if len(left_out) == len(models):
                raise
            _say_left_out(one, error)


def _has_whole_results(run: Run, skip_damaged: bool) -> bool:
    """Whether what was kept of `tvgrad explain`, if anything, can be read."""
    from tvgrad.theory.explain import read_results

    try:
        read_results(run)
    except DamagedRun as error:
        if not skip_damaged:
            raise DamagedRun(f"{error}, or leave the run out by --skip-damaged") from None
        click.echo(f"{printable(str(run.root))} is left out: {printable(str(error))}", err=True)
        return False
    return True


def _places(out: Path | None, models: list[list[Run]]) -> list[Path | None]:
    """A folder for the report on each model: --out itself for a single one, else one named after its first run."""
    from tvgrad.report.tables import run_names

    if out is None or len(models) == 1:
        return [out] * len(models)
    names = run_names([runs[0] for runs in models])
    return [out / name.strip("/").replace("/", "-") for name in names]


def _report_model(
    runs: list[Run],
    out: Path | None,
    formats: tuple[str, ...],
    groups: str | None,
    *,
    only: tuple[str, ...],
    crew: Crew | None = None,
) -> None:
    """Report on runs of one model."""
    from tvgrad.cli.terminal import say

    from tvgrad.report.empty_columns import missing_results
    from tvgrad.report.lora_relation import IN_FACTORS
    from tvgrad.report.summary import summary_of

    # On the terminal there are no figures, which take the products of every two epochs.
    made, runs = _tables(runs, groups, "tables" if out is None else "figures", crew)
    said = summary_of(made.tables, made.tasks, made.refused, made.scripts)
    say(said[0])
    if "weight_change_norm" in made.tables["norms"]:
        say(f"LoRA: {IN_FACTORS}")
    if out is None:
        _print(_chosen(made.tables, only), bool(groups))
        for sentence in missing_results(made.tables, made.refused, made.scripts):
            say(sentence)
    else:
        from tvgrad.report.publishing import publish

        _list(publish(made, runs, out, formats), out)
    say(said[-1])


def _shared(crew: Crew) -> SharedPass:
    from tvgrad.streaming.shared_pass import SharedPass

    return SharedPass(crew)


def _tables(runs: list[Run], groups: str | None, extent: Extent, crew: Crew | None) -> tuple[RunTables, list[Run]]:
    """The tables of all runs whose numbers have products, and these runs; the others are named."""
    from tvgrad.cli.terminal import percent_bar

    from tvgrad.report.tables import run_tables
    from tvgrad.report.wanted_products import kept_products
    from tvgrad.streaming.block_pass import sums_of_groups

    over = sums_of_groups if crew is None else _shared(crew)
    while True:
        try:
            with percent_bar("reading") as progress:
                return run_tables(runs, groups, progress, extent=extent, kept=kept_products(runs), over=over), runs
        except NotFinite as error:
            odd = [run for run in runs if any(Path(path).is_relative_to(run.root) for path in error.paths)]
            left = [run for run in runs if run not in odd]
            if not odd or not left:
                raise
            _say_left_out(odd, error)
            runs = left


def _say_left_out(runs: list[Run], error: NotFinite) -> None:
    for run in runs:
        path = next((path for path in error.paths if Path(path).is_relative_to(run.root)), str(run.root))
        sentence = f"{run.root} is left out: numbers of {path} are not finite, or too large for inner products"
        click.echo(printable(sentence), err=True)


def _report_checkpoints(
    pretrained: Path,
    tuned: tuple[Path, ...],
    out: Path | None,
    formats: tuple[str, ...],
    groups: str | None,
    *,
    only: tuple[str, ...],
) -> None:
    from tvgrad.cli.terminal import percent_bar, say

    from tvgrad.report.checkpoints import checkpoint_tables
    from tvgrad.report.summary import summary_of_checkpoints

    with percent_bar("reading") as progress:
        made = checkpoint_tables(pretrained, tuned, groups, progress)
    for sentence in made.left_out:
        click.echo(sentence, err=True)
    if out is None:
        _print(_chosen(made.tables, only), bool(groups))
    else:
        from tvgrad.report.publishing import publish_checkpoints

        _list(publish_checkpoints(made, str(pretrained), out, formats), out)
    for sentence in summary_of_checkpoints(made.tables)[:1]:
        say(sentence)


def _chosen(tables: dict[str, pd.DataFrame], only: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    """The tables that were asked for by name; all by default."""
    for name in only:
        if name not in tables:
            raise TvgradError(f"there is no table {name!r}: choose from {', '.join(tables)}{near(name, tables)}")
    return {name: table for name, table in tables.items() if name in only} if only else tables


def _print(tables: dict[str, pd.DataFrame], grouped: bool) -> None:
    """Tables on the terminal, of the whole model where no groups were asked for."""
    from tvgrad.cli.table_formats import tables_format
    from tvgrad.cli.terminal import print_table

    from tvgrad.report.columns import TABLES
    from tvgrad.report.empty_columns import without_empty_columns
    from tvgrad.report.headings import signs

    for name, table in tables.items():
        short = table[table["group"] == "all"].drop(columns="group") if "group" in table and not grouped else table
        if tables_format() is not None:  # a file's columns are those of the contract, whatever is empty
            print_table(name, table)
        elif len(short):
            print_table(f"{signs(TABLES[name].title)} · {name}", without_empty_columns(short))


def _list(files: list[Path], out: Path) -> None:
    click.echo(f"{len(files)} files in {printable(str(out))}")
    for path in files:
        if path.suffix == ".html":
            click.echo(f"Page: {printable(str(path))}")
