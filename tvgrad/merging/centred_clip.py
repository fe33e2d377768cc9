r"""CClip: the mean of task vectors none of which is longer than a radius (arXiv 2012.10333, 2411.18607)."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from tvgrad.errors import TvgradError
from tvgrad.merging.method import Method, checked_number
from tvgrad.merging.prepared_method import PreparedMethod
from tvgrad.merging.stack import Stack
from tvgrad.merging.stack_gram import stack_gram
from tvgrad.merging.weighted import Weighted


@dataclass(frozen=True)
class CentredClip(PreparedMethod):
    r"""$\frac{1}{T} \sum_t \tau_t \min(1, \rho / \|\tau_t\|)$, centred at the pretrained weights.

    $\rho$ is `radius`; without one, the median of the lengths, so that at least half of the vectors stay whole.
    """

    radius: float | None = None

    name: ClassVar[str] = "centred_clip"

    def __post_init__(self) -> None:
        if self.radius is not None:
            object.__setattr__(self, "radius", checked_number(self.radius, "radius", least=0))
            if self.radius == 0:
                raise TvgradError("a radius of 0 leaves nothing of any task vector: give a larger one")

    @override
    def prepared(self, stack: Stack) -> Method:
        lengths = [math.sqrt(one) for one in stack_gram(stack).diagonal()]
        radius = statistics.median(lengths) if self.radius is None else self.radius
        return Weighted(tuple(min(1.0, radius / one) / len(lengths) if one > 0 else 0.0 for one in lengths))
