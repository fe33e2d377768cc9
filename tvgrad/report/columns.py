"""The columns of a report's tables: names and order, meanings, and headings in print, each said once.

Headings of LaTeX tables, captions of every format and the reference page `docs/reference/tables.md` are made of these
definitions, or tested against them. Formulas stand between backquotes: `||tau_e||` is a norm, `tau_e^a` that of run a.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: what scripts rely on.
        meaning: its definition; empty for what tells rows apart (run, epoch, group).
        heading: short heading in print, a formula or words; empty where a formula is the whole meaning, or where the
            name will do.
    """

    name: str
    meaning: str = ""
    heading: str = ""

    @property
    def is_formula(self) -> bool:
        """Whether the meaning is one formula, which is its own heading."""
        return self.meaning.count("`") == 2 and self.meaning[0] == self.meaning[-1] == "`"


@dataclass(frozen=True)
class TableText:
    """What a table holds, in words.

    Attributes:
        title: opens its caption in print.
        symbols: define what the columns' meanings use.
        columns: of a report on runs, in order.
        further: columns that `tvgrad report --pretrained` (norms, directions), a report of LoRA runs (norms) or
            `tvgrad relate` (cross_task) adds.
        note: ends the caption.
    """

    title: str
    symbols: str
    columns: tuple[Column, ...]
    further: tuple[Column, ...] = ()
    note: str = ""


_RUN, _EPOCH, _GROUP = Column("run"), Column("epoch"), Column("group")
_STATES = (
    "`theta_e`: weights after `e` epochs, `theta_0` the pretrained ones; `tau_e = theta_e - theta_0`: task vector; "
    "`g_e`: full-batch gradient at `theta_e`"
)
_MOVES = f"{_STATES}; `delta_e = theta_e - theta_(e-1)`"

TABLES = {
    "norms": TableText(
        "Norms over epochs",
        _MOVES,
        (
            _RUN,
            _EPOCH,
            _GROUP,
            Column("gradient_norm", "`||g_e||`"),
            Column("task_vector_norm", "`||tau_e||`"),
            Column("displacement_norm", "`||delta_e||`"),
            Column(
                "gradient_norm_share",
                "`||g_e||` over the sum of the norms at epochs 0 to `K-1`, `K` the last; empty at `K`",
                "share",
            ),
            Column(
                "epoch_gradient_norm",
                "norm of the epoch gradient `G_e`: the recorded sum of the batch gradients, as consumed at moving "
                "weights, of the epoch that begins at `e`",
                "`||G_e||`",
            ),
            Column(
                "epoch_gradient_norm_share",
                "`||G_e||` over its sum over all recorded epochs",
                "epoch gradient share",
            ),
            Column(
                "mean_batch_gradient_norm",
                "mean over the steps of the epoch that begins at `e` of the norm of the batch gradient before "
                "clipping, loss scale taken out, at moving weights; where it is known, whole model only",
                "`bar b_e`",
            ),
            Column(
                "mean_batch_gradient_norm_share",
                "the mean batch gradient norm over its sum over epochs: the quantity that the paper prints",
                "batch share",
            ),
            Column(
                "mean_consumed_gradient_norm",
                "the same of the gradient that the optimizer consumed, after clipping",
                "`bar c_e`",
            ),
            Column(
                "gradient_error_bar",
                "of a `g_e` that is one epoch's estimate: distance of two measuring passes over its norm, inf "
                "where they repeat one another; empty where it is the full batch's",
                "error bar of `g_e`",
            ),
        ),
        (
            Column("pretrained_norm", "`||theta_0||`"),
            Column("relative_norm", "`||tau|| / ||theta_0||`"),
            Column(
                "weight_change_norm",
                "in weight space, `||s (B_e A_e - B_0 A_0)||`; the other columns speak of the factors of LoRA",
            ),
        ),
        "Norms are Euclidean: of gradients in units of the loss per unit of weight, of task vectors and displacements "
        "in units of weights",
    ),
    "directions": TableText(
        "Directions over epochs",
        _MOVES,
        (
            _RUN,
            _EPOCH,
            _GROUP,
            Column("cos_task_vector_descent", "`cos(tau_e, -g_0)`"),
            Column(
                "cos_epoch_gradient_first",
                "cosine of the epoch gradient `G_e`, the recorded sum of the batch gradients of the epoch that begins "
                "at `e`, at moving weights, to that of the first epoch",
                "`cos(G_e, G_0)`",
            ),
            Column(
                "cos_task_vector_epoch_descent",
                "cosine of `tau_e` to minus the epoch gradient of the first epoch",
                "`cos(tau_e, -G_0)`",
            ),
            Column("cos_gradient_first", "`cos(g_e, g_0)`"),
            Column("cos_task_vector_first", "`cos(tau_e, tau_1)`"),
            Column("cos_successive_displacements", "`cos(delta_e, delta_(e-1))`"),
            Column(
                "relative_residual",
                "norm of `tau_e` minus its projection on `-g_0`, over the norm of `tau_e`",
                "`||tau_e^perp|| / ||tau_e||`",
            ),
        ),
        (
            Column(
                "cos_task_vector_pretrained",
                "cosine to the pretrained weights: about -1 where weight decay did most of the moving",
                "`cos(tau, theta_0)`",
            ),
            Column("cos_task_vector_mean", "cosine to the mean of all task vectors given", "`cos(tau, bar tau)`"),
        ),
    ),
    "equivalence": TableText(
        "One-epoch equivalence",
        "`hat g`: gradient that the optimizer consumed; `g_0`: full-batch gradient at the pretrained weights",
        (
            _RUN,
            Column("rule", "the formula that was checked"),
            Column("holds", "the step, for the gradient that was consumed: exact, fails or does not apply"),
            Column(
                "worst_ratio_to_budget",
                "largest deviation of a coordinate from the formula, over the bound on its rounding in one optimizer "
                "step; at most 1 when exact",
                "worst / rounding bound",
            ),
            Column(
                "frozen_share",
                "the unchanged share: of the coordinates with a gradient, those that the step left as they were",
                "unchanged",
            ),
            Column(
                "gradient_relative_error",
                "distance between the consumed and the full-batch gradient over the latter's norm",
                "`||hat g - g_0|| / ||g_0||`",
            ),
            Column("reason", "of the step's verdict, one sentence"),
            Column(
                "gradient_holds",
                "whether the task vector after the first epoch is minus the rate times the full-batch gradient, within "
                "a hundredth of its norm: yes, no or unknown",
                "gradient",
            ),
            Column("deviation", "`||tau_1 + lr g_0|| / ||lr g_0||`"),
            Column("cosine", "`cos(tau_1, -g_0)`"),
            Column("cause", "of a no or an unknown, one sentence"),
            Column(
                "trouble",
                "divergence, a test metric that ends below the pretrained model's, an early end, or weights that moved "
                "outside the optimizer's steps or were not recorded at the script's end, with the numbers that show "
                "it; empty where there is none",
            ),
            Column(
                "gradient_error_bar",
                "of a `g_0` that is one epoch's estimate: distance of two measuring passes over its norm, inf "
                "where they repeat one another; empty where it is the full batch's",
                "error bar of `g_0`",
            ),
        ),
    ),
    "cross_task": TableText(
        "Tasks `a` and `b` after the same number of epochs",
        f"{_STATES}; `a` and `b`: the two runs",
        (
            Column("run_a"),
            Column("run_b"),
            _EPOCH,
            _GROUP,
            Column("cos_task_vectors", "`cos(tau_e^a, tau_e^b)`"),
            Column("cos_gradients", "`cos(g_e^a, g_e^b)`"),
            Column(
                "sign_agreement",
                "share of equal signs among the coordinates where neither task vector is zero",
                "sign agreement",
            ),
        ),
        (
            Column(
                "interference_on_a",
                "share of the first-order descent of run a's own task vector that adding run b's would undo, "
                "`-<g_0^a, tau_e^b> / <g_0^a, tau_e^a>`; negative where it adds to it",
            ),
            Column("interference_on_b", "the same with a and b exchanged"),
            Column(
                "cos_weight_space",
                "of two LoRA runs: cosine of their changes `dW = s B A` of the adapted weights, where the other "
                "columns speak of the factors",
            ),
        ),
    ),
    "sketches": TableText(
        "Estimates from sketches of gradients",
        f"{_STATES}; `G_e`: the recorded sum of the batch gradients of the epoch that begins at `e`",
        (
            _RUN,
            Column("other", "the second run of a cosine between two; else empty"),
            _EPOCH,
            _GROUP,
            Column(
                "quantity",
                "the column that is estimated: of norms or directions, of the comparison of tasks where there is a "
                "second run",
            ),
            Column("estimate", "of the quantity, from sketches"),
            Column("low", "lower end of the interval, which covers the quantity in at least 95 of 100 cases"),
            Column("high", "upper end"),
        ),
        note="Nothing of this table is exact, and nothing of it is in another table; of a run that keeps sketches the "
        "gradient norms in norms are no estimates",
    ),
    "second_order": TableText(
        "Second-order error after `k` epochs",
        "`tau_k`: task vector after `k` epochs; `S_k`: sum of the rule's coefficients; order 1: `-S_k g_0`, of the "
        "gradient at the pretrained weights; order 2: with the product of that gradient and the Hessian there",
        (
            _RUN,
            _EPOCH,
            Column("error_norm", "norm of `tau_k` minus order 1: the second-order error as measured", "error"),
            Column(
                "predicted_norm",
                "estimate of the error from one Hessian-vector product, with saturation; for mini-batches without",
                "predicted",
            ),
            Column("residual_order1", "the error over the norm of `tau_k`", "order 1"),
            Column("residual_order2", "norm of `tau_k` minus order 2, over the norm of `tau_k`", "order 2"),
            Column("residual_quadratic", "the same for the quadratic model", "quadratic"),
            Column("bound", "rigorous upper bound on the error; empty where no certificate exists"),
            Column("predicted_norm_order2", "the estimate without saturation"),
        ),
        note="All columns but error and bound are estimates from the pretrained weights",
    ),
    "error_budget": TableText(
        "Error budget: terms that add up to the residual `tau + kappa S g_0`",
        "`S`: sum of the rule's coefficients; `kappa`: scale of a preconditioner, 1 without one",
        (
            _RUN,
            _EPOCH,
            Column(
                "term",
                "what the row is due to; several, joined by +, where the nodes between them were not computed; "
                "unexplained where nothing tells which gradients were consumed",
            ),
            Column("norm", "norm of the row's vector"),
            Column("cosine", "cosine of the row's vector to the residual"),
            Column(
                "share",
                "inner product of the row's vector with the residual, over the residual's squared norm: shares sum to "
                "1, may be negative, and depend on the order of the terms",
            ),
            Column("nodes", "the two vectors whose difference the row is"),
        ),
    ),
}
"""Table -> what it holds."""

COLUMNS = {name: tuple(column.name for column in table.columns) for name, table in TABLES.items()}
"""Table -> the names of its columns, in order."""
FURTHER_COLUMNS = {name: tuple(column.name for column in table.further) for name, table in TABLES.items()}
"""Table -> the names of the columns that checkpoints or a pair of runs add."""


def sentences(*parts: str) -> str:
    """Join the parts of a caption.

    Args:
        parts: sentences without their full stop; empty ones are left out.

    Returns:
        The sentences, each with a capital letter and a full stop.
    """
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts if part)


def defined(table: str, shown: Collection[object]) -> list[Column]:
    """List the definitions of what is shown of a table.

    Args:
        table: the table's name; of an unknown one nothing is defined.
        shown: names of columns.

    Returns:
        The columns among them that have a meaning, in the table's order.
    """
    text = TABLES.get(table)
    columns = () if text is None else (*text.columns, *text.further)
    return [column for column in columns if column.meaning and column.name in shown]
