"""BackgroundWriter: writes points in a thread, so that training waits for a copy in memory and not for a disk."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from tvgrad import system
from tvgrad.errors import TvgradError
from tvgrad.store.writer import Content, RunWriter
from tvgrad.vectors.parameters import Weights

_PRESENT: weakref.WeakSet[BackgroundWriter] = weakref.WeakSet()


class BackgroundWriter:
    """A `RunWriter` whose work is done by one thread, in the order in which it was asked for.

    One point may wait to be written: its tensors lie in buffers that the next point needs, so a caller that comes back
    too early waits. A point exists when the thread has listed it, not when `add` returns. An error in the thread is
    raised by the next call and by all that follow it, and nothing more is written.
    """

    def __init__(self, opened: Callable[[], RunWriter]) -> None:
        """Open the run in the thread.

        Args:
            opened: makes the writer: `RunWriter.create` or `RunWriter.resume` with its arguments.
        """
        self._opened = opened
        self._inner: RunWriter | None = None
        self._tasks: deque[Callable[[], None]] = deque()
        self._condition = threading.Condition()
        self._busy = False
        self._stopped = False
        self._error: BaseException | None = None
        self._told = False
        self._buffers: dict[str, Weights] = {}
        self._process = os.getpid()
        # A daemon, because the interpreter joins other threads before it runs the exit handlers that end this one.
        self._thread = threading.Thread(target=self._work, name="tvgrad writer", daemon=True)
        self._thread.start()
        _PRESENT.add(self)
        self._submit(self._open)

    def copied(self, kind: str, tensors: Mapping[str, torch.Tensor]) -> Weights:
        """Copy tensors into buffers that are used again for the next point.

        Args:
            kind: what they are; each kind has buffers of its own.
            tensors: name -> tensor on any device.

        Returns:
            Name -> CPU tensor, to be passed to `add`.
        """
        self.wait()
        held = self._buffers.setdefault(kind, {})
        for name, tensor in tensors.items():
            plain = tensor.detach()
            if name not in held or held[name].shape != plain.shape or held[name].dtype != plain.dtype:
                held[name] = torch.empty(plain.shape, dtype=plain.dtype, device="cpu")
            held[name].copy_(plain)
        return {name: held[name] for name in tensors}

    def add(
        self, number: int, steps: int, tensors: Mapping[str, Content], metrics: Mapping[str, float], **rest: Any
    ) -> None:
        """Have a point recorded.

        Args:
            number: epochs (or steps) done.
            steps: optimizer steps done.
            tensors: kind -> tensors that stay as they are until the next `wait`, or what makes them, in the thread.
            metrics: name -> number.
            **rest: as for `RunWriter.add`.
        """
        self._submit(lambda: self._writer().add(number, steps, tensors, metrics, **rest))

    def amend(self, number: int, tensors: Mapping[str, Weights], metrics: Mapping[str, float]) -> None:
        """Have something added to a point that was asked for before.

        Args:
            number: the point.
            tensors: as for `RunWriter.amend`.
            metrics: name -> number.
        """
        self._submit(lambda: self._writer().amend(number, tensors, metrics))

    def wait(self) -> None:
        """Return when all that was asked for is done."""
        with self._condition:
            self._condition.wait_for(lambda: not self._tasks and not self._busy)
        self._raise()

    @contextmanager
    def at_rest(self) -> Generator[None]:
        """Keep the thread from its work, once all that was asked for is done; what failed is not raised here.

        In a process that was forked, which has no such thread, and in the thread itself, nothing is waited for.

        Yields:
            None, while no file of the run is open for writing.
        """
        if os.getpid() != self._process or threading.current_thread() is self._thread:
            yield
            return
        with self._condition:
            self._condition.wait_for(lambda: not self._tasks and not self._busy)
            yield

    def may_hold(self, descriptor: int) -> bool:
        """Tell whether the thread may have opened a descriptor, or be about to.

        Args:
            descriptor: its number.

        Returns:
            False where the thread has nothing to do, and where the number is that of a file outside the run.
        """
        if os.getpid() != self._process or not (self._busy or self._tasks):
            return False
        if threading.current_thread() is self._thread:
            return False
        path = system.path_of_descriptor(descriptor)
        if path is None or self._inner is None:
            return True
        return path.startswith(os.path.realpath(self._inner.root) + os.sep)

    def update_info(self, **facts: Any) -> None:
        """Add facts to the run's description, after the points so far.

        Args:
            facts: plain values.
        """
        self._submit(lambda: self._writer().update_info(**facts))

    def extend_info(self, name: str, more: list[Any] | dict[str, Any]) -> None:
        """Add to a fact of the run's description, after the points so far.

        Args:
            name: of the fact.
            more: as for `RunWriter.extend_info`.
        """
        self._submit(lambda: self._writer().extend_info(name, more))

    def finish(self) -> None:
        """Note that the training came to its planned end, when all is written."""
        self._settled().finish()

    def read_state(self) -> tuple[Weights, dict[str, Any]] | None:
        """Read what the last point kept for a resume.

        Returns:
            Tensors and plain values, or None where nothing was kept.
        """
        return self._settled().read_state()

    def close(self) -> None:
        """Write what is waiting, give the directory back and end the thread; a second call does nothing.

        Raises:
            BaseException: what went wrong in the thread and was not raised before.
        """
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        self._thread.join()
        if self._inner is not None:
            self._inner.close()
        if not self._told:
            self._raise()

    def _open(self) -> None:
        self._inner = self._opened()

    def _writer(self) -> RunWriter:
        if self._inner is None:
            raise TvgradError("the run was not opened: see the error before this one")
        return self._inner

    def _settled(self) -> RunWriter:
        self.wait()
        return self._writer()

    def _submit(self, task: Callable[[], None]) -> None:
        self._raise()
        with self._condition:
            if self._stopped:
                raise TvgradError("the run is closed: nothing more can be recorded in it")
            self._tasks.append(task)
            self._condition.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            self._told = True
            raise self._error

    def _work(self) -> None:
        failed = False
        while True:
            with self._condition:
                self._busy = False
                self._condition.notify_all()
                self._condition.wait_for(lambda: bool(self._tasks) or self._stopped)
                if not self._tasks:
                    return
                task = self._tasks.popleft()
                self._busy = True
            if failed:
                continue
            try:
                task()
            except BaseException as error:  # noqa: BLE001 - handed to the thread that asked
                self._error, failed = error, True


@contextmanager
def writers_at_rest() -> Generator[None]:
    """Keep all writers of this process from their work, once it is done: their threads have no file open.

    Yields:
        None, while they rest.
    """
    with ExitStack() as resting:
        for writer in list(_PRESENT):
            resting.enter_context(writer.at_rest())
        yield


def may_be_a_writers(descriptor: int) -> bool:
    """Tell whether a writer's thread may have opened a descriptor, or be about to.

    Args:
        descriptor: its number.

    Returns:
        False where it is certain that closing it by its number takes no file from a writer.
    """
    return any(writer.may_hold(descriptor) for writer in list(_PRESENT))


def start_writer(opened: Callable[[], RunWriter], background: bool) -> RunWriter | BackgroundWriter:
    """Open a run for writing.

    Args:
        opened: makes the writer.
        background: whether to write in a thread.

    Returns:
        The writer, or one that hands everything to it.
    """
    return BackgroundWriter(opened) if background else opened()
