"""KeptGradients: whether a run keeps its gradients whole, or sketches of them. Imports no torch."""

from __future__ import annotations

import re

from tvgrad.errors import TvgradError
from tvgrad.sketching.sketch_width import WIDTH, width_of

SKETCHED = {"gradient": "gradient_sketch", "epoch_gradient": "epoch_gradient_sketch"}
"""What a point may hold -> what it holds in its place where sketches are kept."""


class KeptGradients(str):
    """The value of `--keep-gradients`, checked: `all` or `sketch:65536`."""

    __slots__ = ()

    def __new__(cls, text: str = "all") -> KeptGradients:
        """Check the text.

        Args:
            text: the value.

        Returns:
            It, as a string that knows the width.

        Raises:
            TvgradError: it is not understood, or no sketch has such a width.
        """
        if text != "all":
            found = re.fullmatch(r"sketch:(\d{1,9})", text)
            if found is None:
                raise TvgradError(f"--keep-gradients {text!r} is not understood: use all or sketch:{WIDTH}")
            width_of(int(found[1]))
        return super().__new__(cls, text)

    @property
    def width(self) -> int | None:
        """Numbers in a sketch; None where gradients are kept whole."""
        return None if self == "all" else int(self.partition(":")[2])


ALL_GRADIENTS = KeptGradients("all")
