"""Headings for people: signs in the place of formulas, never an identifier."""

from __future__ import annotations

import pytest

from tvgrad.report.columns import TABLES
from tvgrad.report.headings import heading, in_words, signs, with_symbols


@pytest.mark.parametrize(
    ("formula", "signed"),
    [
        ("`cos(tau_e, -g_0)`", "cos(τₑ, −g₀)"),  # noqa: RUF001
        ("`||delta_e||`", "‖δₑ‖"),
        ("`cos(delta_e, delta_(e-1))`", "cos(δₑ, δₑ₋₁)"),
        ("`||hat g - g_0|| / ||g_0||`", "‖ĝ − g₀‖ / ‖g₀‖"),  # noqa: RUF001
        ("`cos(tau_e^a, tau_e^b)`", "cos(τₑᵃ, τₑᵇ)"),
        ("the mini-batch of one_name", "the mini-batch of one_name"),
    ],
)
def test_formulas_become_signs(formula: str, signed: str) -> None:
    assert signs(formula) == signed


@pytest.mark.parametrize("name", TABLES)
def test_no_heading_is_an_identifier_and_no_two_are_alike(name: str) -> None:
    columns = [column.name for column in (*TABLES[name].columns, *TABLES[name].further)]
    found = [heading(column, name) for column in columns]
    assert not any("_" in one or "`" in one for one in found)
    assert len(set(found)) == len(found)
    assert max(map(len, found)) <= 20


def test_words_are_escaped_and_commands_are_code() -> None:
    assert in_words("<b> & `tvgrad explain RUN` of `g_0`") == "&lt;b&gt; &amp; <code>tvgrad explain RUN</code> of g₀"
    assert with_symbols("tau + kappa S_k <") == "τ + κ <i>S</i><sub>k</sub> &lt;"
