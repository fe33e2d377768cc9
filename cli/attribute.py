"""`tvgrad attribute`: the part that every sample has in a run's task vector, and what there would be without some."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvgrad.errors import TvgradError
from tvgrad.wording import counted

from . import options, table_formats

if TYPE_CHECKING:
    from tvgrad.theory.attribution import Attribution
    from tvgrad.theory.counterfactual import CounterfactualRow


@click.command()
@click.argument("run", type=options.PATH)
@click.option("--recipe", "target", required=True, help="TARGET of the recipe that made RUN.")
@click.option("--epoch", type=int, help="Epoch of RUN (default: the last that it keeps).")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Samples named at either end.")
@click.option("--without", "samples", help="Samples to leave out, by position: 3,17,20. Told, not trained.")
@click.option("--without-class", "label", type=int, help="A class to leave out.")
@click.option("--figure", type=click.Path(path_type=Path, dir_okay=False), help="Draw the shares into this file.")
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Write every sample's share to this CSV.")
@options.device
@options.as_json
@table_formats.option
def attribute(
    run: Path,
    target: str,
    epoch: int | None,
    top: int,
    samples: str | None,
    label: int | None,
    figure: Path | None,
    save: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Cut RUN's task vector into the parts of its training samples.

    The task vector of a rule that is linear in gradients is a sum over steps and samples. A sample's share is the inner
    product of its part with the task vector, over the squared norm: with the share of decay and rounding, all shares
    sum to 1. This is exact; it takes the gradient of every sample at every step, in float64.

    With --without or --without-class, what training without these samples would have made is told to second order: an
    estimate, from one gradient and one Hessian-vector product an epoch.

    \b
    Examples:
      tvgrad attribute runs/digits/low --recipe digits
      tvgrad attribute runs/digits/low --recipe digits --without-class 3
      tvgrad attribute runs/digits/low --recipe digits --save shares.csv \\
        --figure shares.svg
    """
    import torch

    from tvgrad.recipes.of_run import objective_of, recipe_of
    from tvgrad.store.run import Run
    from tvgrad.theory.attribution import attribution

    save = options.file_to_write(save, "--save")
    if figure is not None and figure.suffix not in {".png", ".svg", ".pdf"}:
        raise TvgradError(f"{figure.name} is no picture: give --figure a name that ends in .png, .svg or .pdf")
    figure = options.file_to_write(figure, "--figure")
    opened = Run.open(run)
    objective = objective_of(opened, recipe_of(opened, target), torch.float64, device=device)
    gone = _left_out(samples, label, objective)
    found = attribution(opened, objective, epoch)
    row = None
    if gone is not None:
        from tvgrad.theory.counterfactual import Without

        row = Without(opened, objective, found.epoch).tell(gone).row
    if save is not None:
        from tvgrad.files.atomic import write_text_atomically

        write_text_atomically(save, found.samples_frame().to_csv(index=False), option="--save")
    if figure is not None:
        from matplotlib.figure import Figure

        from tvgrad.report.figure_files import write_figure

        drawn = Figure(layout="constrained")
        found.plot(drawn.subplots())
        write_figure(drawn, figure, option="--figure")
    if as_json:
        click.echo(_text(found, top, row))
        return
    _print(found, top, row)


def _left_out(samples: str | None, label: int | None, objective: Any) -> list[int] | None:
    """Positions of the samples to leave out."""
    if samples is not None and label is not None:
        raise TvgradError("--without and --without-class are two ways to say what is left out: give one")
    if samples is not None:
        try:
            return [int(one) for one in samples.split(",")]
        except ValueError:
            raise TvgradError(f"--without {samples!r} is no list of positions: give numbers, as in 3,17,20") from None
    if label is None:
        return None
    from tvgrad.theory.attribution import class_labels

    labels = class_labels(objective)
    if labels is None:
        raise TvgradError("the targets of this recipe are no classes: give --without and positions")
    found = [int(one) for one in (labels == label).nonzero()[0]]
    if not found:
        raise TvgradError(f"no sample has class {label}: there are {', '.join(map(str, sorted(set(labels.tolist()))))}")
    return found


def _text(found: Attribution, top: int, row: CounterfactualRow | None) -> str:
    from tvgrad.results import json_text

    return json_text({
        "run": found.run,
        "epoch": found.epoch,
        "shares": found.shares.tolist(),
        "rest": found.rest,
        "closure": found.closure,
        "classes": [one.row() for one in found.rows],
        "most_aligned": found.most_aligned(top),
        "least_aligned": found.least_aligned(top),
        "without": None if row is None else row.row(),
    })


def _print(found: Attribution, top: int, row: CounterfactualRow | None) -> None:
    import pandas as pd
    from tvgrad.cli.terminal import print_table, say

    from tvgrad.results import frame_of

    if found.rows:
        print_table(f"Shares of classes in the task vector of {found.run} after epoch {found.epoch}", found.to_frame())
    ends = {"most aligned": found.most_aligned(top), "least aligned": found.least_aligned(top)}
    table = pd.DataFrame([
        {"samples": name, "sample": one, "share": found.shares[one]}
        | ({} if found.labels is None else {"label": int(found.labels[one])})
        for name, chosen in ends.items()
        for one in chosen
    ])
    print_table("Samples at either end", table)
    against = int((found.shares < 0).sum())
    say(
        f"{counted(len(found.shares), 'sample')} make {found.shares.sum():.6g} of the task vector; decay and rounding "
        f"make {found.rest:.2g}; {against} of them are gone against"
    )
    if row is None:
        return
    shown = frame_of([row]).drop(columns="kind")
    print_table("Without these samples (estimates: about)", shown, estimates=set(shown.columns) - {"removed", "loss"})
    own = (
        f", and their own loss from {row.removed_loss:.4g} to about {row.predicted_removed_loss:.4g}"
        if row.removed_loss == row.removed_loss
        else "; they have no weight in the loss (their labels are ignored)"
    )
    say(
        f"without {counted(row.removed, 'sample')} the task vector is predicted to change by {row.change_norm:.1%} of "
        f"its norm{own}"
    )
    say(_trust(row))


def _trust(row: CounterfactualRow) -> str:
    """How far the prediction can be trusted, in one sentence."""
    from tvgrad.theory.counterfactual import TRUSTED

    said = (
        f"the same prediction misses the training as it was, all samples in it, by {row.missed:.2g} of its norm, and "
        "what these samples change was found to be told with about that relative error"
    )
    if row.missed <= TRUSTED:
        return said
    return (
        f"Warning: {said}: above {TRUSTED:g} the told changes of losses are no guide to the true ones, so train again "
        "without these samples"
    )
