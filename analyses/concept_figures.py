"""Panels and phase diagrams of the laboratory's figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

DOTS: dict[str, Any] = {"marker": "o", "markersize": 3.2, "markeredgecolor": "black", "markeredgewidth": 0.7}
"""Dots that can be seen on every colour."""


def panels(ax: Axes, count: int, width: float, height: float, share: bool = True) -> list[Axes]:
    """Put panels side by side in the place of one axes, so that a figure stays one function of one axes.

    Args:
        ax: replaced.
        count: how many.
        width: of the figure, in inches.
        height: of the figure, in inches.
        share: all have the same vertical axis.

    Returns:
        The panels.
    """
    figure = ax.figure.get_figure(root=True)
    ax.remove()
    figure.set_size_inches(width, height)
    return list(figure.subplots(1, count, sharey=share, squeeze=False).ravel())


def phase_diagrams(axes: Sequence[Axes], grids: Sequence[pd.DataFrame], titles: Sequence[str], label: str) -> None:
    """Draw quantities over rho and lambda with one scale of colours.

    Args:
        axes: one a quantity.
        grids: index lambda, columns rho.
        titles: one a quantity.
        label: of the scale.
    """
    scale = Normalize(0, float(np.ceil(10 * max(grid.to_numpy().max() for grid in grids)) / 10))
    for ax, grid, title in zip(axes, grids, titles, strict=True):
        ax.grid(False)
        mesh = ax.pcolormesh(grid.columns, grid.index, grid, cmap="crest", norm=scale, shading="nearest")
        mesh.set_edgecolor("face")
        ax.set(xlabel=r"overlap $\rho$", title=title)
    axes[0].set_ylabel(r"coefficient $\lambda$")
    axes[0].figure.colorbar(mesh, ax=list(axes), label=label, shrink=0.9)
