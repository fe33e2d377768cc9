"""Ends of epochs, told from what a loop does: one loop a case, in a world without torch."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator

import pytest

from tvgrad.integrations.script.epochs import CannotTell, Epochs, Iteration


class Batch:
    """Something that a weak reference can follow."""


def alive(batch: Batch) -> Callable[[], bool]:
    reference = weakref.ref(batch)
    return lambda: reference() is not None


class World:
    """Plays a script: loaders are iterated, batches are used, and the number of steps at each end is noted."""

    def __init__(self, steps_per_epoch: int | None = None) -> None:
        self.epochs = Epochs(self, steps_per_epoch)
        self.steps = 0
        self.held: int | None = None
        self.ends: list[tuple[int, str]] = []

    def hold(self) -> None:
        self.held = self.steps

    def end(self, how: str) -> None:
        self.ends.append((self.steps if self.held is None else self.held, how))
        self.held = None

    def batches(self, loader: int, length: int | None, count: int | None = None) -> Iterator[object]:
        """A pass over a loader; it is dropped when the generator is closed."""
        iteration = Iteration(loader, length)
        self.epochs.begin(loader)
        try:
            for _ in range(count if length is None else length):  # type: ignore[arg-type]
                made = [Batch()]
                self.epochs.fetch(iteration, 4, alive(made[0]))
                yield made.pop()  # only the script holds it
            self.epochs.exhaust(iteration)
        finally:
            self.epochs.drop(iteration)

    def backward(self) -> None:
        self.epochs.backward()

    def step(self) -> None:
        self.epochs.before_step()
        self.steps += 1
        self.epochs.after_step()

    def train(self) -> None:
        self.backward()
        self.step()


def one_ahead(batches: Iterator[object]) -> Iterator[object]:
    batch = next(batches)
    for following in batches:
        yield batch
        batch = following
    yield batch


def test_a_loop_over_a_loader() -> None:
    world = World()
    for _ in range(3):
        for _ in world.batches(1, 4):
            world.train()
    assert world.ends == [(4, "loader"), (8, "loader"), (12, "loader")]


def test_evaluation_loaders_end_too() -> None:
    world = World()
    for _ in world.batches(2, 3):  # before the training
        pass
    for _ in range(2):
        for index, _ in enumerate(world.batches(1, 4)):
            world.train()
            if index == 1:  # in the middle of an epoch
                for _ in world.batches(2, 3):
                    pass
        for _ in world.batches(2, 3):
            pass
    assert world.ends == [(4, "loader"), (8, "loader")]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_wrapper_that_fetches_one_batch_ahead(length: int) -> None:
    world = World()
    for _ in range(3):
        for _ in one_ahead(world.batches(1, length)):
            world.train()
        for _ in world.batches(2, 3):
            pass
    world.epochs.exit(clean=True, unchanged=True)
    assert world.ends == [(length * n, "loader") for n in (1, 2, 3)]


def test_a_wrapper_that_fetches_ahead_into_the_next_epoch() -> None:
    world = World()

    def forever() -> Iterator[object]:
        while True:
            yield from world.batches(1, 4)

    ahead = one_ahead(forever())
    for _ in range(9):
        next(ahead)
        world.train()
    assert world.ends == [(4, "loader"), (8, "loader")]


def test_the_last_group_of_accumulated_gradients_is_flushed_after_the_loop() -> None:
    world = World()
    for _ in range(2):
        for index, _ in enumerate(world.batches(1, 5), start=1):
            world.backward()
            if index % 2 == 0:
                world.step()
        world.step()
    world.epochs.exit(clean=True, unchanged=True)
    assert world.ends == [(3, "loader"), (6, "loader")]


def test_the_last_group_of_accumulated_gradients_is_left_over() -> None:
    world = World()
    for _ in range(2):
        for index, _ in enumerate(world.batches(1, 5), start=1):
            world.backward()
            if index % 2 == 0:
                world.step()
    world.epochs.exit(clean=True, unchanged=True)
    assert world.ends == [(2, "loader"), (4, "loader")]


def test_the_samples_of_a_step() -> None:
    world = World()
    seen = []
    for index, _ in enumerate(world.batches(1, 5), start=1):
        world.backward()
        if index in {3, 5}:
            seen.append((world.epochs.backwards, world.epochs.samples))
            world.step()
    assert seen == [(3, 12), (2, 8)]


def test_a_break_ends_an_epoch() -> None:
    world = World()
    for _ in range(3):
        batches = world.batches(1, 10)
        for index, _ in enumerate(batches):
            if index == 4:
                break
            world.train()
        batches.close()
    world.epochs.exit(clean=True, unchanged=True)
    assert world.ends == [(4, "break"), (8, "break"), (12, "break")]


def test_a_break_where_the_iterator_lives_on() -> None:
    world = World()
    living = []
    for _ in range(2):
        batches = world.batches(1, 10)
        living.append(batches)
        for _ in range(4):
            next(batches)
            world.train()
    assert world.ends == [(4, "break")]
    world.epochs.exit(clean=True, unchanged=True)
    assert world.ends == [(4, "break"), (8, "exit")]


def test_an_interrupted_epoch_is_none() -> None:
    world = World()
    batches = world.batches(1, 10)
    for _ in range(4):
        next(batches)
        world.train()
    batches.close()
    world.epochs.exit(clean=False, unchanged=True)
    assert world.ends == []


def test_weights_that_were_replaced_are_no_end() -> None:
    world = World()
    batches = world.batches(1, 10)
    next(batches)
    world.train()
    world.epochs.exit(clean=True, unchanged=False)
    assert world.ends == []


def test_a_fixed_number_of_steps_needs_no_loader() -> None:
    world = World(steps_per_epoch=3)
    for _ in range(8):
        world.train()
    world.epochs.exit(clean=True, unchanged=True)
    assert world.ends == [(3, "steps"), (6, "steps")]


def test_no_loader_cannot_tell() -> None:
    world = World()
    with pytest.raises(CannotTell, match=r"no torch.utils.data.DataLoader.*--steps-per-epoch"):
        world.train()


def test_a_new_iterator_for_each_batch_cannot_tell() -> None:
    world = World()
    batches = world.batches(1, 10)
    next(batches)
    batches.close()
    with pytest.raises(CannotTell, match=r"next\(iter\(loader\)\).*--steps-per-epoch"):
        world.train()


def test_a_new_iterator_kept_for_each_batch_cannot_tell() -> None:
    world = World()
    next(world.batches(2, 10))
    living = [world.batches(1, 10)]
    next(living[0])
    world.train()
    living.append(world.batches(1, 10))
    with pytest.raises(CannotTell, match="new iterator"):
        next(living[1])


@pytest.mark.parametrize("evaluated", [False, True])
def test_batches_that_are_used_again_cannot_tell(evaluated: bool) -> None:
    world = World()
    for _ in world.batches(1, 4):
        world.train()
    for _ in world.batches(2, 3) if evaluated else ():
        pass
    world.backward()
    with pytest.raises(CannotTell, match="without a new batch"):
        world.step()
    assert world.ends == [(4, "loader")]


def test_two_loaders_of_different_lengths_cannot_tell() -> None:
    world = World()
    other = world.batches(2, 9)

    def play() -> None:
        for _ in world.batches(1, 4):
            next(other)
            world.train()

    with pytest.raises(CannotTell, match=r"two DataLoaders of different lengths at once \(4 and 9 batches\)"):
        play()


def test_two_zipped_loaders() -> None:
    world = World()
    for _ in range(2):
        for _ in zip(world.batches(1, 4), world.batches(2, 4), strict=False):
            world.train()
    world.epochs.exit(clean=True, unchanged=True)
    assert [steps for steps, _ in world.ends] == [4, 8]


def test_a_fixed_number_of_steps_where_the_only_batch_is_fetched_ahead() -> None:
    world = World(steps_per_epoch=3)
    for _ in range(4):
        for _ in one_ahead(world.batches(1, 1)):
            world.train()
    world.epochs.exit(clean=True, unchanged=True)
    assert world.ends == [(3, "steps")]


def groups_ahead(batches: Iterator[object], size: int) -> Iterator[list[object]]:
    """Lists of batches that a step accumulates, from a loader that is one batch ahead, as Trainers fetch them."""
    ahead = one_ahead(batches)
    while group := list(itertools.islice(ahead, size)):
        yield group


@pytest.mark.parametrize(("length", "size", "expected"), [(6, 2, [8, 8, 8]), (7, 3, [12, 12, 4]), (4, 1, [4] * 4)])
def test_a_group_that_is_fetched_together_is_consumed_batch_by_batch(
    length: int, size: int, expected: list[int]
) -> None:
    world = World()
    for _ in range(2):
        found = []
        for group in groups_ahead(world.batches(1, length), size):
            for _ in group:
                world.backward()
            found.append(world.epochs.samples)
            world.step()
        assert found == expected
    assert [how for _, how in world.ends] == ["loader", "loader"][: len(world.ends)]


def test_two_backward_passes_of_one_batch_consume_one_where_batches_are_fetched_ahead() -> None:
    world = World()
    found = []
    for _ in one_ahead(world.batches(1, 5)):
        world.backward()
        world.backward()
        found.append(world.epochs.samples)
        world.step()
    assert found == [4] * 5
