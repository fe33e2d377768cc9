"""What runs are called in figures and on the page: without what all names share, by task, and by seed within a task."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RunLabel:
    """How one run is shown.

    Attributes:
        name: of the run in the tables.
        short: its name without what all names share.
        task: whose colour it has.
        variant: what tells it from other runs of its task (seed 1, say); empty where there is one run a task.
    """

    name: str
    short: str
    task: str
    variant: str


def run_labels(tasks: Mapping[str, str], seeds: Mapping[str, object] | None = None) -> dict[str, RunLabel]:
    """Label runs.

    Args:
        tasks: name of a run -> its task.
        seeds: name of a run -> its seed, where it is known.

    Returns:
        Name -> label, in the order given.
    """
    short = without_common_prefix(list(tasks))
    runs = Counter(tasks.values())
    seeds = seeds or {}
    labels = {}
    for name, task in tasks.items():
        same = [other for other in tasks if tasks[other] == task]
        told = [str(seeds.get(other, "")) for other in same]
        by_seed = len(set(told)) == len(same) and "" not in told
        variant = "" if runs[task] == 1 else f"seed {seeds[name]}" if by_seed else short[name]
        shown = f"{task}, {variant}" if by_seed and variant else task if not variant else short[name]
        labels[name] = RunLabel(name, shown, task, variant)
    return labels


def without_common_prefix(names: Sequence[str]) -> dict[str, str]:
    """Strip what all names begin with, up to a separator, so that something is left of each.

    Args:
        names: the names.

    Returns:
        Name -> what tells it from the others.
    """
    pieces = {name: re.findall(r"[^/]+/?|/", name) for name in names}
    lists = list(pieces.values())
    shared = 0
    while len(lists) > 1 and all(len(one) > shared + 1 for one in lists) and len({one[shared] for one in lists}) == 1:
        shared += 1
    return {name: "".join(found[shared:]) for name, found in pieces.items()}
