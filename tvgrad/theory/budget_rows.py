"""Nodes of an error budget, and the rows between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container
from dataclasses import dataclass

from tvgrad.results import Result
from tvgrad.store.run import Run
from tvgrad.vectors.algebra import add_scaled, difference, zeros_like
from tvgrad.vectors.parameters import Weights, inner_product, norm


@dataclass(frozen=True)
class BudgetTerm(Result):
    """One row of an error budget.

    Attributes:
        run: the run's name.
        epoch: epochs done.
        term: what the row is due to; several names joined by ` + ` where a node between them was not computed.
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
class Node:
    """A vector between the recorded task vector and minus the gradient.

    Attributes:
        name: V0 to V9.
        vector: in float64.
        row: the row between the node before and this one.
    """

    name: str
    vector: Weights
    row: str = ""


def merged(parts: list[Node | str], absent: Container[str] = ()) -> list[Node]:
    """Give nodes the names of the rows before them; rows without a node between them become one.

    Args:
        parts: nodes, and between them the names of rows, in order.
        absent: rows that are zero for this run whatever happened: one that was merged with others is not named.

    Returns:
        The nodes.
    """
    nodes: list[Node] = []
    names: list[str] = []
    for part in parts:
        if isinstance(part, str):
            names.append(part)
        else:
            nodes.append(Node(part.name, part.vector, " + ".join([n for n in names if n not in absent] or names)))
            names = []
    return nodes


def rows_between(run: Run, epoch: int, nodes: list[Node]) -> tuple[list[BudgetTerm], Weights, float]:
    """Make the rows between nodes.

    Args:
        run: the run.
        epoch: epochs done.
        nodes: from V0 to V9.

    Returns:
        The rows, the residual V0 - V9, and by how much of its norm the rows' sum misses it.
    """
    residual = difference(nodes[0].vector, nodes[-1].vector)
    size = inner_product(residual, residual)
    total = zeros_like(residual)
    rows = []
    for before, after in itertools.pairwise(nodes):
        vector = difference(before.vector, after.vector)
        add_scaled(total, vector, 1.0)
        length, along = norm(vector), inner_product(vector, residual)
        cosine = along / (length * math.sqrt(size)) if length and size else math.nan
        share = along / size if size else math.nan
        rows.append(BudgetTerm(run.name, epoch, after.row, length, cosine, share, f"{before.name} - {after.name}"))
    gap = norm(difference(total, residual))
    return rows, residual, gap / math.sqrt(size) if size else 0.0
