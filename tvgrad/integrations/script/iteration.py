"""Iteration: one pass over a DataLoader, as `Epochs` follows it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tvgrad.record.batch_items import BatchItems
from tvgrad.record.draws import Draws

Alive = Callable[[], bool]
"""Tells whether a batch is still in memory."""


@dataclass(eq=False)
class Iteration:
    """One pass over a DataLoader.

    Attributes:
        loader: what identifies the loader.
        length: its number of batches, where it has one.
        fetched: batches so far.
        consumed: batches that a backward pass followed.
        lead: batches that were fetched before the first backward pass, that one's included; above 1 where a wrapper
            fetches ahead.
        steps: optimizer steps that its batches went into.
        exhausted: whether it came to its end.
        dropped: whether its iterator is gone.
        burst: batches fetched without a backward pass between them, and the end of the loader.
        used: of this burst, batches that backward passes have consumed.
        data: samples in the loader's data set, where that is known.
        draws: of samples, where they are noted.
        waiting: (samples, whether the batch is still in memory, its items where they were counted) for each batch that
            waits for its backward pass.
    """

    loader: int
    length: int | None
    fetched: int = 0
    consumed: int = 0
    lead: int = 0
    steps: int = 0
    exhausted: bool = False
    dropped: bool = False
    burst: int = 0
    used: int = 0
    data: int | None = None
    draws: Draws = field(default_factory=Draws)
    waiting: deque[tuple[int, Alive, BatchItems | None]] = field(default_factory=deque)

    @property
    def running(self) -> bool:
        """Whether it may give another batch."""
        return not self.exhausted and not self.dropped

    @property
    def fetched_a_group(self) -> bool:
        """Whether the next backward pass goes through another batch than the last, though none was fetched since.

        That is so where the batches that a step accumulates are fetched together. One of the first burst is fetched
        ahead.
        """
        ahead = 1 if self.fetched == self.burst else 0
        return self.lead > 1 and bool(self.waiting) and 0 < self.used < self.burst - ahead

    def note_fetch(self) -> None:
        """A batch was fetched, or the end was met."""
        if self.used:
            self.burst = self.used = 0
        self.burst += 1

    @property
    def keeps_batches(self) -> bool:
        """Whether a batch that waits for its backward pass is certainly still in use."""
        return self.lead > 1 and any(alive() for _, alive, _ in self.waiting)
