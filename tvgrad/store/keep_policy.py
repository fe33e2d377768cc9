"""KeepPolicy: which points of a run keep their tensors. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tvgrad.errors import TvgradError


class KeepPolicy(str):
    """The value of `--keep`, checked: `all`, `last:N` or `epochs:0,1,5`.

    The start and the last point always keep their tensors.
    """

    __slots__ = ()

    def __new__(cls, text: str = "all") -> KeepPolicy:
        """Check the text.

        Args:
            text: the value.

        Returns:
            It, as a string that decides about points.

        Raises:
            TvgradError: it is not understood.
        """
        if not re.fullmatch(r"all|last:\s*0*[1-9]\d*|epochs:\s*\d+(\s*,\s*\d+)*", text):
            raise TvgradError(f"--keep {text!r} is not understood: use all, last:N or epochs:0,1,5")
        return super().__new__(cls, text)

    def kept(self, numbers: Sequence[int]) -> set[int]:
        """Pick the points that keep their tensors.

        Args:
            numbers: all points so far, in order.

        Returns:
            Those that keep theirs.
        """
        named = [int(number) for number in re.findall(r"\d+", self)]
        if self == "all":
            return set(numbers)
        if self.startswith("last"):
            return {0, *numbers[-named[0] :]} & set(numbers)
        return {0, *numbers[-1:], *named} & set(numbers)


KEEP_ALL = KeepPolicy("all")
