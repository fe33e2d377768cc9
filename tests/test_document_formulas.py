"""Formulas of the documents are LaTeX between dollar signs, which GitHub and the site render; none is left in ASCII."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.[mi]*[db]"))]
REFERENCE = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
API = re.findall(r"^::: (\S+)$", REFERENCE, re.MULTILINE)
WITH_INHERITED = re.findall(r"^::: (\S+)\n +options:\n +inherited_members: true$", REFERENCE, re.MULTILINE)

FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"\$\$.+?\$\$|\$(?!\s)[^$`]+?(?<!\s)\$", re.DOTALL)
LINK = re.compile(r"\]\([^)]*\)")
ASCII = re.compile(
    r"\|\||\\\|\\\|"  # a norm
    r"|\b(?:theta|tau|eta|kappa|rho|delta|sum|alpha)_[\w({]|\b(?:theta|tau|eta)\b"  # Greek letters and sums, spelled
    r"|\b[A-Za-z]_(?:\w|ij)\b|\b[A-Za-z]_[({]"  # a subscript
    r"|\w\^[-\w({]"  # a power
    r"|<[^<>|`\n]+, [^<>|`\n]+>"  # an inner product
    r"|\bsqrt\b"
)
CODE = re.compile(r"^ *>>> .*(?:\n *\S.*)*|^ +\w+: ", re.MULTILINE)  # examples and names of arguments
# what GitHub's Markdown takes for an escape, an emphasis or a tag before the formula is read
UNSAFE = re.compile(r"\\[,;:!{}_*<>|]|[<>*]")


def text_of(page: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".ipynb"):
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    return text


def docstrings_of(name: str) -> str:
    """What the reference page shows of a class or function: its docstring and those of the members shown there."""
    module, _, last = name.rpartition(".")
    found = getattr(importlib.import_module(module), last)
    rooms = [found] if inspect.isclass(found) else []
    if name in WITH_INHERITED:
        rooms = [one for one in inspect.getmro(found) if one.__module__.startswith("tvgrad")]
    members = [value for one in rooms for key, value in vars(one).items() if not key.startswith("_")]
    texts = [inspect.getdoc(one) for one in [found, *members] if one is found or callable(one) or _described(one)]
    return "\n\n".join(CODE.sub("", text or "") for text in texts)


def _described(value: object) -> bool:
    return isinstance(value, property | classmethod | staticmethod)


def ascii_formulas(text: str) -> list[str]:
    """The lines that hold a formula in ASCII; code in fences, formulas and the targets of links do not count."""
    plain = LINK.sub("]", FORMULA.sub("", FENCE.sub("", text)))
    return [line for line in plain.splitlines() if ASCII.search(line)]


@pytest.mark.parametrize("page", PAGES)
def test_no_formula_of_a_page_is_in_ascii(page: str) -> None:
    assert ascii_formulas(text_of(page)) == []


@pytest.mark.parametrize("name", API)
def test_no_formula_of_the_reference_is_in_ascii(name: str) -> None:
    assert ascii_formulas(docstrings_of(name)) == []


def test_inherited_members_are_read_where_the_reference_shows_them() -> None:
    assert "tvgrad.problem.objective.Objective" in WITH_INHERITED
    assert "Fisher matrix" in docstrings_of("tvgrad.problem.objective.Objective")


@pytest.mark.parametrize("page", PAGES)
def test_formulas_are_written_as_github_renders_them(page: str) -> None:
    formulas = FORMULA.findall(FENCE.sub("", re.sub(r"`[^`\n]*`", "", text_of(page))))
    assert [formula for formula in formulas if UNSAFE.search(formula)] == []
    assert [formula for formula in formulas if formula.count("{") != formula.count("}")] == []


@pytest.mark.parametrize(
    "line",
    [
        "the residual `tau_1 + lr g_0`",
        "at theta_0 it is known",
        r"| norm | `\|\|g\|\|` |",
        "the share `sum_s c`",
        "an error of 2^-24",
        "of eta^2",
        "`<g, T>` and `<w, w> / <g, w>`",
        "at most sqrt(m) times",
        "`W_ij` and `H_0`",
        "    tau_k  =  -S_k g_0",
    ],
)
def test_what_a_newcomer_could_not_read_is_found(line: str) -> None:
    assert ascii_formulas(f"words\n{line}\nwords") == [line]


def test_code_and_formulas_are_let_through() -> None:
    text = (
        "The column `frozen_share`, `lambda_low`, `run.task_vector(1)`, $\\theta_0$, $\\lVert g \\rVert^2$,\n"
        "`tests/theory/test_error_budget.py`, [a page](theta_0.md) and `git commit -m 'x'`.\n\n"
        "```python\ntheta_0 = x ** 2  # ||theta_0||\n```\n\n$$\n\\tau_k = -S_k g_0\n$$\n"
    )
    assert ascii_formulas(text) == []
