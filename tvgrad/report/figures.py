"""Figures of a report: each takes a table of `tvgrad.report.tables` and returns matplotlib axes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tvgrad.files.writable import make_folder
from tvgrad.report.budget_figure import budget_shares
from tvgrad.report.empty_columns import whole_model
from tvgrad.report.figure_files import write_figure
from tvgrad.report.first_epochs import PUBLISHED
from tvgrad.report.first_epochs_figure import first_epoch_dominance
from tvgrad.report.heatmap import cosine_scale, heatmap
from tvgrad.report.maps import block_norms, epoch_cosine_map, layer_map, map_grid, trajectory_plane
from tvgrad.report.published import SOURCE
from tvgrad.report.style import HEIGHT, STYLE, has_seeds, legend_room, lines, new_axes, styled
from tvgrad.vectors.parameters import ALL
from tvgrad.wording import shortened


@styled
def gradient_shares(norms: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw each epoch's share in the sum of full-batch gradient norms.

    Args:
        norms: the table `norms`.
        ax: axes to draw on; by default new ones.

    Returns:
        The axes.
    """
    ax = _over_epochs(norms, "gradient_norm_share", ax)
    ax.set(ylabel=r"$\|g_e\| \;/\; \sum_{k<K} \|g_k\|$", title="Share of the gradient norm by epoch")
    ax.set_ylim(bottom=0)
    return ax


@styled
def epoch_gradient_shares(norms: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw each epoch's share in the sum of the norms of recorded epoch gradients.

    Args:
        norms: the table `norms`.
        ax: axes to draw on; by default new ones.

    Returns:
        The axes.
    """
    ax = _over_epochs(norms, "epoch_gradient_norm_share", ax)
    ax.set(
        ylabel=r"$\|G_e\| \;/\; \sum_k \|G_k\|$",
        title="Share of the norm of the epoch gradient, at moving weights",
    )
    ax.set_ylim(bottom=0)
    return ax


@styled
def descent_cosines(directions: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the cosine between the task vector and minus the first gradient, over epochs.

    Args:
        directions: the table `directions`.
        ax: axes to draw on; by default new ones.

    Returns:
        The axes.
    """
    ax = _over_epochs(directions, "cos_task_vector_descent", ax)
    ax.set(ylabel=r"$\cos(\tau_e,\, -g_0)$", title="Task vector against the first gradient")
    return ax


@styled
def epoch_descent_cosines(directions: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the cosine between the task vector and minus the first epoch gradient, over epochs.

    Args:
        directions: the table `directions`.
        ax: axes to draw on; by default new ones.

    Returns:
        The axes.
    """
    ax = _over_epochs(directions, "cos_task_vector_epoch_descent", ax)
    ax.set(ylabel=r"$\cos(\tau_e,\, -G_0)$", title="Task vector against the first epoch gradient, at moving weights")
    return ax


def _over_epochs(table: pd.DataFrame, column: str, ax: Axes | None) -> Axes:
    """One line a run over epochs, of the whole model."""
    table = whole_model(table, column)
    names = table["task"] if has_seeds(table) else table["run"]
    ax = lines(table, column, new_axes(ax, height=HEIGHT + legend_room(names)))
    ax.set(xlabel="epoch e")
    return ax


@styled
def cross_task_cosines(cross_task: pd.DataFrame, ax: Axes | None = None, epoch: int | None = None) -> Axes:
    """Draw the cosines between the tasks' task vectors after one epoch number.

    Args:
        cross_task: the table `cross_task`.
        ax: axes to draw on; by default new ones.
        epoch: the epoch; by default the last.

    Returns:
        The axes.
    """
    table = whole_model(cross_task, "cos_task_vectors")
    when = ""
    if table["epoch"].notna().any():  # checkpoints without a run have none
        epoch = int(table["epoch"].max()) if epoch is None else epoch
        table, when = table[table["epoch"] == epoch], f", epoch {epoch}"
    names = list(dict.fromkeys([*table["run_a"], *table["run_b"]]))
    values = np.full(
        (len(names), len(names)), np.nan
    )  # a pair without this epoch has no cosine, and of itself each has 1
    for left, right, cosine in zip(table["run_a"], table["run_b"], table["cos_task_vectors"], strict=True):
        values[names.index(left), names.index(right)] = values[names.index(right), names.index(left)] = cosine
    matrix = pd.DataFrame(values, index=names, columns=names)
    side = min(1.6 + 0.55 * len(names), 6.3)
    ax = new_axes(ax, side + 0.8, side - 0.3)
    heatmap(matrix, ax, cosine_scale(values), square=True)
    ax.set_title(f"Cosine between task vectors{when}")
    return ax


@dataclass(frozen=True)
class FigureOf:
    """How a figure is made: of which table, when, by which function, and what stands under it.

    Attributes:
        table: name of the table.
        column: the column that must hold something.
        draw: makes axes of the table.
        caption: defines every symbol and unit.
        each_run: one map a run, all in one grid.
        by_block: its rows are blocks of the model, so that those of the whole model are nothing to show.
        instead_of: runs that have something in this column are drawn elsewhere, by it, and left out here.
    """

    table: str
    column: str
    draw: Callable[..., Axes]
    caption: str
    each_run: bool = False
    by_block: bool = False
    instead_of: str = ""


EPOCH_GRADIENT = (
    "the epoch gradient G_e, the sum of the batch gradients of the epoch that begins at e, at moving weights"
)
AGAINST = (
    "K: number of epochs; the upright mark is the even share 1/K; the ceiling of a share is 1; the numbers on the "
    "right say how many times an even share it is, of at most K; of a task with several runs it is their mean, with a "
    "line from the least to the most"
)

FIGURES = {
    "gradient_shares": FigureOf(
        "norms",
        "gradient_norm_share",
        gradient_shares,
        "Norm of the full-batch gradient g_e at the weights after e epochs, as a share of the sum over epochs 0 to "
        "K-1, K the last. One line a run; where it falls, early epochs have longer gradients than late ones.",
    ),
    "epoch_gradient_shares": FigureOf(
        "norms",
        "epoch_gradient_norm_share",
        epoch_gradient_shares,
        f"Norm of {EPOCH_GRADIENT}, as a share of the sum over all recorded epochs. Of runs without full-batch "
        "gradients.",
        instead_of="gradient_norm_share",
    ),
    "first_epoch_dominance": FigureOf(
        "norms",
        "gradient_norm_share",
        first_epoch_dominance,
        f"Share of the first epoch in the sum of the norms of full-batch gradients. {AGAINST}.",
    ),
    "first_epoch_dominance_epoch_gradients": FigureOf(
        "norms",
        "epoch_gradient_norm_share",
        partial(first_epoch_dominance, column="epoch_gradient_norm_share"),
        f"Share of the first epoch in the sum of the norms of epoch gradients: that of epoch e is {EPOCH_GRADIENT}. "
        f"{AGAINST}.",
        instead_of="gradient_norm_share",
    ),
    "first_epoch_dominance_batches": FigureOf(
        "norms",
        PUBLISHED,
        partial(first_epoch_dominance, column=PUBLISHED),
        "Share of the first epoch in the sum over epochs of the mean norm of the batch gradients, the published "
        f"quantity. {AGAINST}. Published: {SOURCE}.",
    ),
    "descent_cosines": FigureOf(
        "directions",
        "cos_task_vector_descent",
        descent_cosines,
        "Cosine of the angle between the task vector tau_e after e epochs and minus g_0, the full-batch gradient at "
        "the pretrained weights. 1 means that all epochs moved along the first gradient.",
    ),
    "epoch_descent_cosines": FigureOf(
        "directions",
        "cos_task_vector_epoch_descent",
        epoch_descent_cosines,
        "Cosine of the angle between the task vector tau_e after e epochs and minus the epoch gradient G_0, the sum of "
        "the batch gradients that the first epoch consumed at moving weights. Of runs without full-batch gradients; "
        "at e = 1 it tells how far the rule's weights of the steps matter, not whether tau_1 is minus the full-batch "
        "gradient.",
        instead_of="cos_task_vector_descent",
    ),
    "trajectory_plane": FigureOf(
        "trajectories",
        "x",
        trajectory_plane,
        "Weights after each epoch, projected on the two principal components of all points; units are those of the "
        "weights. The star is the pretrained model, a large marker the last epoch.",
    ),
    "cross_task_cosines": FigureOf(
        "cross_task",
        "cos_task_vectors",
        cross_task_cosines,
        "Cosine between the task vectors of two runs after the same number of epochs. Independent random directions in "
        "m coordinates have a cosine within 3 / sqrt(m) of 0 for 99.7 % of pairs; negative: the two undo each other.",
    ),
    "error_budget": FigureOf(
        "error_budget",
        "share",
        budget_shares,
        "What share of the residual (the task vector minus its prediction -kappa S g_0) each term takes. Shares sum "
        "to 1, may be negative, and depend on the order of the terms.",
    ),
    "relative_norms": FigureOf(
        "norms",
        "relative_norm",
        block_norms,
        "Norm of each block's task vector over the norm of its pretrained weights.",
        by_block=True,
    ),
    "gradient_cosines": FigureOf(
        "epoch_cosines",
        "cosine",
        epoch_cosine_map,
        "Cosine between the full-batch gradients g_e and g_f at two epochs of one run; one scale for all runs.",
        each_run=True,
    ),
    "layers": FigureOf(
        "directions",
        "cos_task_vector_descent",
        layer_map,
        "Cosine between the task vector tau_e and minus the first gradient g_0, each cut down to one block of "
        "parameters (input side on top); one scale for all runs.",
        each_run=True,
    ),
    "epoch_layers": FigureOf(
        "directions",
        "cos_task_vector_epoch_descent",
        partial(layer_map, column="cos_task_vector_epoch_descent"),
        "Cosine between the task vector tau_e and minus the epoch gradient G_0 of the first epoch, the sum of its "
        "batch gradients at moving weights, each cut down to one block of parameters (input side on top); one scale "
        "for all runs. Of runs without full-batch gradients.",
        each_run=True,
        instead_of="cos_task_vector_descent",
    ),
}
"""Figure -> how it is made."""

NAMES = ("run", "run_a", "run_b", "group", "term", "task")
"""Columns of names that pictures show."""

MOST_LETTERS = 28
"""Letters of a name in a picture, so that it fits beside a heat map; longer ones are cut in the middle."""

BOXES = " Signs that no installed font has are shown as boxes."

MOST_RUNS = 12
"""Maps of one run each are drawn for so many runs."""


def captioned_figures(
    tables: Mapping[str, pd.DataFrame], directory: Path, tasks: Mapping[str, str] | None = None
) -> list[tuple[Path, str]]:
    """Draw every figure whose table has something to show, as PNG, SVG and PDF.

    Args:
        tables: the tables of a report, `trajectories` and `epoch_cosines` among them.
        directory: where to; it is made.
        tasks: name of a run -> its task: lines over epochs are means where a task has several runs.

    Returns:
        The files with their captions, PNG before SVG and PDF.
    """
    make_folder(directory)
    tables = {
        name: _with_short_names(table.assign(task=table["run"].map(tasks)) if tasks and "run" in table else table)
        for name, table in tables.items()
    }
    written: list[tuple[Path, str]] = []
    for name, made, table in drawable(tables):
        with _signs_without_font() as unknown:
            paths = _saved(_drawn(made, table), directory / name)
        written += [(path, made.caption + BOXES * bool(unknown)) for path in paths]
    return written


def _drawn(made: FigureOf, table: pd.DataFrame) -> Axes:
    if not made.each_run:
        return made.draw(table)
    present = table[table[made.column].notna() & (table["group"] != ALL if "group" in table else True)]
    runs = list(dict.fromkeys(present["run"]))[:MOST_RUNS]
    return made.draw(table, run=runs[0]) if len(runs) == 1 else map_grid(made.draw, table, runs)


@contextmanager
def _signs_without_font() -> Generator[list[str]]:
    """Collect what matplotlib says of signs that it cannot draw; all other warnings are given when it ends."""
    unknown: list[str] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield unknown
    for one in said:
        if "missing from font" in str(one.message):
            unknown.append(str(one.message))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def drawable(tables: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, FigureOf, pd.DataFrame]]:
    """Choose the figures whose table has something to show.

    Args:
        tables: the tables of a report, `trajectories` and `epoch_cosines` among them.

    Yields:
        The figure's name, how it is made, and the rows that it shows.
    """
    for name, made in FIGURES.items():
        table = tables.get(made.table)
        if table is None or made.column not in table:
            continue
        if made.instead_of:
            table = table[~table["run"].isin(table[table[made.instead_of].notna()]["run"])]
        shown = table[table["group"] != ALL] if made.by_block else table
        if shown[made.column].notna().any():
            yield name, made, table


def _with_short_names(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose names fit into a picture, and start no formula there."""
    found = {}
    for column in NAMES:
        if column in table:
            shown = shortened(map(str, table[column].unique()), MOST_LETTERS)
            # matplotlib leaves out of a legend what begins with an underscore
            safe = {name: re.sub(r"^(?=_)", " ", short.replace("$", r"\$")) for name, short in shown.items()}
            found[column] = table[column].map(str).map(safe)
    return table.assign(**found)


def _saved(ax: Axes, stem: Path) -> list[Path]:
    figure = ax.get_figure(root=True)
    if figure is None:
        return []
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "svg", "pdf")]
    with mpl.rc_context(STYLE):
        # Laid out once for all three files. A layout with square cells may push labels over the edge of the figure:
        # the box round everything that is drawn brings them back.
        figure.draw_without_rendering()
        # No engine, and no box where all of it lies inside: either would have each file laid out a second time.
        figure.set_layout_engine(None)
        drawn = figure.get_tightbbox()
        inside = (
            drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= figure.bbox_inches.x1 and drawn.y1 <= figure.bbox_inches.y1
        )
        box = None if inside else drawn.padded(mpl.rcParams["savefig.pad_inches"])
        for path in paths:
            write_figure(figure, path, bbox_inches=box)
    return paths
