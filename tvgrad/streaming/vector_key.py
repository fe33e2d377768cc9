"""VectorKey: which vector of which run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from typing_extensions import override

Kind: TypeAlias = Literal["gradient", "task_vector", "displacement", "epoch_gradient"]


@dataclass(frozen=True)
class VectorKey:
    """Names one vector of a run; as text it is the label `<run>:<kind>:<epoch>`.

    Attributes:
        run: the run's name in this pass.
        kind: gradient, task_vector, displacement or epoch_gradient.
        epoch: the recorded epoch (or step) that the vector belongs to.
    """

    run: str
    kind: Kind
    epoch: int

    @override
    def __str__(self) -> str:
        return f"{self.run}:{self.kind}:{self.epoch}"


Reference: TypeAlias = int | str | VectorKey
"""A vector of a pass: its row, its label or its key."""
