"""Tables for a paper: LaTeX with booktabs rules, and captions that define every symbol."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from functools import partial
from typing import Any

import pandas as pd

from tvgrad.report.columns import TABLES, Column, defined, sentences
from tvgrad.report.empty_columns import COMPUTED_BY, without_empty_columns
from tvgrad.report.first_epochs import even_shares
from tvgrad.vectors.parameters import ALL
from tvgrad.wording import listed, printed

TOO_WIDE = ("reason", "cause", "trouble", "nodes", "predicted_norm_order2")
"""Columns for which a page has no room: sentences, names of nodes, and the second of two estimates of one norm."""
MOST_ROWS = 40
"""Rows that a page holds beside its caption."""

_OUTSIDE_ASCII_FONTS = str.maketrans({"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"})
"""What pandas does not escape, and TeX's oldest font encoding prints as other signs."""


def latex_table(table: pd.DataFrame, name: str, lead: str = "") -> str:
    """Render a table as LaTeX that goes straight into a paper (packages amsmath, booktabs, siunitx and graphicx).

    Args:
        table: the table; where it has groups, the rows of the whole model are printed, and of many epochs the first
            and the last.
        name: the table's name, for caption and label.
        lead: plain text that opens the caption.

    Returns:
        A `table` environment, `table*` where one of two columns is too narrow; several under one number where the last
        epoch alone has more rows than a page; a comment where there are no rows.
    """
    shown = table
    if "group" in shown:
        shown = shown[shown["group"] == ALL].drop(columns="group")
    if not len(shown):
        return f"% {name} has no rows{f': {COMPUTED_BY[name]} makes them' if name in COMPUTED_BY else ''}\n"
    shown, zeros = _without_zeros(shown)
    shown, kept = _chosen_epochs(without_empty_columns(shown))
    kept += zeros
    wide = [column for column in TOO_WIDE if column in shown]
    shown = shown.drop(columns=wide)
    even = even_shares(table) if name == "norms" else ""
    caption = (
        (f"{escaped(lead)} " if lead else "")
        + caption_of(name, list(shown))
        + (f" {_formulas(even)}." if even else "")
        + kept
    )
    if wide:
        caption += f" Not shown: {listed([column.replace('_', ' ') for column in wide])}."
    headings = OF_PAIRS | {column.name: latex_heading(column) for column in defined(name, list(shown))}
    environment = "table*" if _needs_both_columns(shown, headings, caption) else "table"
    alignment = "".join(_alignment(shown, column) for column in shown)
    label = f"tab:{name.replace('_', '-')}"
    parts = -(-len(shown) // MOST_ROWS)
    floats = []
    for part in range(parts):
        rows = shown.iloc[part * len(shown) // parts : (part + 1) * len(shown) // parts]
        # What a page does not hold is the same table again: it keeps its number, and stays out of the list of tables.
        heads = {"caption": caption, "label": label} if part == 0 else {"caption": (f"Part {part + 1} of {parts}.", "")}
        text = _float(rows, headings, column_format=alignment, environment=environment, **heads)
        floats.append(text if part == 0 else text.replace("\\caption", f"{SAME_NUMBER}\n\\caption", 1))
    return f"{PACKAGES}\n{''.join(floats)}"


def _float(rows: pd.DataFrame, headings: dict[str, str], **options: Any) -> str:
    """Rows as a table that floats, scaled to its column where it is wider."""
    # latex-math leaves formulas alone; a name in a cell must not be able to start one
    cells: dict[Any, Any] = {headings.get(str(column), column): partial(_cell, column=column) for column in rows}
    styled = rows.rename(columns=headings).style.hide(axis="index").format(cells, escape="latex")
    headed = styled.format_index(axis="columns", escape="latex-math")
    text = str(headed.to_latex(hrules=True, siunitx=True, position="t", position_float="centering", **options))
    text = _ruled(text, rows).replace("\\centering\n", f"\\centering\n{SMALL}", 1)
    begin, end = text.index("\\begin{tabular}"), text.index("\\end{tabular}") + len("\\end{tabular}")
    return f"{text[:begin]}{FITTED.format(text[begin:end])}{text[end:]}"


def _needs_both_columns(table: pd.DataFrame, headings: dict[str, str], caption: str) -> bool:
    """Tell whether one of two columns is too narrow for the rows, or too short for them and the caption."""
    widths = [
        max(
            _letters(text)
            for text in [headings.get(str(column), str(column)), *(_cell(cell, column) for cell in cells)]
        )
        for column in table
        for cells in [table[column].tolist()]
    ]
    parts = -(-len(table) // MOST_ROWS)
    lines = len(table) / parts + 1.2 * _letters(caption) / CAPTION_LETTERS
    return sum(widths) + 1.5 * len(widths) > COLUMN_LETTERS or lines > COLUMN_LINES


def _letters(text: str) -> int:
    """About how many letters LaTeX prints, where a command is one."""
    return len(re.sub(r"[${}_^]", "", re.sub(r"\\[a-zA-Z]+", "x", text)))


OF_PAIRS = {"run_a": "$a$", "run_b": "$b$"}
"""Headings of the two runs of a pair, which captions call `a` and `b`."""
PACKAGES = "% packages: amsmath, booktabs, siunitx, graphicx"
SAME_NUMBER = r"\addtocounter{table}{-1}"
SMALL = "\\footnotesize\n\\setlength{\\tabcolsep}{3pt}\n"
COLUMN_LETTERS, COLUMN_LINES, CAPTION_LETTERS = 58, 42, 45
"""Letters and rows of that size in one of two columns, and letters in a line of a caption there: a table with more
reaches over both, as `table*` does."""
FITTED = "\\sbox0{{{}}}\n\\ifdim\\wd0>\\linewidth \\resizebox{{\\linewidth}}{{!}}{{\\usebox0}}\\else\\usebox0\\fi"
"""A table that is wider than its column is scaled to it, and no other."""


def _without_zeros(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Leave out rows in which every number is zero, or nothing, and say so."""
    numbers = [column for column in table if pd.api.types.is_float_dtype(table[column])]
    kept = table[(table[numbers].fillna(0.0) != 0).any(axis="columns")] if numbers else table
    if len(kept) == len(table) or kept.empty:
        return table, ""
    return kept, " Rows of zeros are left out."


def _alignment(table: pd.DataFrame, column: object) -> str:
    """Words to the left; numbers at their decimal sign, with as many digits before and after it as there are."""
    if not pd.api.types.is_numeric_dtype(table[column]):
        return "l"
    found = [_NUMBER.match(_cell(value, column)) for value in table[column].tolist()]
    numbers = [one for one in found if one]
    if not numbers:
        return "c"
    sign = "-" if any(one[1] for one in numbers) else ""
    before, after = (max(len(one[group] or "") for one in numbers) for group in (2, 3))
    form = f"{sign}{before}.{after}"
    powers = [one for one in numbers if one[5]]
    if powers:
        form += f"e{'-' if any(one[4] for one in powers) else ''}{max(len(one[5]) for one in powers)}"
    return f"S[table-format={form}]"


_NUMBER = re.compile(r"(-?)(\d+)(?:\.(\d+))?(?:e(-?)(\d+))?$")


def _ruled(text: str, table: pd.DataFrame) -> str:
    """Put a thin rule between runs that have several rows each."""
    runs = table["run"].tolist() if "run" in table else []
    if len(set(runs)) < 2 or len(set(runs)) == len(runs):
        return text
    head, middle, body = text.rpartition("\\midrule\n")
    lines = body.split("\n")
    ruled = [f"{line}\n\\midrule" if place + 1 < len(runs) and runs[place] != runs[place + 1] else line
             for place, line in enumerate(lines)]  # fmt: skip
    return head + middle + "\n".join(ruled)


def escaped(text: str) -> str:
    """Escape plain text for LaTeX, so that it prints as it is.

    Args:
        text: any text; backquotes round commands are left out.

    Returns:
        LaTeX.
    """
    special: dict[str, str | int | None] = {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "`": ""}
    plain = text.translate(str.maketrans(special)).translate(_OUTSIDE_ASCII_FONTS)
    return plain.replace("--", "-{}-")  # or two hyphens print as a dash


def caption_of(name: str, shown: Collection[object]) -> str:
    """Write the caption of a table: its title, its symbols, and what the headings mean that are no formulas.

    Args:
        name: the table's name.
        shown: names of the columns that are shown.

    Returns:
        LaTeX.
    """
    if name not in TABLES:
        return f"{name.replace('_', ' ').capitalize()}."
    text = TABLES[name]
    meanings = [f"{_words_of(column)}: {column.meaning}" for column in defined(name, shown) if not column.is_formula]
    return _formulas(sentences(text.title, text.symbols, *meanings, text.note))


def latex_heading(column: Column) -> str:
    """Head a column in print.

    Args:
        column: its definition.

    Returns:
        A formula between dollar signs, or words.
    """
    return _formulas(_words_of(column))


def _words_of(column: Column) -> str:
    return column.heading or (column.meaning if column.is_formula else column.name.replace("_", " "))


def _formulas(text: str) -> str:
    """The formulas between backquotes as LaTeX."""
    return re.sub(r"`([^`]+)`", lambda found: f"${_math(found[1])}$", text)


def _math(formula: str) -> str:
    formula = re.sub(r"\|\|(.+?)\|\|", r"\\lVert \1 \\rVert", formula)
    formula = re.sub(r"(?<![a-z])(tau|theta|delta|kappa|cos|hat|bar|perp)(?![a-z])", r"\\\1", formula)
    return re.sub(r"_\((.+?)\)", r"_{\1}", formula)


def _chosen_epochs(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """As many epochs as a page holds, and the words that say which."""
    if "epoch" not in table or len(table) <= MOST_ROWS:
        return table, ""
    of_one = [column for column in ("run", "run_a", "run_b") if column in table]
    last = table["epoch"] == table.groupby(of_one)["epoch"].transform("max")
    for early, words in (((0, 1), "0, 1 and the last"), ((1,), "1 and the last")):
        chosen = table[last | table["epoch"].isin(early)]
        if len(chosen) <= MOST_ROWS:
            return chosen, f" Epochs shown: {words}."
    return table[last], " Epoch shown: the last."


def _cell(value: Any, column: object) -> str:
    """A number as a page shows it; words come escaped."""
    if not isinstance(value, float):
        text = str(value).translate(_OUTSIDE_ASCII_FONTS)
        # At the start of a row, these would be arguments of the end of the row before.
        return f"{{}}{text}" if text.lstrip().startswith(("[", "*")) else text
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return r"{$\infty$}" if value > 0 else r"{$-\infty$}"
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{float(printed(value, column, 3)):.2e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return printed(value, column, 4)
