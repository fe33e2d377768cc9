"""The examples in the docstrings of the public classes and functions: each runs as it is written."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest

import tvgrad
from tvgrad import bounds, merging, update_rules

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

FORMER_NAMES = {"tvgrad.bounds.multitask_gap"}
"""They warn and call what is public now, which has an example."""


def public() -> dict[str, Any]:
    """Dotted name -> class or function; exceptions are left out, because they are caught and not called."""
    places = {"tvgrad": tvgrad, "tvgrad.bounds": bounds, "tvgrad.merging": merging, "tvgrad.update_rules": update_rules}
    found = {f"{place}.{name}": getattr(module, name) for place, module in places.items() for name in module.__all__}
    return {
        name: value
        for name, value in found.items()
        if (inspect.isclass(value) and not issubclass(value, Exception)) or inspect.isfunction(value)
    }


def examples(name: str) -> list[doctest.DocTest]:
    """The examples of a class with its methods, or of a function: each docstring imports what it uses."""
    found = doctest.DocTestFinder().find(public()[name], name, globs={})
    return [test for test in found if test.examples]


def failures(tests: list[doctest.DocTest]) -> str:
    """What the examples print where they should print something else; nothing where all are right."""
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    for test in tests:
        runner.run(test, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("name", [name for name in public() if examples(name)])
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert failures(examples(name)) == ""


def test_every_public_name_has_an_example() -> None:
    assert {name for name in public() if not examples(name)} == FORMER_NAMES


def test_an_example_that_is_wrong_fails() -> None:
    def doubled(number: int) -> int:
        """Double it.

        >>> 2 * 2
        5
        """
        return 2 * number

    (test,) = doctest.DocTestFinder().find(doubled, "doubled", globs={})
    assert "Expected:\n    5\nGot:\n    4" in failures([test])
