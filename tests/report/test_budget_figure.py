"""The figure of the error budget: every share is drawn once, where its row belongs, and small ones together."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from tvgrad.report.budget_figure import COLOURS, REST, budget_shares

SHARES = {"update rounding": 0.001, "weight decay": -0.25, "curvature": 0.9, "batch order + coverage": 0.349}


def table(runs: tuple[str, ...] = ("a",), epochs: tuple[int, ...] = (1, 2)) -> pd.DataFrame:
    rows = [
        {"run": run, "epoch": epoch, "term": term, "share": math.nan if epoch == 1 else share}
        for run in runs
        for epoch in epochs
        for term, share in SHARES.items()
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("runs", "epochs", "places"),
    [(("a",), (1, 2, 3), ["epoch 2", "epoch 3"]), (("a", "b"), (1, 2, 3), ["a", "b"])],
)
def test_bars(runs: tuple[str, ...], epochs: tuple[int, ...], places: list[str]) -> None:
    ax = budget_shares(table(runs, epochs))
    assert [label.get_text() for label in ax.get_yticklabels()] == places
    drawn = {bars.get_label(): [bar.get_width() for bar in bars] for bars in ax.containers}
    kept = {term: share for term, share in SHARES.items() if abs(share) >= 0.005}
    assert drawn == {
        **{term: [pytest.approx(share)] * len(places) for term, share in kept.items()},
        REST: [pytest.approx(0.001)] * len(places),
    }
    for row in range(len(places)):
        bars = [bars[row] for bars in ax.containers]
        above = max(bar.get_x() + bar.get_width() for bar in bars)
        below = min(bar.get_x() + min(0.0, bar.get_width()) for bar in bars)
        assert above + below == pytest.approx(1.0)
    hatched = {bars.get_label() for bars in ax.containers if bars[0].get_hatch()}
    assert hatched == {"batch order + coverage"}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(drawn)


def test_the_unexplained_has_a_colour_of_its_own() -> None:
    ax = budget_shares(table().assign(term=lambda rows: rows["term"].replace("weight decay", "unexplained")))
    colours = {bars.get_label(): bars[0].get_facecolor() for bars in ax.containers}
    assert colours.pop("unexplained") == to_rgba(COLOURS["unexplained"])
    assert to_rgba(COLOURS["unexplained"]) not in colours.values()


def test_terms_differ_in_colour() -> None:
    assert len(set(COLOURS.values())) == len(COLOURS)
