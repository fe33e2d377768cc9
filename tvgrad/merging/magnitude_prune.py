"""Magnitude pruning: add what is left of each task vector when its small entries are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tvgrad.merging.ties import Ties


@dataclass(frozen=True)
class MagnitudePrune(Ties):
    """The sum of each tensor's largest `density` of entries: TIES without its election of signs."""

    name: ClassVar[str] = "magnitude_prune"
    least: ClassVar[int] = 1
    elected: ClassVar[bool] = False
