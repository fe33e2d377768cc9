"""Tables on terminals of every width: nothing is wider, no word is cut, and what is left out is named."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from rich.cells import cell_len
from tvgrad.cli.main import COMMANDS
from tvgrad.cli.table_layout import text_of
from tvgrad.cli.terminal import console, print_table

from tvgrad.report.columns import COLUMNS, FURTHER_COLUMNS
from tvgrad.report.headings import heading

CELLS = {
    **dict.fromkeys(("run", "run_a", "run_b", "rule", "trouble", "nodes"), "seed-0/rotated"),
    **dict.fromkeys(("group", "term"), "encoder.attention.out"),
    **dict.fromkeys(
        ("reason", "cause"), "mini-batches of sixty-four samples took seven steps, where one full-batch step would"
    ),
    **dict.fromkeys(("holds", "gradient_holds"), "exact"),
}


def table_of(name: str, rows: int = 3) -> pd.DataFrame:
    random = np.random.default_rng(0)

    def cells(column: str) -> object:
        if column == "epoch":
            return list(range(rows))
        return CELLS.get(column) or random.normal(size=rows) * 10.0 ** random.integers(-9, 9, rows)

    columns = [*COLUMNS[name], *FURTHER_COLUMNS[name]]
    return pd.DataFrame({column: cells(column) for column in columns}, index=range(rows))


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("name", COLUMNS)
def test_a_table_fits(
    name: str, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    table = table_of(name)
    print_table("A title of some length that says what is in the table and how it was made", table)
    out = capsys.readouterr().out
    drawn = [line for line in out.splitlines() if line[:1] in "╭│├╰"]
    assert max(map(cell_len, drawn)) <= width
    top = drawn[0]
    assert all(cell_len(line) == cell_len(top) for line in drawn)
    words = set(re.split(r"[\s│]+", out))
    for sentence in set(CELLS.values()):
        assert set(sentence.split()) <= words or sentence.split()[0] not in words, "no word is cut"
    heads = " ".join(re.split(r"[\s│]+", out))
    missing = out.partition("left out for want of room: ")[2]
    for column in table:
        assert any(word in heads for word in heading(column, name).split())
    if width >= 200:
        assert "run" not in missing


def test_a_single_row_is_a_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_table("equivalence", table_of("equivalence", 1))
    out = capsys.readouterr().out
    assert re.search(r"│ step +│ exact +│", out)
    assert "left out" not in out
    assert max(map(cell_len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("number", "column", "text"),
    [
        (0.123456, "norm", "0.123"), (12345.6, "norm", "12,346"), (-1e-9, "norm", "-1e-09"), (1e12, "norm", "1e+12"),
        (float("nan"), "norm", ""), (0.12345, "bound", "0.124"), (0.12345, "lower_bound", "0.123"), (3, "epoch", "3"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_and_bounds_are_rounded_outward(number: float, column: str, text: str) -> None:
    assert text_of(number, column) == text


def test_a_near_miss_is_told(refused: Callable[..., str]) -> None:
    assert "Did you mean 'report'?" in refused("reprot")
    assert f"Choose from {', '.join(COMMANDS)}." in refused("zzzzzz")
    assert "did you mean 'digits'?" in refused("trace", "digist", "--out", "x")


def test_recipes_in_every_format(tvgrad: Callable[..., object]) -> None:
    for form, begin in (
        ("csv", "recipe,tasks,"),
        ("md", "| recipe | tasks"),
        ("json", "[\n {"),
        ("latex", "% packages"),
    ):
        done = tvgrad("recipes", "--format", form)
        assert done.out.startswith(begin)  # type: ignore[attr-defined]
        assert "Begin with" in done.err  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["COLUMNS", "LINES"])
@pytest.mark.parametrize("size", ["²", "0", "-1", "9" * 31, "x"])
def test_a_size_of_the_terminal_that_is_none(monkeypatch: pytest.MonkeyPatch, name: str, size: str) -> None:
    with monkeypatch.context() as sized:  # the runner of tests looks at the size of its terminal, too
        for each in ("COLUMNS", "LINES"):
            sized.delenv(each, raising=False)
        expected = console().width, console(err=True).width
        sized.setenv(name, size)
        assert (console().width, console(err=True).width) == expected
        console().print("text")
