"""Headings for people: formulas of `tvgrad.report.columns` as signs, for the terminal, and as HTML, for the page."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from tvgrad.report.columns import TABLES, Column

_GREEK = {"tau": "τ", "theta": "θ", "delta": "δ", "kappa": "κ"}
_LOWERED = dict(zip("0123456789+-=()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ", strict=True))
_RAISED = {"a": "ᵃ", "b": "ᵇ", "perp": "⊥"}
_INDEX = r"(?:\((?P<long>[^)]+)\)|(?P<short>\w))"

SHORT = {
    "error_bound": "error ≤",
    "lower_bound": "error ≥",
    "from_start": "≤ from θ₀ alone",
    "closed_form_bound": "closed form ≤",
    "first_order_norm": "‖S g₀‖",
    "task_vector_norm_a": "‖τᵃ‖",
    "task_vector_norm_b": "‖τᵇ‖",
    "single_task": "single task",
    "merged_low": "merged, low",
    "merged_high": "merged, high",
    "run_a": "run a",
    "run_b": "run b",
    "relative_residual": "across",
    "worst_ratio_to_budget": "worst / bound",
    "frozen_share": "unchanged",
    "gradient_relative_error": "‖ĝ − g₀‖ / ‖g₀‖",
    "gradient_norm_share": "share",
    "epoch_gradient_norm_share": "share of Gₑ",
    "mean_batch_gradient_norm_share": "batch share",
    "gradient_holds": "gradient",
    "holds": "step",
    "deviation": "deviation",
    "sign_agreement": "equal signs",
    "weight_change_norm": "‖ΔW‖",
    "interference_on_a": "harm to a",
    "interference_on_b": "harm to b",
    "cos_weight_space": "cos(ΔW)",
    "gradient_error_bar": "± of gₑ",
    "residual_order1": "order 1 off",
    "residual_order2": "order 2 off",
    "residual_quadratic": "quadratic off",
    "error_norm": "error",
    "predicted_norm": "predicted",
    "predicted_norm_order2": "predicted, order 2",
}
"""Column -> a heading that is shorter than its formula or its words."""

LABELS = {
    "run": "run", "epoch": "epoch", "group": "group", "term": "term", "norm": "norm", "share": "share", "cosine":
    "cosine", "bound": "bound", "nodes": "nodes", "rule": "form", "reason": "reason", "cause": "cause",
    "trouble": "trouble",
}  # fmt: skip


def signs(formula: str) -> str:
    """Write the formulas of a text with the signs that Unicode has: `cos(tau_e, -g_0)` as cos(τₑ, −g₀).

    Args:
        formula: text with formulas as `tvgrad.report.columns` writes them; backquotes are left out.

    Returns:
        The text.
    """
    text = formula.replace("`", "").replace("||", "‖").replace("hat g", "ĝ")
    text = re.sub(r"\bbar (\w+)", lambda found: f"{_greek(found[1])[0]}\u0304{_greek(found[1])[1:]}", text)
    text = re.sub(r"(?<![a-zA-Z])(tau|theta|delta|kappa)(?![a-z])", lambda found: _GREEK[found[1]], text)
    text = re.sub(rf"(?<=[\w\u0304])_{_INDEX}(?![a-z]\w)", _lowered, text)
    text = re.sub(r"\^(perp|[ab])(?!\w)", lambda found: _RAISED[found[1]], text)
    return re.sub(r"(?<![\w₀-₉)])-(?=[<gGτ])|(?<= )-(?= )", "−", text)  # noqa: RUF001 - a minus is meant


def _greek(word: str) -> str:
    return _GREEK.get(word.split("_")[0], word.split("_")[0]) + (word[word.index("_") :] if "_" in word else "")


def _lowered(found: re.Match[str]) -> str:
    index = found["long"] or found["short"]
    return "".join(_LOWERED[sign] for sign in index) if all(sign in _LOWERED for sign in index) else found[0]


def heading(name: str, table: str = "") -> str:
    """Name a column for people: a formula in signs or a few words, never an identifier.

    Args:
        name: the column's name, as in CSV files.
        table: the table, where it is one of a report.

    Returns:
        The heading.
    """
    if name in SHORT or name in LABELS:
        return SHORT.get(name) or LABELS[name]
    column = column_of(name, table)
    if column is not None:
        formula = column.heading or (column.meaning if column.is_formula else "")
        if formula:
            return signs(formula)
    return name.replace("_", " ")


def column_of(name: str, table: str = "") -> Column | None:
    """Find the definition of a column.

    Args:
        name: its name.
        table: the table; empty looks in all.

    Returns:
        Its definition, or None.
    """
    for one in [TABLES[table]] if table in TABLES else TABLES.values():
        for column in (*one.columns, *one.further):
            if column.name == name:
                return column
    return None


def with_symbols(text: str) -> Markup:
    """Escape a text for HTML, and set its formulas: g_0, tau_e and their like as symbols, `||` as the bar of a norm.

    Args:
        text: any text.

    Returns:
        HTML.
    """
    plain = re.sub(r"\bhat g\b", "ĝ", str(escape(text)).replace("`", "").replace("||", "‖"))
    plain = re.sub(r"\b(kappa|tau|theta)\b(?!_)", lambda one: _GREEK[one[1]], plain)
    found = re.sub(
        r"\b(g|G|tau|theta|delta|S)_(\w+|\(.+?\))(?:\^(\w))?(?!\w)",
        lambda match: (
            f"<i>{_GREEK.get(match[1], match[1])}</i><sub>{match[2].strip('()')}</sub>"
            + (f"<sup>{match[3]}</sup>" if match[3] else "")
        ),
        plain,
    )
    return Markup(found)  # noqa: S704 - escaped above


def in_words(text: str) -> Markup:
    """Escape a sentence for HTML: commands between backquotes become code, formulas get their signs.

    Args:
        text: a sentence.

    Returns:
        HTML.
    """
    pieces = re.split(r"(`(?:tvgrad|--)[^`]*`)", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(piece.strip("`")) if place % 2 else signs(piece)
        for place, piece in enumerate(pieces)
    )
