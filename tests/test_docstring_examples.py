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

WITHOUT_EXAMPLE = {
    "tvgrad.Run",
    "tvgrad.check_one_epoch",
    "tvgrad.error_budget",
    "tvgrad.multitask_gap",
    "tvgrad.predict",
    "tvgrad.bounds.Activation",
    "tvgrad.bounds.DerivativeBounds",
    "tvgrad.bounds.Form",
    "tvgrad.bounds.GapCertificate",
    "tvgrad.bounds.Loss",
    "tvgrad.bounds.SpectralNorm",
    "tvgrad.bounds.UniformBounds",
    "tvgrad.bounds.activation_of",
    "tvgrad.bounds.loss_of",
    "tvgrad.bounds.multitask_gap",
    "tvgrad.bounds.register_activation",
    "tvgrad.bounds.spectral_norm",
    "tvgrad.merging.Method",
    "tvgrad.update_rules.Adam",
    "tvgrad.update_rules.AdamW",
    "tvgrad.update_rules.GD",
    "tvgrad.update_rules.LinearRule",
    "tvgrad.update_rules.Momentum",
    "tvgrad.update_rules.Nesterov",
    "tvgrad.update_rules.SGD",
    "tvgrad.update_rules.UpdateRule",
    "tvgrad.update_rules.linear_rule",
    "tvgrad.update_rules.make_rule",
    "tvgrad.update_rules.rule_from_dict",
    "tvgrad.update_rules.rule_from_optimizer",
}


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
    assert {name for name in public() if not examples(name)} <= WITHOUT_EXAMPLE


def test_an_example_that_is_wrong_fails() -> None:
    def doubled(number: int) -> int:
        """Double it.

        >>> 2 * 2
        5
        """
        return 2 * number

    (test,) = doctest.DocTestFinder().find(doubled, "doubled", globs={})
    assert "Expected:\n    5\nGot:\n    4" in failures([test])
