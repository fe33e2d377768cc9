"""Run a notebook's cells without Jupyter, and put what they show back into the file.

`python -m tests.notebooks docs/how-to/bounds.ipynb` runs all cells in a folder of their own and rewrites the outputs.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl

__all__ = ["run_notebook"]


def run_notebook(path: Path) -> dict[str, Any]:
    """Run the code cells from top to bottom, in the present folder.

    Args:
        path: the notebook.

    Returns:
        Its content, with the outputs of this run: printed text, the last expression's text, and new PNG files.
    """
    mpl.use("Agg")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__notebook__"}
    for number, cell in enumerate(cell for cell in content["cells"] if cell["cell_type"] == "code"):
        before, printed = set(Path().glob("*.png")), io.StringIO()
        tree = ast.parse("".join(cell["source"]), f"<cell {number}>")
        value = None
        with contextlib.redirect_stdout(printed):
            if tree.body and isinstance(tree.body[-1], ast.Expr):
                last = ast.Expression(tree.body.pop().value)
                exec(compile(tree, f"<cell {number}>", "exec"), names)
                value = eval(compile(last, f"<cell {number}>", "eval"), names)
            else:
                exec(compile(tree, f"<cell {number}>", "exec"), names)
        cell["execution_count"] = number + 1
        cell["outputs"] = [*_printed(printed.getvalue()), *_shown(value, number + 1)]
        for picture in sorted(set(Path().glob("*.png")) - before):
            data = base64.b64encode(picture.read_bytes()).decode()
            cell["outputs"].append({"output_type": "display_data", "metadata": {}, "data": {"image/png": data}})
    return content


def _printed(text: str) -> list[dict[str, Any]]:
    return [{"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}] if text else []


def _shown(value: object, number: int) -> list[dict[str, Any]]:
    if value is None:
        return []
    data = {"text/plain": str(value).splitlines(keepends=True)}
    return [{"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data}]


def main() -> None:
    """Run and rewrite the notebooks named on the command line."""
    for name in sys.argv[1:]:
        path = Path(name).resolve()
        here = Path.cwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            content = run_notebook(path)
            os.chdir(here)
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
