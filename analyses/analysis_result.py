"""Finding: a claim, whether it held, and the table and figure that show it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tvgrad.report.style import HEIGHT, STYLE, WIDTH


@dataclass(frozen=True)
class Finding:
    """What an analysis found.

    Attributes:
        claim: the sentence that was put to the test.
        held: whether it held here.
        evidence: the numbers that decided it, in a sentence.
        table: what was measured.
        draw: draws the figure on axes.
        others: name -> what draws a further figure.
        verdicts: further claims, each a sentence with its outcome and numbers.
    """

    claim: str
    held: bool
    evidence: str
    table: pd.DataFrame
    draw: Callable[[Axes], None]
    others: Mapping[str, Callable[[Axes], None]] = field(default_factory=dict)
    verdicts: tuple[str, ...] = ()

    def save(self, path: Path, width: float = WIDTH, height: float = HEIGHT) -> None:
        """Draw the figure into a file.

        Args:
            path: a file that ends in .png or .svg; its folder must exist.
            width: inches.
            height: inches.
        """
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(width, height), layout="constrained")
            self.draw(figure.subplots())
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def fitted_order(rates: Sequence[float], errors: Sequence[float]) -> float:
    """The power of the learning rate that errors follow.

    Args:
        rates: learning rates, at least two.
        errors: one positive number for each.

    Returns:
        The slope of the least-squares line through the logarithms.
    """
    return float(np.polyfit(np.log(np.asarray(rates)), np.log(np.asarray(errors)), 1)[0])


def guide_line(ax: Axes, table: pd.DataFrame, order: int) -> None:
    """Draw the slope that a theorem gives, below measured points.

    Args:
        ax: logarithmic axes.
        table: what was drawn, with the columns lr and value.
        order: the power of the rate.
    """
    first, last = float(table["lr"].min()), float(table["lr"].max())
    # Under all points, half a decade away from the nearest.
    height = float((table["value"] / table["lr"] ** order).min()) / 3
    ax.plot([first, last], [height * first**order, height * last**order], color="0.4", linewidth=0.9, linestyle="--")
    middle = math.sqrt(first * last)
    ax.annotate(
        f"slope {order}",
        (middle, height * middle**order),
        (3, -11),
        textcoords="offset points",
        fontsize=8,
        color="0.3",
    )
