"""The result of an analysis: a claim, what became of it, and the table and figure that show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tvgrad.report.figure_files import write_figure
from tvgrad.report.style import HEIGHT, STYLE, WIDTH, new_axes
from tvgrad.results import Shown

HOLDS, FAILS, UNDECIDED, VACUOUS = "holds", "fails", "undecided", "vacuous"


def outcome_of(holds: bool, fails: bool = True) -> str:
    """Name what became of a claim.

    Args:
        holds: it is shown.
        fails: its contrary is shown; by default what does not hold fails.

    Returns:
        holds, fails or undecided.
    """
    return HOLDS if holds else FAILS if fails else UNDECIDED


@dataclass(frozen=True, repr=False)
class AnalysisResult(Shown):
    """What an analysis found.

    Attributes:
        claim: the sentence that was put to the test.
        outcome: holds, fails, undecided, or vacuous: true here for a reason that says nothing of it.
        evidence: the numbers that decided it, in a sentence.
        table: what was measured.
        draw: draws the figure on axes.
        others: name -> what draws a further figure.
        verdicts: further claims, each a sentence with its outcome and numbers.
    """

    claim: str
    outcome: str
    evidence: str
    table: pd.DataFrame
    draw: Callable[[Axes], None]
    others: Mapping[str, Callable[[Axes], None]] = field(default_factory=dict)
    verdicts: tuple[str, ...] = ()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the figure.

        Args:
            ax: axes to draw on; by default new ones.

        Returns:
            The axes.
        """
        with mpl.rc_context(STYLE):
            ax = new_axes(ax)
            self.draw(ax)
        return ax

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
            write_figure(figure, path)
