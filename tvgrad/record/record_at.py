"""RecordAt: at which points of a training something is recorded. Imports no torch."""

from __future__ import annotations

import re
from functools import cached_property

from tvgrad.errors import TvgradError


class RecordAt(str):
    """The value of `--record-at`, checked: `epochs`, or `steps:1,10,100`."""

    def __new__(cls, text: str = "epochs") -> RecordAt:
        """Check the text.

        Args:
            text: the value.

        Returns:
            It, as a string that knows its steps.

        Raises:
            TvgradError: it is not understood.
        """
        made = super().__new__(cls, text)
        if not re.fullmatch(r"epochs|steps:\s*\d+(\s*,\s*\d+)*", text) or 0 in made.steps:
            raise TvgradError(f"--record-at {text!r} is not understood: use epochs, or steps:1,10,100")
        return made

    @cached_property
    def steps(self) -> frozenset[int]:
        """The numbers of the steps to record; empty for epochs."""
        return frozenset(map(int, re.findall(r"\d+", self)))

    @property
    def unit(self) -> str:
        """What the numbers of points count: `epoch` or `step`."""
        return "step" if self.steps else "epoch"

    def require_reachable(self, epochs: int, steps_per_epoch: int) -> None:
        """Refuse steps of which none would be taken.

        Args:
            epochs: planned epochs.
            steps_per_epoch: optimizer steps in each.

        Raises:
            TvgradError: all steps are after the last.
        """
        last = epochs * steps_per_epoch
        if min(self.steps, default=0) > last:
            raise TvgradError(
                f"--record-at {self} names no step that is reached: {epochs} epochs of {steps_per_epoch} steps "
                f"are {last}"
            )


AT_EPOCHS = RecordAt("epochs")
