"""Epochs: finds the ends of a script's epochs in what the script does with its DataLoaders.

The script's loop is not known, only its traces: batches fetched, iterations that end or are dropped, backward passes,
optimizer steps. An epoch ends when the loader whose batches the steps consumed has no more. Three things make that
harder. Evaluation loaders end too: no backward pass follows their batches. A wrapper that fetches one batch ahead sees
the end before the last step, and a last group of accumulated gradients may be flushed after the loop: then the end is
held, its weights are taken again after each step that follows, and it stands when the next batch is fetched. A `break`
never reaches the end: the iteration is dropped, which is held too, or a new one begins.

    UNSEEN ---- a backward pass consumes a batch ----> RUNNING
    RUNNING --- its loader has no more ----> ENDED        (or HELD, where batches were fetched ahead or gradients wait)
    RUNNING --- its iteration is dropped ----> HELD
    RUNNING --- a new pass over its loader begins ----> ENDED
    HELD ------ a step ----> HELD, with its weights       (or ENDED, where the batch fetched ahead is consumed)
    HELD ------ the next batch is fetched, or the script ends ----> ENDED
    ENDED ----- a step ----> RUNNING
    ENDED ----- a backward pass consumes the only batch of a pass, fetched ahead ----> HELD
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from tvgrad.errors import TvgradError
from tvgrad.integrations.script.iteration import Alive, Iteration
from tvgrad.record.batch_items import BatchItems

REMEDY = "give --steps-per-epoch N, or --record-at steps:1,10,100"


class CannotTell(TvgradError):
    """The ends of the script's epochs cannot be told; the message says why and what to do."""

    def __init__(self, why: str) -> None:
        """Say why the ends cannot be told, and what to do.

        Args:
            why: half a sentence.
        """
        super().__init__(f"the ends of the script's epochs cannot be told ({why}): {REMEDY}")


class Listener(Protocol):
    """Who is told of the ends of epochs."""

    def hold(self) -> None:
        """The epoch may end here: collect the weights, replacing those of an earlier call."""

    def end(self, how: str) -> None:
        """The epoch has ended: where the weights were collected by `hold`, or else here.

        Args:
            how: loader, break, steps or exit.
        """


class State(Enum):
    """Where the script is in its epochs, unless an end is `Held`; the module's description has the transitions."""

    UNSEEN = auto()
    """No backward pass has consumed a loader's batch."""
    RUNNING = auto()
    """Inside an epoch."""
    ENDED = auto()
    """An epoch has ended, and no step of the next was taken."""


@dataclass
class Held:
    """The state in which the epoch may have ended: the listener holds its weights.

    Attributes:
        iteration: the pass that ended or was dropped.
        how: loader or break.
        steps: optimizer steps since then.
    """

    iteration: Iteration
    how: str
    steps: int = 0


class Epochs:
    """The state of the script's epochs, moved on by what happens in it.

    Attributes:
        steps: optimizer steps (and attempts that were skipped) since the last end of an epoch.
        backwards: backward passes since the last step.
        samples: samples in the batches consumed since the last step, 0 where they are not known.
        items: of the batches consumed since the last step, where they were counted.
        state: where the script is.
    """

    def __init__(
        self, listener: Listener, steps_per_epoch: int | None = None, settle: Callable[[], None] = lambda: None
    ) -> None:
        """Start before the first batch.

        Args:
            listener: who is told of the ends.
            steps_per_epoch: a fixed length, which makes loaders irrelevant.
            settle: called before something else than a step happens: a step that several optimizers take together is
                over then.
        """
        self._settle = settle
        self._listener = listener
        self._fixed = steps_per_epoch
        self.steps = 0
        self.backwards = 0
        self.samples = 0
        self.items: list[BatchItems] = []
        self.state: State | Held = State.UNSEEN
        self._source: Iteration | None = None  # of the batch that was consumed last
        self._recent: list[Iteration] = []  # fetched from since the last backward pass that consumed a batch
        self._fresh = False  # whether a batch was fetched, or a loader ended, since the last backward pass
        self._feeds: Counter[tuple[int, int | None]] = Counter()  # loader and its length -> batches it gave to steps

    @property
    def telling(self) -> bool:
        """Whether loaders decide."""
        return self._fixed is None

    @property
    def source(self) -> Iteration | None:
        """The pass of the batch that was consumed last."""
        return self._source

    @property
    def dropped(self) -> bool:
        """Whether a pass has just lost its iterator, as by a `break`, or by an error that ends the script."""
        return isinstance(self.state, Held) and self.state.how == "break" and not self.state.steps

    def fetch(self, iteration: Iteration, samples: int, alive: Alive, items: BatchItems | None = None) -> None:
        """A batch was fetched.

        Args:
            iteration: from which pass.
            samples: its size, 0 where that is not known.
            alive: tells whether the batch is still in memory.
            items: what it holds, where that was counted.
        """
        self._settle()
        held = self.state
        if isinstance(held, Held) and not (held.iteration.loader == iteration.loader and held.iteration.keeps_batches):
            self._end(held.how)
        iteration.fetched += 1
        iteration.note_fetch()
        if iteration.lead == 1:
            iteration.waiting.clear()  # a batch without a backward pass was left out by the script
        iteration.waiting.append((samples, alive, items))
        if iteration not in self._recent:
            self._recent.append(iteration)
        self._fresh = True

    def exhaust(self, iteration: Iteration) -> None:
        """A pass came to its end.

        Args:
            iteration: the pass.
        """
        self._settle()
        iteration.exhausted = True
        iteration.note_fetch()
        self._fresh = True
        if not self.telling:
            return
        self._require_one_length(iteration)
        # Gradients accumulated over the whole pass and more: no step yet, but no other pass has had one either.
        trains = iteration.steps or (iteration.consumed and iteration is self._source)
        if trains and (iteration.lead > 1 or self.backwards):
            self._hold(iteration, "loader")
        elif trains:
            self._end("loader")

    def begin(self, loader: int) -> None:
        """A new pass begins.

        Args:
            loader: over which loader.

        Raises:
            CannotTell: the pass before was over after one of several batches.
        """
        self._settle()
        source = self._source
        if not self.telling or source is None or source.loader != loader or source.exhausted or not self.steps:
            return
        if source.fetched == 1 and source.length != 1:
            raise CannotTell("each batch comes from a new iterator of its DataLoader, as in next(iter(loader))")
        self._end("break")

    def drop(self, iteration: Iteration) -> None:
        """The iterator of a pass is gone.

        Args:
            iteration: the pass.
        """
        self._settle()
        iteration.dropped = True
        if self.telling and iteration is self._source and not iteration.exhausted and iteration.steps and self.steps:
            # A last group of gradients may be flushed yet, and an exception drops iterators too.
            self._hold(iteration, "break")

    def backward(self) -> None:
        """A backward pass begins."""
        self.backwards += 1
        if not self._fresh:
            if self._source is not None and self._source.fetched_a_group:
                self._consume(self._source)
            return
        self._fresh = False
        source = self._consumed_from()
        if source is None:
            return
        if not source.lead:
            source.lead = max(source.fetched, 1)
        self._consume(source)
        self._source = source
        if self.state is State.UNSEEN:
            self.state = State.RUNNING
        if source.exhausted and self.telling and not isinstance(self.state, Held):
            self.state = Held(source, "loader")  # its only batch was fetched ahead
        self._feeds.update((one.loader, one.length) for one in self._recent if one.running)
        self._recent.clear()

    def _consume(self, source: Iteration) -> None:
        """A backward pass goes through the next batch of a pass."""
        source.consumed += 1
        source.used += 1
        while len(source.waiting) > 1 and not source.waiting[0][1]():
            source.waiting.popleft()  # the script left it out
        if source.waiting:
            samples, _, items = source.waiting.popleft()
            self.samples += samples
            self.items += [] if items is None else [items]

    def before_step(self) -> None:
        """An optimizer step is about to be taken.

        Raises:
            CannotTell: its batch came from no loader, or the loader does not tell epochs.
        """
        if not self.telling:
            return
        source = self._source
        if source is None:
            raise CannotTell("its batches came from no torch.utils.data.DataLoader")
        if source.dropped and not source.exhausted and source.fetched == 1 and source.length != 1:
            raise CannotTell("each batch comes from a new iterator of its DataLoader, as in next(iter(loader))")
        held = self.state
        late = isinstance(held, Held) and held.steps >= max(held.iteration.lead, 1)
        if late or (held is State.ENDED and source.steps and not source.running):
            raise CannotTell("steps go on after the DataLoader's end without a new batch, as with itertools.cycle")

    def forget_batches(self) -> None:
        """Count backward passes and batches from here on: an optimizer has stepped."""
        self.backwards = 0
        self.samples = 0
        self.items = []

    def after_step(self) -> None:
        """An optimizer step was taken, or skipped by a gradient scaler."""
        self.forget_batches()
        self.steps += 1
        if not self.telling:
            if self.steps == self._fixed:
                self._end("steps")
            return
        if self._source is not None:
            self._source.steps += 1
        held = self.state
        if not isinstance(held, Held):
            self.state = State.RUNNING
            return
        held.steps += 1
        self._listener.hold()
        begun = any(one.loader == held.iteration.loader and one is not held.iteration for one in self._recent)
        if begun and not held.iteration.keeps_batches:
            self._end(held.how)  # the last batch fetched ahead is consumed

    def end_held(self) -> None:
        """The end that is held is one."""
        if isinstance(self.state, Held):
            self._end(self.state.how)

    def restart(self) -> None:
        """Begin anew with the batches that the next step consumes: what was before is another training."""
        self.steps = 0
        self.state = State.UNSEEN if self._source is None else State.RUNNING
        self._feeds.clear()

    @property
    def at_end(self) -> bool:
        """Whether no step was taken since an epoch ended, or may have ended; True where loaders do not decide."""
        return not self.telling or self.state is State.ENDED or isinstance(self.state, Held)

    def exit(self, clean: bool, unchanged: bool) -> None:
        """The script is at its end.

        Args:
            clean: whether no exception ended it.
            unchanged: whether the weights are still those after the last step.
        """
        self._settle()
        held = self.state
        if isinstance(held, Held):
            if clean or held.how == "loader":
                self._end(held.how)
        elif self.telling and self.steps and clean and unchanged:
            self._end("exit")

    def _consumed_from(self) -> Iteration | None:
        """The pass whose batch a backward pass consumes: a held one first, then the last one fetched from."""
        held, source = self.state, self._source
        if isinstance(held, Held) and (held.iteration.waiting or not self._recent):
            return held.iteration
        running = [one for one in self._recent if one.running]
        dropped = [one for one in self._recent if not one.exhausted]
        ahead = [one for one in self._recent if one.fetched == 1 and (not source or one.loader == source.loader)]
        candidates = running or dropped or ahead
        return candidates[-1] if candidates else None

    def _require_one_length(self, iteration: Iteration) -> None:
        """Refuse two loaders that feed the same steps and end at different times."""
        mine = self._feeds[iteration.loader, iteration.length]
        if mine < 2 and not iteration.steps:
            return
        for (loader, length), times in self._feeds.items():
            rival = loader != iteration.loader and 2 * times >= mine and 2 * mine >= times > 1
            if rival and length != iteration.length:
                known = sorted(one for one in (length, iteration.length) if one is not None)
                of = f" ({' and '.join(map(str, known))} batches)" if len(known) > 1 else ""
                raise CannotTell(f"its steps take batches from two DataLoaders of different lengths at once{of}")

    def _hold(self, iteration: Iteration, how: str) -> None:
        self.state = Held(iteration, how)
        self._listener.hold()

    def _end(self, how: str) -> None:
        self.state = State.ENDED
        self.steps = 0
        self._feeds.clear()
        self._listener.end(how)
