"""The first epoch's share: against 1/K, with K and the ceiling, each kind of norm on axes of its own."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.container import BarContainer, ErrorbarContainer

from tests.traced_runs import Traced
from tvgrad.report.figures import captioned_figures
from tvgrad.report.first_epochs import MEASURES, PUBLISHED, even_shares, first_epochs
from tvgrad.report.first_epochs_figure import first_epoch_dominance
from tvgrad.report.latex import latex_table
from tvgrad.report.page import html_page
from tvgrad.report.published import first_epoch_shares
from tvgrad.report.tables import run_tables

SHARES = {"a": (0.7, 0.3), "b": (0.4, 0.3, 0.2, 0.1)}


def norms(column: str) -> pd.DataFrame:
    rows = [
        {"run": run, "epoch": epoch, "group": "all", column: share}
        for run, shares in SHARES.items()
        for epoch, share in enumerate((*shares, math.nan))
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("column", MEASURES)
def test_bars_marks_and_words(column: str) -> None:
    ax = first_epoch_dominance(norms(column), column=column)
    names = [("a", 0.7, 2), ("b", 0.4, 4)]
    if column == PUBLISHED:
        names += list(first_epoch_shares()[["data_set", "share", "epochs"]].itertuples(index=False, name=None))
    assert [bar.get_width() for bars in ax.containers for bar in bars] == [share for _, share, _ in names]
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"{name}, K = {k}" for name, _, k in names]
    (marks,) = ax.collections
    assert marks.get_offsets().tolist() == [[1 / k, place] for place, (_, _, k) in enumerate(names)]
    assert [text.get_text() for text in ax.texts] == [f"{share * k:.2f} of at most {k}" for _, share, k in names]
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert ("published" in said) == (column == PUBLISHED)
    assert {"even share 1/K", "ceiling"} <= set(said)
    assert MEASURES[column] in ax.get_title(loc="left")


def test_seeds_of_a_task_are_a_mean_with_a_line_from_least_to_most() -> None:
    def run(name: str, task: str, first: float) -> pd.DataFrame:
        shares = {"epoch": [0, 1, 2], "gradient_norm_share": [first, 1 - first, math.nan]}
        return pd.DataFrame({"run": name, "task": task, "group": "all", **shares})

    table = pd.concat([run("a-0", "a", 0.6), run("b-0", "b", 0.5), run("a-1", "a", 0.7), run("a-2", "a", 0.9)])
    ax = first_epoch_dominance(table)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a, K = 2, 3 runs", "b-0, K = 2"]
    widths = [bar.get_width() for bars in ax.containers if isinstance(bars, BarContainer) for bar in bars]
    assert widths == pytest.approx([(0.6 + 0.7 + 0.9) / 3, 0.5], rel=1e-12)
    ((_, _, (line,)),) = (drawn for drawn in ax.containers if isinstance(drawn, ErrorbarContainer))
    assert [segment.ravel().tolist() for segment in line.get_segments()] == [pytest.approx([0.6, 0, 0.9, 0], rel=1e-12)]


def test_a_run_with_a_gap_has_no_share_of_all_epochs() -> None:
    table = norms("epoch_gradient_norm_share")
    table = table[(table["run"] == "b") | (table["epoch"] != 1)]
    assert list(first_epochs(table, "epoch_gradient_norm_share")["name"]) == ["b"]


def test_captions_say_k_and_the_ceiling() -> None:
    table = norms("gradient_norm_share")
    assert even_shares(table).startswith("`K` = 2 to 4 here")
    assert even_shares(table[:0]) == ""
    assert "$K$ = 2 to 4 here: epochs that are all alike have the share $1/K$" in latex_table(table, "norms")
    page = html_page({"norms": table}, [], [], "t", "l")
    assert "K = 2 to 4 here: epochs that are all alike have the share 1/K, and the ceiling of a share is 1" in page


def test_each_run_is_drawn_by_the_gradients_that_it_has(traced: Traced, tmp_path: Path) -> None:
    options = {"optimizer": "sgd", "batch_size": 300}
    full = traced("low", record=("gradients", "epoch-gradients"), **options)
    sums = traced("rotated", record=("epoch-gradients",), **options)
    files = {path.stem for path, _ in captioned_figures(run_tables([full]).tables, tmp_path / "full")}
    assert {"gradient_shares", "descent_cosines", "first_epoch_dominance", "first_epoch_dominance_batches"} <= files
    assert not {name for name in files if name.startswith("epoch_") or "epoch_gradients" in name}
    tables = run_tables([sums]).tables
    files = {path.stem for path, _ in captioned_figures(tables, tmp_path / "sums")}
    assert {"epoch_gradient_shares", "epoch_descent_cosines", "epoch_layers"} <= files
    assert {"first_epoch_dominance_epoch_gradients", "first_epoch_dominance_batches"} <= files
    assert not {"gradient_shares", "descent_cosines", "first_epoch_dominance", "layers"} & files
    both = captioned_figures(run_tables([full, sums]).tables, tmp_path / "both")
    assert {"gradient_shares", "epoch_gradient_shares"} <= {path.stem for path, _ in both}
    said = next(caption for path, caption in both if path.stem == "epoch_gradient_shares")
    assert "epoch gradient" in said
    assert "at moving weights" in said
    drawn = (tmp_path / "both" / "epoch_gradient_shares.svg").read_text(encoding="utf-8")
    assert ">rotated</text>" in drawn
    assert ">low</text>" not in drawn
