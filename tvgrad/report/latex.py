"""Tables for a paper: LaTeX with booktabs rules, and captions that define every symbol."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from tvgrad.report.empty_columns import COMPUTED_BY, without_empty_columns
from tvgrad.vectors.parameters import ALL

TOO_WIDE = ("reason", "nodes", "predicted_norm_order2")
"""Columns for which a page has no room: sentences, names of nodes, and the second of two estimates of one norm."""
MOST_ROWS = 40
"""Rows that a page holds beside its caption."""

HEADINGS = {
    "gradient_norm": r"$\lVert g_e \rVert$",
    "task_vector_norm": r"$\lVert \tau_e \rVert$",
    "displacement_norm": r"$\lVert \delta_e \rVert$",
    "gradient_norm_share": "share",
    "mean_batch_gradient_norm": r"$\bar b_e$",
    "mean_batch_gradient_norm_share": "batch share",
    "cos_task_vector_descent": r"$\cos(\tau_e, -g_0)$",
    "cos_gradient_first": r"$\cos(g_e, g_0)$",
    "cos_task_vector_first": r"$\cos(\tau_e, \tau_1)$",
    "cos_successive_displacements": r"$\cos(\delta_e, \delta_{e-1})$",
    "relative_residual": r"$\lVert \tau_e^\perp \rVert / \lVert \tau_e \rVert$",
    "cos_task_vectors": r"$\cos(\tau_e^a, \tau_e^b)$",
    "cos_gradients": r"$\cos(g_e^a, g_e^b)$",
    "sign_agreement": "sign agreement",
    "pretrained_norm": r"$\lVert \theta_0 \rVert$",
    "relative_norm": r"$\lVert \tau \rVert / \lVert \theta_0 \rVert$",
    "cos_task_vector_pretrained": r"$\cos(\tau, \theta_0)$",
    "cos_task_vector_mean": r"$\cos(\tau, \bar\tau)$",
    "worst_ratio_to_budget": "worst / budget",
    "frozen_share": "frozen",
    "error_norm": "error",
    "predicted_norm": "predicted",
    "residual_order1": "order 1",
    "residual_order2": "order 2",
    "residual_quadratic": "quadratic",
    "gradient_relative_error": r"$\lVert \hat g - g_0 \rVert / \lVert g_0 \rVert$",
}
"""Column -> its heading, where that is a formula."""

_SYMBOLS = (
    r"$\theta_e$: weights after $e$ epochs, $\tau_e = \theta_e - \theta_0$: task vector, $g_e$: full-batch gradient at "
    r"$\theta_e$"
)
CAPTIONS = {
    "norms": (
        f"Norms over epochs. {_SYMBOLS}; $\\delta_e = \\theta_e - \\theta_{{e-1}}$; share: of $\\lVert g_e \\rVert$ in "
        r"its sum over epochs $0$ to $K-1$, $K$ the last; $\bar b_e$: mean norm of the gradients that the steps of the "
        r"epoch beginning at $\theta_e$ consumed, and its share likewise, where recorded."
    ),
    "directions": (
        f"Directions over epochs. {_SYMBOLS}; $\\delta_e = \\theta_e - \\theta_{{e-1}}$; $\\tau_e^\\perp$: what is "
        r"left of $\tau_e$ after its projection on $-g_0$; $\bar\tau$: the tasks' mean."
    ),
    "equivalence": (
        r"One-epoch equivalence. Worst / budget: largest deviation of a coordinate from the formula over the bound on "
        r"its rounding; at most 1 when exact. Frozen: share of the coordinates with a gradient that the step left "
        r"unchanged. $\hat g$: gradient that the optimizer consumed, $g_0$: full-batch gradient at $\theta_0$. Why a "
        r"form fails or does not apply stands in the report's other formats."
    ),
    "cross_task": f"Tasks $a$ and $b$ compared. {_SYMBOLS}; sign agreement: of the coordinates where neither is 0.",
    "second_order": (
        r"Second-order error after $k$ epochs. Error: $\lVert \tau_k + S_k g_0 \rVert$, measured, $S_k$ the sum of the "
        r"rule's coefficients; predicted: an estimate of it from $g_0$ and one product with the Hessian $H_0$ at "
        r"$\theta_0$. Order 1, order 2, quadratic: what each prediction of $\tau_k$ leaves, relative to "
        r"$\lVert \tau_k \rVert$. Bound: an upper bound on the error, where one exists."
    ),
    "error_budget": (
        r"Error budget: terms whose sum is the residual $\tau + \kappa S g_0$ ($S$ the sum of the rule's "
        r"coefficients, $\kappa$ the scale of a preconditioner, 1 without one). Cosine: of a term to the residual. "
        r"Shares sum to one, may be negative, and depend on the order of the terms."
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
        table: the table; where it has groups, the rows of the whole model are printed, and of many epochs the first
            and the last.
        name: the table's name, for caption and label.

    Returns:
        A `table` environment; a `longtable` where the last epoch alone has more rows than a page; a comment where there
        are no rows.
    """
    shown = table
    if "group" in shown:
        shown = shown[shown["group"] == ALL].drop(columns="group")
    caption = CAPTIONS.get(name, escaped(name))
    if not len(shown):
        return f"% {name} has no rows{f': {COMPUTED_BY[name]} makes them' if name in COMPUTED_BY else ''}\n"
    shown, kept = _chosen_epochs(without_empty_columns(shown))
    caption += kept
    shown = shown.drop(columns=list(TOO_WIDE), errors="ignore")
    long = len(shown) > MOST_ROWS
    styled = shown.rename(columns={column: HEADINGS.get(str(column), escaped(str(column))) for column in shown}).style
    styled = styled.hide(axis="index").format(_cell)
    text = str(
        styled.to_latex(
            hrules=True,
            position="t",
            position_float=None if long else "centering",
            column_format="".join("r" if pd.api.types.is_numeric_dtype(shown[column]) else "l" for column in shown),
            caption=caption,
            label=f"tab:{name.replace('_', '-')}",
            environment="longtable" if long else None,
        )
    )
    small = "\\footnotesize\n\\setlength{\\tabcolsep}{3pt}\n"
    return f"{{{small}{text}}}\n" if long else text.replace("\\centering\n", f"\\centering\n{small}", 1)


def _chosen_epochs(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """As many epochs as a page holds, and the words that say which."""
    if "epoch" not in table or len(table) <= MOST_ROWS:
        return table, ""
    of_one = [column for column in ("run", "run_a", "run_b") if column in table]
    last = table["epoch"] == table.groupby(of_one)["epoch"].transform("max")
    for early, words in (((0, 1), "0, 1 and the last"), ((1,), "1 and the last")):
        chosen = table[last | table["epoch"].isin(early)]
        if len(chosen) <= MOST_ROWS:
            return chosen, f" Epochs shown: {words}."
    return table[last], " Epoch shown: the last."


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
        return f"{value:.4g}" if value >= 0 else f"${value:.4g}$"  # outside formulas - is a hyphen
    return escaped(value)
