"""The reference page states the constants that the library uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvgrad.bounds import activation_of
from tvgrad.bounds.activations.smooth import NAMED

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "bounds.md").read_text(encoding="utf-8")


def rows() -> dict[str, list[float]]:
    start = PAGE.index("| activation | b1")
    lines = PAGE[start : PAGE.index("\n\n", start)].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: [float(number) for number in numbers] for name, *numbers in cells}


@pytest.mark.parametrize("name", list(NAMED))
def test_the_page_has_the_constants_of_the_library(name: str) -> None:
    one = activation_of(name, order=2)
    known = [one.b1, one.b2, one.b3, one.b4, one.supremum, one.at_zero]
    assert rows()[name] == pytest.approx(known, rel=1e-12)  # some are products, rounded up
