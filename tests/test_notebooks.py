"""The notebooks of the docs run, and show what they say they show."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.notebooks import run_notebook

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.ipynb"))


def words_and_numbers(cell: dict[str, Any]) -> tuple[list[str], list[float]]:
    text = "".join("".join(output.get("text", [])) for output in cell["outputs"])
    numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text)
    return re.findall(r"[a-zA-Z_]{3,}", text), [float(number) for number in numbers]


def test_there_is_a_notebook_of_bounds() -> None:
    assert "how-to/bounds.ipynb" in NOTEBOOKS


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_run_and_show_what_the_file_shows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = json.loads((DOCS / name).read_text(encoding="utf-8"))
    made = run_notebook(DOCS / name)
    for number, (old, new) in enumerate(zip(kept["cells"], made["cells"], strict=True)):
        if old["cell_type"] != "code":
            continue
        kinds = [[output["output_type"] for output in cell["outputs"]] for cell in (old, new)]
        assert kinds[0] == kinds[1], f"cell {number}: run `python -m tests.notebooks docs/{name}` again"
        (old_words, old_numbers), (new_words, new_numbers) = words_and_numbers(old), words_and_numbers(new)
        assert old_words == new_words
        assert old_numbers == pytest.approx(new_numbers, rel=0.02, abs=1e-9)


def test_a_cell_that_fails_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cell = {"cell_type": "code", "source": ["x = 1\n", "assert x == 2"], "outputs": [], "execution_count": None}
    shown = {"cell_type": "code", "source": ["print('a')\n", "6 * 7"], "outputs": [], "execution_count": None}
    (tmp_path / "good.ipynb").write_text(json.dumps({"cells": [shown]}))
    (tmp_path / "bad.ipynb").write_text(json.dumps({"cells": [shown, cell]}))
    outputs = run_notebook(tmp_path / "good.ipynb")["cells"][0]["outputs"]
    assert [output.get("text") or output["data"] for output in outputs] == [["a\n"], {"text/plain": ["42"]}]
    with pytest.raises(AssertionError):
        run_notebook(tmp_path / "bad.ipynb")
