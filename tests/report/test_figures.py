"""Figures: each is drawn from a DataFrame, shows every row of it, and leaves nothing behind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.traced_runs import Traced
from tvgrad.report.columns import COLUMNS
from tvgrad.report.figures import (
    captioned_figures,
    cross_task_cosines,
    descent_cosines,
    gradient_shares,
)
from tvgrad.report.style import MOST_MARKED
from tvgrad.report.tables import run_tables

TASKS = ("low", "high", "parity", "rotated")


@pytest.fixture(scope="module")
def tables(traced: Traced) -> dict[str, pd.DataFrame]:
    return run_tables([traced(task) for task in TASKS]).tables


def paths_of(tables: dict[str, pd.DataFrame], directory: Path) -> list[Path]:
    return [path for path, _ in captioned_figures(tables, directory)]


def lines_of(ax: Axes) -> list[np.ndarray]:
    return [line.get_xydata() for line in ax.get_lines() if len(line.get_xydata())]


@pytest.mark.parametrize(
    ("draw", "table", "column"),
    [
        (gradient_shares, "norms", "gradient_norm_share"),
        (descent_cosines, "directions", "cos_task_vector_descent"),
    ],
)
def test_lines_show_the_whole_model_of_every_run(
    tables: dict[str, pd.DataFrame], draw: object, table: str, column: str
) -> None:
    ax = draw(tables[table])  # type: ignore[operator]
    rows = tables[table]
    rows = rows[(rows["group"] == "all") & rows[column].notna()]
    drawn = sorted(tuple(map(tuple, points)) for points in lines_of(ax))
    expected = sorted(
        tuple(zip(part["epoch"].astype(float), part[column], strict=True)) for _, part in rows.groupby("run")
    )
    assert drawn == expected
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(TASKS)
    assert ax.get_xlabel() == "epoch e"
    assert ax.get_ylabel()
    assert ax.get_title()


def test_the_heatmap_shows_the_last_epoch_or_another(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["cross_task"]
    for epoch in (None, 1):
        ax = cross_task_cosines(table, epoch=epoch)
        shown = np.ma.filled(ax.collections[0].get_array(), np.nan).reshape(4, 4)
        np.testing.assert_array_equal(shown, shown.T)
        assert np.ma.getmaskarray(ax.collections[0].get_array()).reshape(4, 4).diagonal().all(), "1 says nothing"
        number = 3 if epoch is None else epoch
        rows = table[(table["group"] == "all") & (table["epoch"] == number)]
        for row in rows.itertuples():
            assert shown[TASKS.index(row.run_a), TASKS.index(row.run_b)] == row.cos_task_vectors
        assert f"epoch {number}" in ax.get_title()


DRAWN = [
    (gradient_shares, "norms"),
    (descent_cosines, "directions"),
    (cross_task_cosines, "cross_task"),
]
NAMES = {"gradient_shares", "descent_cosines", "cross_task_cosines"}


def test_axes_may_be_given(tables: dict[str, pd.DataFrame]) -> None:
    for draw, table in DRAWN:
        figure = Figure()
        left, right = figure.subplots(1, 2)
        assert draw(tables[table], ax=right) is right
        assert right.get_title()
        assert not left.get_title()


def test_pyplot_and_the_users_style_are_left_alone(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    for draw, table in DRAWN:
        draw(tables[table])
    paths_of(tables, tmp_path)
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_files(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    written = paths_of(tables, tmp_path / "figures")
    assert {path.name for path in written} >= {f"{name}.{ending}" for name in NAMES for ending in ("png", "svg", "pdf")}
    for path in written:
        content = path.read_bytes()
        assert content.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[path.suffix])
        assert len(content) > 5000


def test_svg_files_are_the_same_each_time(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    first = [path.read_bytes() for path in paths_of(tables, tmp_path / "a") if path.suffix != ".png"]
    second = [path.read_bytes() for path in paths_of(tables, tmp_path / "b") if path.suffix != ".png"]
    assert first == second
    assert not any(re.search(rb"<dc:date>", content) for content in first)


def test_no_label_is_cut_off(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    """The margins of every picture are white."""
    for path in paths_of(tables, tmp_path):
        if path.suffix == ".png":
            pixels = mpl.image.imread(path)[..., :3]
            edges = [pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]]
            assert all(float(edge.min()) >= 1.0 for edge in edges), path.name


def test_figures_without_anything_to_show_are_left_out(traced: Traced, tmp_path: Path) -> None:
    alone = run_tables([traced("rotated")]).tables
    assert {path.stem for path in paths_of(alone, tmp_path / "a")} & NAMES == NAMES - {"cross_task_cosines"}
    weights = run_tables([traced("rotated", record=())]).tables
    assert not {path.stem for path in paths_of(weights, tmp_path / "b")} & NAMES
    empty = {name: pd.DataFrame(columns=list(columns)) for name, columns in COLUMNS.items()}
    assert paths_of(empty, tmp_path / "c") == []


def synthetic(runs: int, epochs: int) -> pd.DataFrame:
    rows = [
        {"run": f"task number {run}", "epoch": epoch, "group": "all", "gradient_norm_share": 1 / (1 + epoch + run)}
        for run in range(runs)
        for epoch in range(epochs)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("runs", "epochs"), [(1, 1), (1, 80), (10, 5), (23, 12)])
def test_few_and_many_runs_and_epochs(runs: int, epochs: int) -> None:
    ax = gradient_shares(synthetic(runs, epochs))
    assert len(lines_of(ax)) == runs
    colours = {line.get_color() for line in ax.get_lines() if len(line.get_xydata())}
    assert len(colours) == runs
    marked = any(line.get_marker() not in {"", "None", None} for line in ax.get_lines() if len(line.get_xydata()))
    assert marked == (epochs <= MOST_MARKED)
    assert all(tick == int(tick) for tick in ax.get_xticks())


def test_drawing_needs_no_display() -> None:
    code = "import tvgrad.report.figures, sys; sys.exit('tkinter' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": ""})


def test_text_of_vector_graphics_is_text(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    path = next(path for path in paths_of(tables, tmp_path) if path.name == "descent_cosines.svg")
    content = path.read_text()
    assert ">epoch e</text>" in content
    assert all(f">{task}</text>" in content for task in TASKS)
    png = mpl.image.imread(tmp_path / "descent_cosines.png")
    assert png.shape[1] > 5 * 300, "300 dots an inch"


def test_titles_can_be_left_out(tables: dict[str, pd.DataFrame]) -> None:
    assert gradient_shares(tables["norms"]).get_title()
    assert not gradient_shares(tables["norms"], title=False).get_title()


def test_seeds_of_a_task_are_a_mean_and_a_band() -> None:
    table = synthetic(4, 5).assign(task=lambda rows: rows["run"].map(lambda run: f"task {int(run[-1]) % 2}"))
    ax = gradient_shares(table)
    drawn = lines_of(ax)
    assert len(drawn) == 2
    means = table.groupby(["task", "epoch"])["gradient_norm_share"].mean()
    np.testing.assert_allclose(sorted(points[0, 1] for points in drawn), sorted(means[:, 0]))
    assert len(ax.collections) == 2, "a band for each task"


def test_maps_of_several_runs_share_a_grid_and_a_colour_bar(tables: dict[str, pd.DataFrame]) -> None:
    from tvgrad import report

    ax = report.map_grid(report.layer_map, tables["directions"], list(TASKS))
    axes = [one for one in ax.figure.axes if one.get_visible()]
    assert len(axes) == len(TASKS) + 1
    assert [one.get_title() for one in axes[: len(TASKS)]] == list(TASKS)


def test_every_figure_is_a_public_function_of_the_package() -> None:
    from tvgrad import report

    for name in report.FIGURE_FUNCTIONS:
        assert callable(getattr(report, name))
        assert name in dir(report)
