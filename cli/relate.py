"""`tvgrad relate`: what two runs of one model have to do with each other."""

from __future__ import annotations

from pathlib import Path

import click

from tvgrad.errors import TvgradError

from . import options


@click.command()
@click.argument("runs", nargs=2, metavar="RUN RUN", type=options.PATH)
@click.option(
    "--pretrained",
    type=options.PATH,
    help="A checkpoint: both RUNs are then checkpoints, or adapters, that were trained from it.",
)
@options.groups
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the whole table to this CSV file.")
@click.option("--quiet", is_flag=True, help="Only the sentence that sums it up.")
def relate(runs: tuple[Path, Path], pretrained: Path | None, groups: str | None, out: Path | None, quiet: bool) -> None:
    """Compare two runs of one model: cosines of task vectors and gradients, agreement in sign, interference.

    Interference on a task is the share of the first-order descent of its own task vector that the other task vector
    would undo (negative: add). The last line says in words how the two relate.

    With --pretrained, both are checkpoints (see `tvgrad report`) or folders of LoRA adapters, compared in weight space.
    Two adapters need no base model: inner products of `dW = s B A` come from their factors.

    \b
    Examples:
      tvgrad relate runs/digits/low runs/digits/high
      tvgrad relate runs/digits/low runs/digits/high --groups 'encoder\\.(\\d+)' --out relation.csv
      tvgrad relate --pretrained base tuned-a adapter-b
      tvgrad relate adapter-a adapter-b
    """
    from tvgrad.cli.open_runs import single_run
    from tvgrad.cli.terminal import percent_bar, print_table

    from tvgrad.checkpoints.find import is_adapter
    from tvgrad.files.atomic import write_atomically
    from tvgrad.report.relation import relate_runs

    if out is not None and not out.absolute().parent.is_dir():
        raise TvgradError(f"{out.absolute().parent} is no folder: choose another --out")
    if pretrained is not None or all(is_adapter(path) for path in runs):
        _relate_checkpoints(pretrained, runs, groups, out=out, quiet=quiet)
        return
    left, right = (single_run(path) for path in runs)
    with percent_bar("reading", quiet) as progress:
        found = relate_runs(left, right, groups, progress)
    if out is not None:
        write_atomically(out, lambda temporary: found.table.to_csv(temporary, index=False))
    if not quiet:
        table = found.table.drop(columns=["run_a", "run_b"])
        names = f"a = {found.table['run_a'].iloc[0]}, b = {found.table['run_b'].iloc[0]}"
        print_table(f"whole model; {names}", table[table["group"] == "all"].drop(columns="group"))
        blocks = table[(table["group"] != "all") & (table["epoch"] == found.epoch)].drop(columns="epoch")
        print_table(f"groups after {left.unit} {found.epoch}", blocks)
    click.echo(found.reading)


def _relate_checkpoints(
    pretrained: Path | None, pair: tuple[Path, Path], groups: str | None, *, out: Path | None, quiet: bool
) -> None:
    from tvgrad.cli.terminal import percent_bar, print_table

    from tvgrad.files.atomic import write_atomically
    from tvgrad.report.checkpoint_relation import relate_adapters, relate_checkpoints
    from tvgrad.report.empty_columns import without_empty_columns

    if pretrained is None:
        found = relate_adapters(*pair, groups)
    else:
        with percent_bar("reading", quiet) as progress:
            found = relate_checkpoints(pretrained, pair, groups, progress)
    for sentence in found.left_out:
        click.echo(sentence, err=True)
    if out is not None:
        write_atomically(out, lambda temporary: found.table.to_csv(temporary, index=False))
    if not quiet:
        names = f"a = {found.table['run_a'].iloc[0]}, b = {found.table['run_b'].iloc[0]}"
        shown = without_empty_columns(found.table.drop(columns=["run_a", "run_b"]))
        print_table(f"weight space; {names}", shown)
    click.echo(found.reading)
