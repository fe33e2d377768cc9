"""Tables for a paper: LaTeX with booktabs rules, and captions that define every symbol."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from tvgrad.parameters import ALL

__all__ = ["CAPTIONS", "HEADINGS", "latex_table"]

HEADINGS = {
    "gradient_norm": r"$\lVert g_e \rVert$",
    "task_vector_norm": r"$\lVert \tau_e \rVert$",
    "displacement_norm": r"$\lVert \theta_e - \theta_{e-1} \rVert$",
    "gradient_norm_share": r"$\lVert g_e \rVert / \sum_k \lVert g_k \rVert$",
    "mean_batch_gradient_norm": r"mean batch $\lVert g \rVert$",
    "cos_task_vector_descent": r"$\cos(\tau_e, -g_0)$",
    "cos_gradient_first": r"$\cos(g_e, g_0)$",
    "cos_task_vector_first": r"$\cos(\tau_e, \tau_1)$",
    "cos_successive_displacements": r"$\cos(\delta_e, \delta_{e-1})$",
    "relative_residual": r"$\lVert \tau_e^\perp \rVert / \lVert \tau_e \rVert$",
    "cos_task_vectors": r"$\cos(\tau_e^a, \tau_e^b)$",
    "cos_gradients": r"$\cos(g_e^a, g_e^b)$",
    "sign_agreement": "sign agreement",
    "worst_ratio_to_budget": "worst / budget",
    "frozen_share": "frozen",
    "gradient_relative_error": r"$\lVert \hat g - g_0 \rVert / \lVert g_0 \rVert$",
}
"""Column -> its heading, where that is a formula."""

_SYMBOLS = (
    r"$\theta_e$: weights after $e$ epochs, $\tau_e = \theta_e - \theta_0$: task vector, $g_e$: full-batch gradient at "
    r"$\theta_e$"
)
CAPTIONS = {
    "norms": f"Norms over epochs. {_SYMBOLS}; the share is over epochs $0$ to $K-1$, $K$ the last.",
    "directions": (
        f"Directions over epochs. {_SYMBOLS}; $\\delta_e = \\theta_e - \\theta_{{e-1}}$; $\\tau_e^\\perp$: what is "
        r"left of $\tau_e$ after its projection on $-g_0$."
    ),
    "equivalence": (
        r"One-epoch equivalence. Worst / budget: largest deviation of a coordinate from the formula over the bound on "
        r"its rounding; at most 1 when exact. Frozen: share of the coordinates with a gradient that the step left "
        r"unchanged. $\hat g$: gradient that the optimizer consumed, $g_0$: full-batch gradient at $\theta_0$."
    ),
    "cross_task": f"Tasks $a$ and $b$ compared. {_SYMBOLS}; sign agreement: of the coordinates where neither is 0.",
    "second_order": (
        r"Second-order error. error: norm of $\tau_k + S_k g_0$, measured; predicted: its norm from one "
        r"Hessian-vector product, an estimate; residuals: what each prediction leaves; bound: an upper bound, where "
        r"one exists."
    ),
    "error_budget": (
        r"Error budget of $\tau$ against $-S g_0$, term by term; the rows add up to the residual. Shares sum to one, "
        r"may be negative, and depend on the order of the terms."
    ),
}
"""Table -> caption."""

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def latex_table(table: pd.DataFrame, name: str) -> str:
    """Render a table as LaTeX that goes straight into a paper (package booktabs).

    Args:
        table: the table; where it has groups, the rows of the whole model are printed.
        name: the table's name, for caption and label.

    Returns:
        A `table` environment.
    """
    shown = table
    if "group" in shown:
        shown = shown[shown["group"] == ALL].drop(columns="group")
    numeric = [pd.api.types.is_numeric_dtype(shown[column]) for column in shown]
    styled = shown.rename(columns={column: HEADINGS.get(str(column), escaped(str(column))) for column in shown}).style
    styled = styled.hide(axis="index").format(_cell)
    return str(
        styled.to_latex(
            hrules=True,
            position="t",
            position_float="centering",
            column_format="".join("r" if right else "l" for right in numeric),
            caption=CAPTIONS.get(name, escaped(name)),
            label=f"tab:{name.replace('_', '-')}",
        )
    )


def escaped(text: str) -> str:
    """Make any text safe for LaTeX.

    Args:
        text: the text.

    Returns:
        It, with special characters escaped.
    """
    return "".join(_SPECIAL.get(sign, sign) for sign in str(text))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        if math.isinf(value):
            return r"$\infty$" if value > 0 else r"$-\infty$"
        if value and not 1e-3 <= abs(value) < 1e5:
            mantissa, exponent = f"{value:.2e}".split("e")
            return rf"${mantissa} \times 10^{{{int(exponent)}}}$"
        return f"{value:.4g}"
    return escaped(value)
