"""`tvgrad relate`: what two runs of one model, or two tasks before training, have to do with each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import OPTIMIZERS

from . import options, table_formats


@click.command()
@click.argument("things", nargs=-1, required=True, metavar="RUN RUN | TARGET [TARGET]")
@click.option(
    "--pretrained",
    type=options.PATH,
    help="A checkpoint: both RUNs are then checkpoints, or adapters, that were trained from it.",
)
@options.groups
@options.tasks
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), help="Of TARGETs; a linear rule: gd, sgd, momentum ...")
@options.lr
@options.momentum
@click.option("--weight-decay", type=float, help="Coupled; of TARGETs.")
@click.option("--epochs", type=int, help="Of TARGETs: full-batch epochs, one step each.")
@click.option("--cross", is_flag=True, help="Of TARGETs: one more Hessian-vector product for each other task.")
@click.option("--against", multiple=True, type=options.PATH, help="Trained runs of the TARGETs' tasks: the truth.")
@options.dtype
@options.device
@options.chunk_size
@options.allow
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the whole table to this CSV file.")
@click.option("--quiet", is_flag=True, help="Only the sentences that sum it up.")
@table_formats.option
@click.pass_context
def relate(
    context: click.Context,
    things: tuple[str, ...],
    pretrained: Path | None,
    groups: str | None,
    tasks: str | None,
    cross: bool,
    against: tuple[Path, ...],
    out: Path | None,
    quiet: bool,
    **given: Any,
) -> None:
    """Compare two runs of one model, or predict how tasks will relate before any of them is trained.

    Two RUNs: cosines of task vectors and gradients, agreement in sign, interference. Interference on a task is the
    share of the first-order descent of its own task vector that the other task vector would undo (negative: add).

    TARGETs: all pairs of their tasks, from one gradient and one Hessian-vector product a task: the cosine of their task
    vectors after so many epochs, what adding one task vector changes in the other task's loss, and the lambdas with
    which `theta_0 + tau_a + lambda tau_b` is better than the pretrained model on both tasks. These are estimates;
    --against holds them against trained runs. The last lines say in words how the tasks relate.

    With --pretrained, both are checkpoints (see `tvgrad report`) or folders of LoRA adapters, compared in weight space.
    Two adapters need no base model: inner products of `dW = s B A` come from their factors.

    \b
    Examples:
      tvgrad relate runs/digits/low runs/digits/high
      tvgrad relate runs/digits/low runs/digits/high \\
        --groups 'encoder\\.(\\d+)' --out relation.csv
      tvgrad relate digits --tasks low,high --epochs 10 --cross
      tvgrad relate digits --tasks low,high --against runs/digits/low \\
        --against runs/digits/high
      tvgrad relate mine.py:first mine.py:second --optimizer gd --lr 0.01
      tvgrad relate --pretrained base tuned-a adapter-b
      tvgrad relate adapter-a adapter-b
    """
    out = options.file_to_write(out)
    if not _are_targets(things, pretrained):
        _relate_runs(context, tuple(map(Path, things)), pretrained, groups, out=out, quiet=quiet)
        return
    from tvgrad.cli.relate_targets import relate_targets

    if groups is not None:
        raise TvgradError("--groups is for runs; a prediction is about the whole model: leave it out")
    relate_targets(things, tasks, given, cross=cross, against=against, out=out, quiet=quiet)


def _are_targets(things: Sequence[str], pretrained: Path | None) -> bool:
    """Whether recipes are named, and not what is on the disk; a mixture of both is refused."""
    from tvgrad.recipes.catalogue import BUILT_IN

    if pretrained is not None:
        return False
    targets = [
        thing for thing in things if not Path(thing).is_dir() and (thing in BUILT_IN or ":" in thing or ".py" in thing)
    ]
    if targets and len(targets) < len(things):
        run = next(thing for thing in things if thing not in targets)
        raise TvgradError(
            f"{targets[0]} is a recipe and {run} is not: give recipes alone, and trained runs of theirs by --against"
        )
    return bool(targets)


def _relate_runs(
    context: click.Context, runs: tuple[Path, ...], pretrained: Path | None, groups: str | None, *, out: Path | None,
    quiet: bool,
) -> None:  # fmt: skip
    from tvgrad.cli.open_runs import single_run
    from tvgrad.cli.terminal import percent_bar, print_table, say

    from tvgrad.checkpoints.find import is_adapter
    from tvgrad.files.atomic import write_atomically
    from tvgrad.report.relation import relate_runs

    _refuse_options_of_targets(context)
    if len(runs) != 2:
        raise TvgradError(f"a comparison of runs takes 2 values, and there {_are(len(runs))}: give two runs")
    if pretrained is not None or all(is_adapter(path) for path in runs):
        _relate_checkpoints(pretrained, (runs[0], runs[1]), groups, out=out, quiet=quiet)
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
    say(found.reading)


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"


def _refuse_options_of_targets(context: click.Context) -> None:
    """Refuse what says how a task is to be trained: a run was trained already."""
    of_both = {"things", "pretrained", "groups", "out", "quiet"}
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name not in of_both and source == click.core.ParameterSource.COMMANDLINE:
            raise TvgradError(f"{option.opts[0]} is for recipes, and runs were trained already: leave it out")


def _relate_checkpoints(
    pretrained: Path | None, pair: tuple[Path, Path], groups: str | None, *, out: Path | None, quiet: bool
) -> None:
    from tvgrad.cli.terminal import percent_bar, print_table, say

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
    say(found.reading)
