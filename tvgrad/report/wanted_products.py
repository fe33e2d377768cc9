"""Which inner products the tables and the figures of a report are made of: few, where a run has many epochs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, combinations_with_replacement
from typing import Literal, TypeAlias

from tvgrad.files.user_cache import cache_folder
from tvgrad.store.run import Run
from tvgrad.streaming.kept_products import KeptProducts
from tvgrad.streaming.run_vectors import RunVectors
from tvgrad.streaming.vector_key import VectorKey

Extent: TypeAlias = Literal["tables", "figures", "all"]
"""What products are for: the tables alone, whose number grows with the epochs; figures too; or any use."""

Keys: TypeAlias = tuple[VectorKey, VectorKey]


def wanted_products(found: Sequence[RunVectors], extent: Extent) -> list[Keys] | None:
    """List the pairs of vectors whose inner products a report needs.

    Args:
        found: the vectors of each run.
        extent: what for.

    Returns:
        Pairs of keys; None is all of them.
    """
    if extent == "all":
        return None
    pairs = [pair for one in found for pair in _of_one_run(one)]
    for left, right in combinations(found, 2):
        shared = left.keys.keys() & right.keys.keys()
        pairs += [(left.keys[place], right.keys[place]) for place in sorted(shared) if place[0] != "displacement"]
    if extent == "figures":
        tasks = [key for one in found for (kind, _), key in one.keys.items() if kind == "task_vector"]
        pairs += combinations_with_replacement(tasks, 2)
        for one in found:
            gradients = [key for (kind, _), key in one.keys.items() if kind == "gradient"]
            pairs += combinations_with_replacement(gradients, 2)
    return list(dict.fromkeys(pairs))


def _of_one_run(found: RunVectors) -> list[Keys]:
    """Each vector with the first ones, and each displacement with the one before it."""
    keys = found.keys
    gradient, vector, summed = keys.get(("gradient", 0)), keys.get(("task_vector", 1)), found.epoch_gradients.get(0)
    firsts = {"gradient": [gradient], "task_vector": [gradient, vector, summed], "epoch_gradient": [summed]}
    pairs: list[Keys] = []
    for (kind, epoch), key in keys.items():
        before = keys.get(("displacement", found.before.get(epoch, 0))) if kind == "displacement" else None
        pairs += [(key, other) for other in [before, *firsts.get(kind, [])] if other is not None]
    return pairs


def kept_products(runs: Sequence[Run]) -> KeptProducts:
    """The products of earlier reports on runs, in the user's cache folder.

    Args:
        runs: the runs.

    Returns:
        What is kept of those that began with the same files.
    """
    first = [
        digest
        for run in runs
        for point in run.points[:2]
        for kind, entry in sorted(point.files.items())
        if kind == "weights"
        for _, digest, _ in entry.parts
    ]
    return KeptProducts(cache_folder() / "products", first)
