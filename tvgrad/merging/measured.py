"""MeasuredMethod: a merging method that takes measurements of the tasks' data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from tvgrad.errors import TvgradError
from tvgrad.merging.measurements import Measurements
from tvgrad.merging.method import Method

if TYPE_CHECKING:
    from tvgrad.merging.stack import Stack


@dataclass(frozen=True)
class MeasuredMethod(Method):
    """Base of methods that need to know of each task which weights matter to it.

    Attributes:
        measurements: of the tasks, in the order in which they are merged.
    """

    measurements: Measurements

    @override
    def check_stack(self, stack: Stack) -> None:
        super().check_stack(stack)
        if not isinstance(self.measurements, Measurements):
            raise TvgradError(
                f"a {type(self.measurements).__name__} is no measurements: pass those of tvgrad.merging.measure, or "
                "load_measurements(path)"
            )
        self.measurements.check(stack)
