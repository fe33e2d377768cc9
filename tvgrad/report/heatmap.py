"""Heat maps of cosines and norms whose colours use their range and whose numbers can be read on every colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

DARK, LIGHT = "#000000", "#ffffff"  # one of the two has a contrast of at least sqrt(21) = 4.58 to any colour
STEP = 0.05  # a scale begins at a multiple of it
LETTER = 5.2  # points that a letter of a label takes, about


@dataclass(frozen=True)
class Scale:
    """Colours of a map, and the values at their two ends."""

    low: float
    high: float
    colours: str


def cosine_scale(cosines: npt.ArrayLike) -> Scale:
    """Choose a scale for cosines.

    Args:
        cosines: all that are drawn on this scale, in one map or in several that are compared.

    Returns:
        -1 to 1 with white at 0 where there are negative ones; else from just under the smallest to 1, because on the
        whole range cosines near 1 would all have one colour.
    """
    values = np.asarray(cosines, dtype=float)
    smallest = float(np.nanmin(values)) if np.isfinite(values).any() else 0.0
    if smallest < 0:
        return Scale(-1.0, 1.0, "vlag")
    return Scale(min(float(np.floor(smallest / STEP) * STEP), 1.0 - STEP), 1.0, "crest")


def size_scale(values: npt.ArrayLike) -> Scale:
    """Choose a scale for anything that is no cosine.

    Args:
        values: all that are drawn on this scale.

    Returns:
        From 0 to the largest; where there are negative values, as far on either side of 0.
    """
    numbers = np.asarray(values, dtype=float)
    largest = float(np.nanmax(np.abs(numbers))) if np.isfinite(numbers).any() else 1.0
    if (numbers < 0).any():
        return Scale(-largest, largest, "vlag")
    return Scale(0.0, largest or 1.0, "crest")


def heatmap(
    matrix: pd.DataFrame,
    ax: Axes,
    scale: Scale,
    *,
    square: bool = False,
    most_numbers: int = 144,
    bar: bool = True,
) -> Axes:
    """Draw a matrix as colours, with its numbers where there are few enough to read.

    Args:
        matrix: what is drawn, with its labels.
        ax: where.
        scale: colours and limits.
        square: cells are squares.
        most_numbers: up to so many cells have their number written in them.
        bar: with a colour bar of its own; maps in a grid share one.

    Returns:
        The axes.
    """
    ax.grid(False)
    # Without `center`: seaborn would make a new colour map for it, by a call that matplotlib is about to drop.
    size = 7.0 if matrix.shape[1] <= 9 else 5.5
    sns.heatmap(
        matrix, vmin=scale.low, vmax=scale.high, cmap=scale.colours, square=square, ax=ax,
        annot=matrix.size <= most_numbers, fmt=".2f", annot_kws={"fontsize": size}, cbar=bar,
        cbar_kws={"shrink": 0.85},
    )  # fmt: skip
    ax.collections[0].set(edgecolor="face", linewidth=0.3)  # or renderers of SVG show seams between the cells
    _readable(ax)
    names = [str(name) for name in matrix.columns]
    box = ax.get_window_extent()
    cell = box.width * 72 / ax.figure.dpi / max(len(names), 1)
    crowded = bool(names) and len(names[0]) > 1 and max(map(len, names)) * LETTER > cell
    ax.tick_params(axis="y", rotation=0)
    ax.tick_params(axis="x", rotation=35 if crowded and not names[0].isdigit() else 0)
    if crowded and not names[0].isdigit():
        for label in ax.get_xticklabels():
            label.set(horizontalalignment="right", rotation_mode="anchor")
    return ax


def _readable(ax: Axes) -> None:
    """Black or white numbers, whichever stands out more from its cell."""
    cells = ax.collections[0]
    cells.update_scalarmappable()
    colours = np.atleast_2d(np.asarray(cells.get_facecolor()))
    written = colours[~np.ma.getmaskarray(np.ma.asarray(cells.get_array())).ravel()]  # empty cells have no number
    for text, colour in zip(ax.texts, written, strict=bool(ax.texts)):
        text.set_color(DARK if _contrast(DARK, colour) >= _contrast(LIGHT, colour) else LIGHT)


def _contrast(ink: str, paper: npt.NDArray[np.float64]) -> float:
    """The contrast ratio of the Web Content Accessibility Guidelines: 1 for equal colours, 21 for black on white."""
    one, other = (_luminance(np.asarray(colour[:3])) for colour in (to_rgb(ink), paper))
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def _luminance(colour: npt.NDArray[np.float64]) -> float:
    linear = np.where(colour <= 0.03928, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))
