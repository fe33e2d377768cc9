"""NumberRange: the least and the largest of numbers that several processes have."""

from __future__ import annotations

import math
from collections.abc import Iterable


class NumberRange:
    """The least and the largest of some numbers.

    Attributes:
        least: an infinity where there is none.
        most: minus infinity likewise.
    """

    def __init__(self) -> None:
        """Start without any."""
        self.least, self.most = math.inf, -math.inf

    def add(self, *numbers: float) -> None:
        """Look at numbers.

        Args:
            numbers: they.
        """
        self.least, self.most = min(self.least, *numbers), max(self.most, *numbers)

    def join(self, others: Iterable[NumberRange]) -> None:
        """Look at the numbers of other processes.

        Args:
            others: the range of each.
        """
        for one in others:
            self.add(one.least, one.most)

    def all_within(self, relative: float) -> bool:
        """Tell whether the numbers are the same.

        Args:
            relative: of the largest, by which they may differ.

        Returns:
            Whether they are, or there is none.
        """
        return self.least >= self.most or self.most - self.least <= relative * abs(self.most)
