"""The page on trust names a test for each fault or input, and each of these is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/concepts/trust.md").read_text(encoding="utf-8")


def test_each_line_of_the_table_names_tests_that_are_there() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(lines) > 20
    for line in lines:
        fault, answer, tests = (cell.strip() for cell in line.strip("|").split("|"))
        assert fault
        assert answer
        paths = re.findall(r"`(tests/[^`]*\.py)`", tests)
        assert paths, line
        for path in paths:
            assert re.search(r"^\s*def test_", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), path
