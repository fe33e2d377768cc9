"""Columns are defined once: the reference page, headings and captions say the same of them."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from tvgrad.report.columns import COLUMNS, FURTHER_COLUMNS, TABLES, defined
from tvgrad.report.latex import caption_of, latex_table
from tvgrad.report.page import html_page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "tables.md"


LATEX = {r"\lVert ": "||", r" \rVert": "||", r"\langle ": "<", r" \rangle": ">", r"\Delta ": "d", r"\eta": "lr"}
"""How the page writes what the definitions write in plain letters."""


def plain(text: str) -> str:
    """The page's formulas as the definitions write them: `||tau_e||` for $\\lVert \\tau_e \\rVert$."""

    def formula(found: re.Match[str]) -> str:
        words = found[1]
        for latex, letters in LATEX.items():
            words = words.replace(latex, letters)
        return "`" + re.sub(r"_\{(.+?)\}", r"_(\1)", words).replace("\\", "") + "`"

    return re.sub(r"\$([^$]+)\$", formula, text)


def rows_of(heading: str) -> list[tuple[str, str]]:
    """Columns and their definitions in the reference page's section of that heading."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (text,) = [part for part in sections if part.startswith(f"{heading}\n")]
    rows = re.findall(r"^\| (\w+) \| (.*) \|$", text, flags=re.MULTILINE)
    return [(name, plain(meaning)) for name, meaning in rows if name != "column"]


@pytest.mark.parametrize("name", TABLES)
def test_the_reference_page_says_what_the_columns_are(name: str) -> None:
    assert rows_of(name) == [(column.name, column.meaning) for column in defined(name, COLUMNS[name])]
    further = [(column.name, column.meaning) for column in defined(name, FURTHER_COLUMNS[name])]
    elsewhere = rows_of("Two runs: `tvgrad relate RUN RUN`" if name == "cross_task" else "Checkpoints without a run")
    assert set(further) <= set(elsewhere)
    words = plain(" ".join(PAGE.read_text(encoding="utf-8").split()))
    assert f"{TABLES[name].symbols}." in words
    assert TABLES[name].note in words


def test_every_table_has_a_column_that_is_defined_and_no_name_twice() -> None:
    for name in TABLES:
        columns = COLUMNS[name] + FURTHER_COLUMNS[name]
        assert len(set(columns)) == len(columns)
        known = {column.name for column in defined(name, columns)}
        assert set(columns) - known <= {"run", "run_a", "run_b", "epoch", "group"}


@pytest.mark.parametrize("name", TABLES)
def test_captions_define_every_heading(name: str) -> None:
    columns = [*COLUMNS[name], *FURTHER_COLUMNS[name]]
    plain = re.sub(r"\$[^$]*\$", "", caption_of(name, columns))
    assert not re.search(r"[_%#&^`|<>]", plain)
    table = pd.DataFrame([dict.fromkeys(columns, 1.0) | {"run": "a", "group": "all"}])
    page = html_page({"norms": table, name: table}, [], [], "t", "l")
    caption = re.findall(r'<p class="caption">(.*)</p>', page)[name != "norms"]
    for column in defined(name, columns):
        assert f"{column.name.replace('_', ' ')}: ".lower() in caption.lower()
    assert not re.search(r"[`]|\|\||(tau|theta|delta)_", caption)


def test_words_that_look_like_symbols_stay_words() -> None:
    table = pd.DataFrame([{"run": "a", "epoch": 1, "error_norm": 1.0}])
    page = html_page({"norms": table, "second_order": table}, [], [], "t", "l")
    assert "with the product of that gradient and the Hessian there" in page


def test_a_caption_defines_what_is_shown_alone() -> None:
    assert "Batch share: " in caption_of("norms", COLUMNS["norms"])
    assert "Batch share: " not in caption_of("norms", ["run", "gradient_norm"])


def test_headings_are_formulas() -> None:
    row = {"run": "a", "gradient_norm": 1.0, "gradient_norm_share": 0.5}
    assert r"{run} & {$\lVert g_e \rVert$} & {share} \\" in latex_table(pd.DataFrame([row]), "norms")
    row = {"run": "a", "cos_successive_displacements": 1.0, "relative_residual": 0.5, "cos_task_vector_mean": 0.1}
    headings = (
        r"$\cos(\delta_e, \delta_{e-1})$",
        r"$\lVert \tau_e^\perp \rVert / \lVert \tau_e \rVert$",
        r"$\cos(\tau, \bar \tau)$",
    )
    assert " & ".join(f"{{{heading}}}" for heading in headings) in latex_table(pd.DataFrame([row]), "directions")


def test_the_runs_of_a_pair_are_headed_as_the_caption_calls_them() -> None:
    pair = pd.DataFrame([{"run_a": "low", "run_b": "high", "epoch": 1, "group": "all", "cos_task_vectors": 0.25}])
    text = latex_table(pair, "cross_task")
    assert "{$a$} & {$b$} & " in text
    assert "$a$ and $b$: the two runs" in text
    assert r"run\_a" not in text
