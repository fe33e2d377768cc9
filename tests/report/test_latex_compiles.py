"""Tables compile as they are printed, and no box is too wide, in one column and in two; skips without TeX."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest

from tests.traced_runs import Traced
from tvgrad.report.latex import latex_table
from tvgrad.report.tables import run_tables

LATEX = shutil.which("pdflatex")


def has(package: str) -> bool:
    found = subprocess.run(["kpsewhich", f"{package}.sty"], capture_output=True, check=False)
    return found.returncode == 0


def ten_runs(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the first run, or pair of runs, as ten runs would have them."""
    names = [f"task-{number}/seed-0" for number in range(10)]
    if "run_a" not in table:
        return pd.concat([table[table["run"] == table["run"].iloc[0]].assign(run=name) for name in names])
    of_one = table[(table["run_a"] == table["run_a"].iloc[0]) & (table["run_b"] == table["run_b"].iloc[0])]
    return pd.concat([of_one.assign(run_a=a, run_b=b) for a, b in combinations(names, 2)])


@pytest.mark.skipif(
    LATEX is None or not all(map(has, ("amsmath", "siunitx", "booktabs", "graphicx"))),
    reason="no LaTeX with siunitx is installed",
)
@pytest.mark.parametrize("columns", ["onecolumn", "twocolumn"])
def test_tables_compile_without_overfull_boxes(columns: str, traced: Traced, tmp_path: Path) -> None:
    tables = run_tables([traced("low"), traced("rotated")]).tables
    hostile = pd.DataFrame([{"run": r"50%_#&{}$\~^|<>$x$", "epoch": 1, "group": "all", "gradient_norm": 2e-9}])
    texts = [latex_table(table, name) for name, table in tables.items() if len(table)]
    many = [latex_table(ten_runs(table), name) for name, table in tables.items() if len(table)]
    assert any("Part 2 of 2." in text for text in many)
    texts += [text.replace("\\label{tab:", "\\label{tab:ten-") for text in many]
    texts.append(latex_table(hostile, "norms").replace("tab:norms", "tab:hostile"))
    packages = set(re.findall(r"^% packages: (.*)$", "\n".join(texts), re.MULTILINE))
    assert packages == {"amsmath, booktabs, siunitx, graphicx"}
    document = (
        f"\\documentclass[{columns}]{{article}}\n\\usepackage{{amsmath,booktabs,siunitx,graphicx}}\n\\begin{{document}}\n"
        + "\n".join(texts)
        + "\n\\end{document}\n"
    )
    (tmp_path / "tables.tex").write_text(document)
    command = [LATEX, "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "tables.log").read_text(errors="replace")
    assert "Overfull \\hbox" not in log
    assert "Float too large" not in log
