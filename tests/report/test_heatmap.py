"""Heat maps: scales that use the colours there are, numbers that can be read, no warning from the drawing library."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tvgrad.report.heatmap import Scale, cosine_scale, heatmap, size_scale
from tvgrad.report.maps import epoch_cosine_map, layer_map


def relative_luminance(colour: tuple[float, ...]) -> float:
    """As WCAG 2.2 writes it, channel by channel."""
    total = 0.0
    for weight, channel in zip((0.2126, 0.7152, 0.0722), colour[:3], strict=True):
        total += weight * (channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4)
    return total


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    low, high = sorted((relative_luminance(one), relative_luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([0.93, 0.99, np.nan], 0.9, 1.0), ([1.0, 1.0], 0.95, 1.0), ([-0.2, 1.0], -1.0, 1.0), ([np.nan], 0.0, 1.0)],
)
def test_scale_of_cosines(values: list[float], low: float, high: float) -> None:
    scale = cosine_scale(values)
    assert (scale.low, scale.high) == (pytest.approx(low), high)


@pytest.mark.parametrize(("values", "low", "high"), [([1.0, 3.0], 0.0, 3.0), ([-4.0, 3.0], -4.0, 4.0), ([0.0], 0, 1)])
def test_scale_of_sizes(values: list[float], low: float, high: float) -> None:
    scale = size_scale(values)
    assert (scale.low, scale.high) == (low, high)


@pytest.mark.parametrize("scale", [Scale(-1, 1, "vlag"), Scale(0, 1, "crest")], ids=["vlag", "crest"])
def test_numbers_stand_out_from_their_cells(scale: Scale) -> None:
    values = np.linspace(scale.low, scale.high, 12).reshape(3, 4)
    values[1, 2] = np.nan
    ax = heatmap(pd.DataFrame(values), Figure().subplots(), scale)
    cells = ax.collections[0]
    colours = cells.get_facecolor()[~np.isnan(values.ravel())]
    assert [text.get_text() for text in ax.texts] == [f"{value:.2f}" for value in values.ravel() if value == value]
    for text, colour in zip(ax.texts, colours, strict=True):
        assert contrast(to_rgb(text.get_color()), colour) >= 4.5, text.get_text()


def test_long_names_are_turned() -> None:
    names = [f"a task with a long name {number}" for number in range(6)]
    figure = Figure(figsize=(5, 4))
    ax = heatmap(pd.DataFrame(np.eye(6), index=names, columns=names), figure.subplots(), cosine_scale(np.eye(6)))
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {35.0}
    ax = heatmap(pd.DataFrame(np.eye(6)), Figure().subplots(), cosine_scale(np.eye(6)))
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {0.0}


def test_maps_warn_of_nothing_and_share_a_scale() -> None:
    rows = [("a", "g", 0.97), ("a", "h", 0.9), ("b", "g", 0.61), ("b", "h", 0.8)]
    directions = pd.DataFrame([
        {"run": run, "epoch": 1, "group": group, "cos_task_vector_descent": value} for run, group, value in rows
    ])
    cosines = pd.DataFrame([
        {"run": run, "kind": "gradient", "epoch_a": a, "epoch_b": b, "cosine": 1.0 if a == b else low}
        for run, low in (("a", -0.5), ("b", 0.9))
        for a in (0, 1)
        for b in (0, 1)
    ])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = [layer_map(directions, run=run) for run in "ab"]
        for ax in drawn:
            assert ax.collections[0].get_clim() == pytest.approx((0.6, 1.0))
        drawn = [epoch_cosine_map(cosines, run=run) for run in "ab"]
        assert {ax.collections[0].get_clim() for ax in drawn} == {(-1.0, 1.0)}
