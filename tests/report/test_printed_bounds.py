"""A printed bound still is one: in every format it is at or above the error, as it is and as it is printed there."""

from __future__ import annotations

import csv
import html
import json
import math
import random
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pytest
import torch
from tvgrad.cli.terminal import print_table

from tests.traced_runs import Traced
from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.of_run import objective_of
from tvgrad.report.columns import COLUMNS
from tvgrad.report.documents import write_tables
from tvgrad.report.page import html_page
from tvgrad.report.tables import run_tables
from tvgrad.theory.certified import bounds_of_run
from tvgrad.theory.explain import explain, with_bounds, write_results
from tvgrad.wording import OUTWARD, printed

Pairs = list[tuple[Decimal, Decimal]]


def random_rows(seed: int) -> pd.DataFrame:
    """Errors of all sizes and bounds that lie as close above them as numbers can."""
    draw = random.Random(seed)
    rows = []
    for epoch in range(1, 11):
        error = 10 ** draw.uniform(-14, 9)
        bound = error * (1 + draw.choice((0.0, 1e-15, 1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 0.1)))
        rows.append({"run": "a", "epoch": epoch, "error_norm": error, "predicted_norm": error, "bound": bound})
    return pd.DataFrame(rows, columns=list(COLUMNS["second_order"]))


def number(text: str) -> Decimal:
    found = re.sub(r"\$?([\d.]+) \\times 10\^\{(-?\d+)\}\$?", r"\1e\2", text.strip().replace(",", ""))
    return Decimal(found)


def printed_pairs(table: pd.DataFrame, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Pairs]:
    """Format -> (error, bound) of every row, as they are printed in it."""
    write_tables({"second_order": table}, folder, ("csv", "json", "md", "latex"))
    with (folder / "second_order.csv").open(encoding="utf-8") as file:
        lines = [(row["error_norm"], row["bound"]) for row in csv.DictReader(file)]
    objects = json.loads((folder / "second_order.json").read_text(encoding="utf-8"), parse_float=str)
    found = {"csv": lines, "json": [(str(row["error_norm"]), str(row["bound"])) for row in objects]}
    columns = list(table.columns)
    error, bound = columns.index("error_norm"), columns.index("bound")
    cells = [line.split("|")[1:-1] for line in (folder / "second_order.md").read_text(encoding="utf-8").splitlines()]
    found["md"] = [(row[error], row[bound]) for row in cells[2:]]
    kept = [column for column in columns if table[column].notna().any()]
    shorter = [column for column in kept if column != "predicted_norm_order2"]
    text = (folder / "second_order.tex").read_text(encoding="utf-8")
    lines_of_tex = [line.removesuffix(r"\\").split("&") for line in text.splitlines() if line.endswith(r"\\")][1:]
    found["latex"] = [(row[shorter.index("error_norm")], row[shorter.index("bound")]) for row in lines_of_tex]
    page = html_page({"norms": table[["run"]], "second_order": table}, [], [], "t", "l")
    body = page[page.index('id="second_order"') :]
    rows = [
        re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    ]
    plain = [[html.unescape(cell) for cell in row] for row in rows if row]
    found["html"] = [(row[kept.index("error_norm")], row[kept.index("bound")]) for row in plain]
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "500")  # no column is left out
        print_table("second_order", table)
    body = capsys.readouterr().out.partition("├")[2]
    drawn = [line.split("│")[1:-1] for line in body.splitlines() if line.startswith("│")]
    found["terminal"] = [(row[error], row[bound]) for row in drawn]
    return {name: [(number(one), number(other)) for one, other in pairs] for name, pairs in found.items()}


def assert_bounds_hold(table: pd.DataFrame, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, pairs in printed_pairs(table, folder, capsys).items():
        assert len(pairs) == len(table), name
        for (error, bound), true, exact in zip(pairs, table["error_norm"], table["bound"], strict=True):
            if name in {"csv", "json"}:  # every digit that a float64 has
                assert (float(error), float(bound)) == (true, exact), name
            else:
                assert bound >= max(error, Decimal(true), Decimal(exact)), name


@pytest.mark.parametrize("seed", range(10))
def test_bounds_of_random_rows(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_bounds_hold(random_rows(seed), tmp_path, capsys)


@pytest.mark.parametrize("task", ["low", "parity"])
def test_bounds_of_traced_runs(
    traced: Traced, digits: dict[str, Recipe], task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = traced(task, optimizer="gd", lr=1e-5, epochs=3, dtype="float64")
    objective = objective_of(run, digits[task], torch.float64)
    write_results(run, with_bounds(explain(run, objective), *bounds_of_run(run, digits[task], objective)))
    table = run_tables([run]).tables["second_order"]
    assert table["bound"].notna().sum() == len(table) == 3
    assert_bounds_hold(table, tmp_path, capsys)


@pytest.mark.parametrize("column", OUTWARD)
def test_every_column_of_bounds_is_rounded_outward(column: str) -> None:
    below: Callable[[Decimal, Decimal], bool] = Decimal.__le__ if "lower" in column else Decimal.__ge__
    draw = random.Random(1)
    for _ in range(300):
        value = 10 ** draw.uniform(-20, 20)
        for digits in (3, 4, 5, 6):
            assert below(Decimal(printed(value, column, digits)), Decimal(value))
    assert printed(math.inf, column, 3) == "inf"
    assert printed(0.123456, "norm", 3) == "0.123"
