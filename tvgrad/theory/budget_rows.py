"""Rows of an error budget: each undoes one thing that the training did, and ends at a node."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import torch

from tvgrad.results import Result
from tvgrad.store.run import Run
from tvgrad.vectors.lazy import LazyCombination
from tvgrad.wording import counted, percent

RECORDED_NODE = "V0"
UNEXPLAINED = "unexplained"
"""The row that begins at the recorded task vector, where the consumed gradients are neither recorded nor replayed."""


class Row(Enum):
    """The rows from the recorded task vector to minus the gradient, in order, each with the node at its end."""

    REPLAY_MISMATCH = "replay mismatch", "V0'"
    UPDATE_ROUNDING = "update rounding", "V1"
    WEIGHT_DECAY = "weight decay", "V2"
    PRECONDITIONER = "preconditioner", "V3"
    CLIPPING = "clipping", "V3'"
    REMAINDER = "remainder", "V4"
    BATCH_CURVATURE = "batch curvature", "V5"
    CURVATURE = "curvature", "V6"
    BATCH_ORDER = "batch order", "V7"
    UNEQUAL_BATCHES = "unequal batches", "V8"
    COVERAGE = "coverage", "V9"

    @property
    def term(self) -> str:
        """What the row is due to."""
        return self.value[0]

    @property
    def node(self) -> str:
        """The node at the row's end."""
        return self.value[1]


@dataclass(frozen=True)
class BudgetTerm(Result):
    """One row of an error budget.

    Attributes:
        run: the run's name.
        epoch: epochs done.
        term: what the row is due to; several names joined by ` + ` where a node between them was not computed, and
            `unexplained` where nothing tells what the optimizer consumed.
        norm: of the row's vector.
        cosine: of the row's vector to the residual, NaN where one of them is zero.
        share: `<row, residual> / ||residual||^2`; they sum to 1 and may be negative; NaN where the residual is zero.
        nodes: the two nodes whose difference the row is.
    """

    run: str
    epoch: int
    term: str
    norm: float
    cosine: float
    share: float
    nodes: str


@dataclass(frozen=True)
class EpochBudget:
    """The error budget after one epoch.

    Attributes:
        rows: the terms, in order.
        residual_norm: `||V0 - V9||`.
        relative_residual: the same over the norm of the task vector; NaN where that is zero.
        gap: norm of (sum of the rows - residual) over the residual's.
    """

    rows: tuple[BudgetTerm, ...]
    residual_norm: float
    relative_residual: float
    gap: float


def what_it_is(rows: Iterable[BudgetTerm], epoch: int) -> str:
    """Say in a sentence what most of an epoch's residual is due to.

    Args:
        rows: of an error budget.
        epoch: the epoch.

    Returns:
        The sentence, without a full stop.
    """
    terms = [row for row in rows if row.epoch == epoch and not math.isnan(row.share)]
    after = f"after {counted(epoch, 'epoch')}"
    if not terms:
        return f"{after} the task vector is minus the gradient, scaled: there is nothing to explain"
    largest = max(terms, key=lambda row: row.share)
    if largest.term == UNEXPLAINED:
        return f"{after} the difference from the gradient is unexplained: nothing tells what the steps consumed"
    rest = ", and other terms take some of it back" if largest.share >= 1.005 else ""
    return f"{after} {percent(max(largest.share, 0.0))} of the difference from the gradient is {largest.term}{rest}"


def rows_between(
    run: Run,
    epoch: int,
    nodes: Mapping[Row, Mapping[str, torch.Tensor]],
    *,
    absent: Container[Row] = (),
    terms: Mapping[Row, str] | None = None,
    unexplained: bool = False,
) -> EpochBudget:
    """Make the rows from the recorded task vector to the last node.

    Args:
        run: the run.
        epoch: epochs done.
        nodes: row -> the vector at its end, float64, on one device; rows without a node become one with the next.
        absent: rows that are zero for this run whatever the numbers: they are not named where they are one with others.
        terms: other words for some rows.
        unexplained: nothing tells apart what happened between the recorded task vector and the first node.

    Returns:
        The rows, and how well they sum to the residual.
    """
    last = nodes[Row.COVERAGE]
    tau = LazyCombination((1.0, run.weights(epoch)), (-1.0, run.weights(0)))
    present = [row for row in Row if row in nodes]
    lengths, along = [[list[float]() for _ in present] for _ in range(2)]
    of_tau, of_residual, of_gap = (list[float]() for _ in range(3))
    for name, end in last.items():  # one tensor of each node is in memory at a time
        before = tau[name].to(end.device)
        residual = before - end
        total = torch.zeros_like(residual)
        of_tau.append(_length(before))
        of_residual.append(_length(residual))
        for place, row in enumerate(present):
            node = nodes[row][name]
            part = before - node
            total += part
            lengths[place].append(_length(part))
            along[place].append(float(torch.dot(part.flatten(), residual.flatten())))
            before = node
        of_gap.append(_length(total.sub_(residual)))
    whole, size = math.hypot(*of_residual), math.fsum(length**2 for length in of_residual)
    rows, names, begin = [], list[Row](), RECORDED_NODE
    for row in Row:
        names.append(row)
        if row not in nodes:
            continue
        place = present.index(row)
        length, inner = math.hypot(*lengths[place]), math.fsum(along[place])
        cosine = inner / (length * math.sqrt(size)) if length and size else math.nan
        named = [name for name in names if name not in absent] or names
        term = " + ".join((terms or {}).get(name, name.term) for name in named)
        if unexplained and begin == RECORDED_NODE:
            term = UNEXPLAINED
        share = inner / size if size else math.nan
        rows.append(BudgetTerm(run.name, epoch, term, length, cosine, share, f"{begin} - {row.node}"))
        names, begin = [], row.node
    length = math.hypot(*of_tau)
    return EpochBudget(
        tuple(rows),
        whole,
        whole / length if length else math.nan,
        math.hypot(*of_gap) / math.sqrt(size) if size else 0.0,
    )


def _length(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))
