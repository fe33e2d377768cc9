"""Clock: counts epochs and optimizer steps, and says when a point is due."""

from __future__ import annotations

from tvgrad.record.record_at import RecordAt


class Clock:
    """Where a training is.

    Attributes:
        record_at: the points to record.
        epoch: epochs done.
        steps: optimizer steps done.
        steps_in_epoch: optimizer steps since the last end of an epoch.
    """

    def __init__(self, record_at: RecordAt) -> None:
        """Start before the first step.

        Args:
            record_at: the points to record.
        """
        self.record_at = record_at
        self.epoch = 0
        self.steps = 0
        self.steps_in_epoch = 0

    @property
    def by_epoch(self) -> bool:
        """Whether points are ends of epochs."""
        return not self.record_at.steps

    @property
    def step_due(self) -> bool:
        """Whether the last step is a point."""
        return self.steps in self.record_at.steps

    @property
    def number(self) -> int:
        """The number of a point that is recorded now."""
        return self.epoch if self.by_epoch else self.steps

    def go_on(self, number: int, steps: int) -> None:
        """Begin at a point that was recorded before.

        Args:
            number: the point's.
            steps: optimizer steps done there.
        """
        self.epoch = number if self.by_epoch else 0
        self.steps, self.steps_in_epoch = steps, 0

    def end_step(self) -> None:
        """Count an optimizer step."""
        self.steps += 1
        self.steps_in_epoch += 1

    def end_epoch(self) -> None:
        """Count an epoch."""
        self.epoch += 1
        self.steps_in_epoch = 0
