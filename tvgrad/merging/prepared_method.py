"""PreparedMethod: a method that merges nothing before it has seen all task vectors."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from tvgrad.errors import TvgradError
from tvgrad.merging.method import Method

if TYPE_CHECKING:
    from tvgrad.merging.stack import Stack


@dataclass(frozen=True)
class PreparedMethod(Method):
    """Base of methods that need to know of the vectors as a whole."""

    @abstractmethod
    @override
    def prepared(self, stack: Stack) -> Method:
        """Look at all task vectors."""

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        raise TvgradError(f"{self.name} looks at whole task vectors first: merge by merge_vectors or merge_files")
