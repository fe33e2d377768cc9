r"""LiNeS: the deeper a layer, the further its sum of task vectors goes (arXiv 2410.17146)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.method import Method, added, checked_number
from tvgrad.merging.prepared_method import PreparedMethod
from tvgrad.merging.stack import Stack
from tvgrad.vectors.parameters import group_names

AHEAD = re.compile(r"embed|wte|wpe|pos_|cls_|class_token|patch|conv1|stem|first", re.IGNORECASE)
"""What names of parts hold that come before the numbered ones."""


@dataclass(frozen=True)
class Lines(PreparedMethod):
    r"""The sum of the task vectors, block l of N times `first` + (`last` - `first`) (l - 1)/(N - 1).

    By default the first block is as in the mean (1/T) and the last as in the sum (1). Blocks are the numbered parts of
    the model (`layers.3`). Of the rest, embeddings and stems (told by their names) belong to the first block, and heads
    and final norms to the last, in whatever order a file has them. Where no part is numbered, every module is a block,
    in the order of the vectors. A single block goes as far as the last.
    """

    first: float | None = None
    last: float = 1.0

    name: ClassVar[str] = "lines"

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, checked_number(getattr(self, name), name))

    @override
    def prepared(self, stack: Stack) -> Method:
        depths = block_depths(stack.places)
        first = 1 / stack.tasks if self.first is None else self.first
        deepest = max(depths.values(), default=0)
        return ScaledSum({
            name: first + (self.last - first) * depth / deepest if deepest else self.last
            for name, depth in depths.items()
        })


@dataclass(frozen=True)
class ScaledSum(Method):
    """The sum of the task vectors, every tensor times its own number."""

    factors: dict[str, float] = field(default_factory=dict)

    name: ClassVar[str] = "lines"
    elementwise: ClassVar[bool] = True

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        return added(rows, into=rows[0]).mul_(self.factors[name])


def block_depths(names: Iterable[str]) -> dict[str, int]:
    """Count blocks from the first to the last.

    Args:
        names: of tensors; where parts are numbered, in any order. Several numbered lists follow each other by name.

    Returns:
        Name -> number of its block, from 0.
    """
    groups = group_names(names)
    numbered = {group for group in groups.values() if re.search(r"(^|\.)\d+$", group)}
    if not numbered:
        order = list(dict.fromkeys(groups.values()))
        return {name: order.index(group) for name, group in groups.items()}
    order = sorted(numbered, key=_stem)
    return {
        name: order.index(group) if group in numbered else 0 if AHEAD.search(name) else len(order) - 1
        for name, group in groups.items()
    }


def _stem(group: str) -> tuple[str, int]:
    stem, _, number = group.rpartition(".")
    return stem, int(number)
