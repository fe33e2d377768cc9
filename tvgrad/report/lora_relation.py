"""How two runs of LoRA relate in weight space, beside the space of the factors in which they were trained."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from tvgrad.checkpoints.low_rank import inner_products
from tvgrad.store.lora import factor_pairs, weight_changes
from tvgrad.store.run import Run
from tvgrad.vectors.parameters import ALL

IN_BOTH_SPACES = (
    "; all this is said of the factors A and B, for which tau = -eta g is exact, and in weight space (dW = s B A) the "
    "cosine of the two is {cosine:.3f}"
)


def weight_space_cosines(left: Run, right: Run, table: pd.DataFrame, groups: Mapping[str, str]) -> list[float]:
    """Compare the changes of the adapted weights, from small matrices.

    Args:
        left: run a.
        right: run b, of the same factors.
        table: has the columns epoch and group.
        groups: name of a factor -> its group.

    Returns:
        For each row the cosine, NaN where an epoch was not kept by both, a change is zero or a group has no factors.
    """
    of_group: dict[str, list[str]] = {}
    for pair in factor_pairs(left)[0]:
        for group in (ALL, groups[pair.first]):
            of_group.setdefault(group, []).append(f"{pair.module}.weight")
    found = []
    for epoch, rows in table.groupby("epoch", sort=False):
        both = [run for run in (left, right) if epoch in run.epochs and epoch != 0]
        changes = [weight_changes(run, int(str(epoch))) for run in both]
        for row, group in rows["group"].items():
            names = of_group.get(group, []) if len(changes) == 2 else []
            products = [
                inner_products(one, other, names)
                for one, other in ((changes[0], changes[1]), (changes[0], changes[0]), (changes[1], changes[1]))
                if names
            ]
            length = math.sqrt(products[1] * products[2]) if products else 0.0
            found.append((row, max(-1.0, min(1.0, products[0] / length)) if length else math.nan))
    return [cosine for _, cosine in sorted(found)]
