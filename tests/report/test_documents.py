"""One table in every format: the same rows, to the last digit where the format is for machines."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest

from tests.traced_runs import Traced
from tvgrad.errors import TvgradError
from tvgrad.report.documents import ENDINGS, FORMATS, check_formats, shown, write_tables
from tvgrad.report.empty_columns import COMPUTED_BY
from tvgrad.report.tables import run_tables

AWKWARD = pd.DataFrame({
    "run": ["low", "a|b", 'quoted "x", y'],
    "epoch": [0, 1, 2],
    "value": [0.1 + 0.2, math.nan, 1 / 3],
    "ratio": [math.inf, -math.inf, 5e-324],
})


def markdown_rows(text: str) -> list[list[str]]:
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines()]
    assert all(set(cell.strip()) == {"-"} for cell in lines[1])
    return [[cell.strip().replace("\\|", "|") for cell in line] for line in [lines[0], *lines[2:]]]


def assert_same(table: pd.DataFrame, folder: Path, name: str) -> None:
    header, *lines = csv.reader(io.StringIO((folder / f"{name}.csv").read_text(encoding="utf-8")))
    assert header == list(table.columns)
    for line, row in zip(lines, table.itertuples(index=False), strict=True):
        for text, value in zip(line, row, strict=True):
            if isinstance(value, float):
                assert text == "" if math.isnan(value) else [float(text)] == [value]
            else:
                assert text == str(value)
    rows = json.loads((folder / f"{name}.json").read_text(), parse_constant=pytest.fail)
    assert len(rows) == len(table)
    for row, expected in zip(rows, table.to_dict("records"), strict=True):
        assert list(row) == list(table.columns)
        for column, value in expected.items():
            if isinstance(value, float) and not math.isfinite(value):
                assert row[column] is None
            else:
                assert row[column] == value
    text, _, note = (folder / f"{name}.md").read_text().partition("\n\n")
    assert (note == "No rows: `tvgrad explain RUN` makes them.\n") == (name in COMPUTED_BY and not len(table))
    header, *lines = markdown_rows(text)
    assert header == list(table.columns)
    assert lines == [[shown(cell) for cell in row] for row in table.itertuples(index=False)]


def test_awkward_cells(tmp_path: Path) -> None:
    written = write_tables({"awkward": AWKWARD}, tmp_path, ("csv", "md", "json"))
    assert written == [tmp_path / f"awkward.{ending}" for ending in ("csv", "md", "json")]
    assert_same(AWKWARD, tmp_path, "awkward")


def test_every_table_of_a_report(traced: Traced, tmp_path: Path) -> None:
    tables = run_tables([traced("rotated"), traced("low", optimizer="adam", lr=1e-3)]).tables
    write_tables(tables, tmp_path, ("csv", "md", "json"))
    for name, table in tables.items():
        assert len(table) or name not in {"norms", "directions", "equivalence", "cross_task"}
        assert_same(table, tmp_path, name)


def test_a_table_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    write_tables({"empty": AWKWARD[:0]}, tmp_path, ("csv", "md", "json"))
    assert (tmp_path / "empty.csv").read_text() == "run,epoch,value,ratio\n"
    assert json.loads((tmp_path / "empty.json").read_text()) == []
    assert markdown_rows((tmp_path / "empty.md").read_text()) == [list(AWKWARD.columns)]


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_writes_every_row(tmp_path: Path, ending: str) -> None:
    (path,) = write_tables({"awkward": AWKWARD}, tmp_path / "new" / "folder", (ending, ending))
    assert path.suffix == f".{ENDINGS.get(ending, ending)}"
    text = path.read_text(encoding="utf-8")
    assert all(word in text for word in ("low", "epoch", "value"))
    assert not list(path.parent.glob(".*"))  # no temporary is left


def test_shown() -> None:
    assert shown(math.nan) == ""
    assert shown(0.123456789) == "0.123457"
    assert shown(1e-20) == "1e-20"
    assert (shown(3), shown("word"), shown(math.inf)) == ("3", "word", "inf")


def test_bad_formats_and_folders(tmp_path: Path) -> None:
    with pytest.raises(TvgradError, match=r"unknown format 'xls': choose from csv, "):
        check_formats(["csv", "xls"])
    with pytest.raises(TvgradError, match="unknown format"):
        write_tables({}, tmp_path / "never made", ("xls",))
    assert not (tmp_path / "never made").exists()
    (tmp_path / "file").touch()
    with pytest.raises(TvgradError, match="cannot be made a folder for the report"):
        write_tables({"awkward": AWKWARD}, tmp_path / "file" / "report", ("csv",))
    assert check_formats(["md", "csv", "md"]) == ["md", "csv"]


def test_the_headline_stands_in_what_people_read(tmp_path: Path) -> None:
    lead = "Task vector: no for a_b: 79 % away (`--record x`) & 2^3 ~ {c} <d> \\ *e* [f] $#."
    table = pd.DataFrame({"run": ["a|b"], "deviation": [0.5]})
    files = {path.suffix: path.read_text() for path in write_tables(
        {"equivalence": table, "norms": table}, tmp_path, ("csv", "md", "json", "latex"), {"equivalence": lead}
    ) if path.stem == "equivalence"}  # fmt: skip
    first, empty, *rest = files[".md"].splitlines()
    assert re.sub(r"\\([\\*_<\[])", r"\1", first) == lead
    assert (empty, rest[0]) == ("", "| run | deviation |")
    assert (
        r"\caption{Task vector: no for a\_b: 79 \% away (-{}-record x) \& 2\textasciicircum{}3 \textasciitilde{} \{c\} "
        r"\textless{}d\textgreater{} \textbackslash{} *e* [f] \$\#. One-epoch equivalence."
    ) in files[".tex"]
    assert "Task vector" not in files[".csv"] + files[".json"]
    assert "Task vector" not in (tmp_path / "norms.md").read_text() + (tmp_path / "norms.tex").read_text()
