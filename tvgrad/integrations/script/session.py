"""Session: everything that tvgrad does inside a traced script, kept apart from the script's own fate."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from tvgrad.errors import TvgradError
from tvgrad.integrations.script.clipping import Clipping, clip_facts
from tvgrad.integrations.script.epochs import CannotTell, Epochs
from tvgrad.integrations.script.find_trained_module import choose, held_by, trained_modules
from tvgrad.integrations.script.loaders import LoaderWatch
from tvgrad.integrations.script.notes import claim, leave_note, say
from tvgrad.integrations.script.options import ScriptOptions
from tvgrad.integrations.script.script_recorder import ScriptRecorder
from tvgrad.record.batch_items import sum_of_fingerprints


class Session:
    """Follows a script from its import of torch to its end, and records the first process that takes a step.

    No error of tvgrad leaves it: recording stops with one sentence, and the script goes on; under `--strict` the
    script ends there.
    """

    def __init__(self, options: ScriptOptions) -> None:
        """Start before the script does.

        Args:
            options: how to record.
        """
        self.options = options
        self.epochs = Epochs(self, options.steps_per_epoch if options.record_at == "epochs" else 2**62)
        self.loaders = LoaderWatch(self.epochs, self.guard)
        self._recorder: ScriptRecorder | None = None
        self._process = os.getpid()
        self._thread: int | None = None
        self._stopped = False
        self._exits = False
        self._optimizer: torch.optim.Optimizer | None = None
        self._held: dict[int, torch.Tensor] = {}
        self._others: set[int] = set()
        self._clips: list[Clipping] = []
        self._unscaled = False
        self._scale: float | None = None
        self._stepped = False
        self._in_step = False

    @property
    def active(self) -> bool:
        """Whether there is something to watch still, in this process and thread."""
        if self._stopped or os.getpid() != self._process:
            return False
        return self._thread is None or threading.get_ident() == self._thread

    def guard(self, action: Callable[[], None], may_exit: bool = True) -> None:
        """Run something of tvgrad's, unless recording has stopped; what it raises stops recording.

        Args:
            action: what to run.
            may_exit: whether the script can be ended here (Python ignores what is raised while an object goes away).

        Raises:
            SystemExit: recording has failed, and the script was started with `--strict`.
        """
        if self.active:
            try:
                action()
            except Exception as error:  # noqa: BLE001 - nothing of ours may end the user's training
                self.stop(error)
        if self._exits and may_exit and os.getpid() == self._process:
            self._exits = False
            raise SystemExit(2)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to step.

        Args:
            optimizer: any of the script's.
        """
        if self._recorder is None:
            self._start(optimizer)
        elif optimizer is not self._optimizer:
            self._meet(optimizer)
        if optimizer is not self._optimizer or self._recorder is None:
            return
        self._stepped = self._in_step = True
        if self.epochs.backwards == 0:
            self.epochs.backward()  # gradients that no backward pass of torch.autograd made
        self._check_epochs()

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped.

        Args:
            optimizer: any of the script's.
        """
        recorder = self._recorder
        if recorder is None or optimizer is not self._optimizer:
            return
        self._in_step = False
        recorder.note_step(**self._facts())
        self.epochs.after_step()
        recorder.end_step()

    def clipped(
        self,
        parameters: list[torch.Tensor],
        total: torch.Tensor,
        most: float,
        *,
        euclidean: bool = False,
        by_value: bool = False,
    ) -> None:
        """Gradients were clipped.

        Args:
            parameters: whose.
            total: their norm before, or their largest coordinate in size.
            most: the largest norm, or size of a coordinate, that was let through.
            euclidean: whether it is the 2-norm.
            by_value: whether each coordinate was clipped by itself.
        """
        if not self._held or any(id(parameter) in self._held for parameter in parameters):
            self._clips.append(Clipping(parameters, total, most, euclidean, self._unscaled, by_value))

    def unscaled(self, optimizer: torch.optim.Optimizer) -> None:
        """A gradient scaler has taken the loss scale out of gradients.

        Args:
            optimizer: whose.
        """
        self._unscaled = self._unscaled or self._optimizer is None or optimizer is self._optimizer

    def scaling(self, scale: float) -> None:
        """A gradient scaler is about to step.

        Args:
            scale: its loss scale.
        """
        self._scale = scale
        self._stepped = False

    def scaled(self, optimizer: torch.optim.Optimizer) -> None:
        """A gradient scaler has stepped, or skipped the step.

        Args:
            optimizer: which.
        """
        skipped = not self._stepped and (self._recorder is None or optimizer is self._optimizer)
        if skipped and self._recorder is None:
            # The first attempts are often skipped, even for an epoch: they left the weights what they were.
            self._start(optimizer)
        if skipped and self._recorder is not None:
            self._recorder.note_skipped(optimizer, **self._facts())
            self.epochs.after_step()
        self._scale, self._unscaled = None, False

    def hold(self) -> None:
        """The epoch may end here."""
        if self._recorder is not None:
            self._recorder.hold()

    def end(self, how: str) -> None:
        """The epoch has ended.

        Args:
            how: loader, break, steps or exit.
        """
        if self._recorder is not None:
            self._recorder.end(how)

    def stop(self, error: BaseException) -> None:
        """Stop recording, with one sentence; what was listed stays.

        Args:
            error: the reason.
        """
        self._stopped = True
        recorder, self._recorder = self._recorder, None
        begun, reached = "nothing is recorded", ""
        if recorder is not None:
            begun, reached = "recording stops", f"; {self.options.out} keeps what was recorded before"
            with suppress(Exception):  # the first error is the one to tell
                recorder.add_info(stopped=str(error))
            with suppress(Exception):
                recorder.close(finished=False)
        words = str(error) if str(error) else type(error).__name__
        if not isinstance(error, TvgradError):
            words = f"{type(error).__name__}: {words}"
        goes_on = "the script is ended (--strict)" if self.options.strict else "the script goes on"
        say(f"{begun}, because {words}{reached}; {goes_on}")
        leave_note(self.options.notes, event="stopped", reason=words)
        self._exits = self.options.strict

    def close(self) -> None:
        """The script is at its end: record what is complete, and let the writer finish."""
        if os.getpid() != self._process:
            return
        self._thread = threading.get_ident() if self._thread is not None else None
        clean = getattr(sys, "last_value", None) is None

        def finish() -> None:
            recorder = self._recorder
            if recorder is None:
                return
            self.epochs.exit(clean, recorder.unchanged)
            self._stopped = True  # no iterator that goes now means anything
            recorder.close(finished=clean)

        try:
            if self.active:
                finish()
        except Exception as error:  # noqa: BLE001
            self.stop(error)
        finally:
            self._stopped, self._exits = True, False

    def _start(self, optimizer: torch.optim.Optimizer) -> None:
        """The first step: find out what is trained, and record the weights before it."""
        if id(optimizer) in self._others:
            return
        if _rank() > 0:
            self._stopped = True
            return
        found = trained_modules(optimizer, sys._getframe())
        trained = choose(found, self.options.model)
        if trained is None:
            self._others.add(id(optimizer))
            return
        if self._thread is None and not claim(self.options.notes):
            self._stopped = True
            say(f"process {os.getpid()} is not recorded: another process of the command took the first step")
            return
        self._thread = threading.get_ident()
        self._optimizer, self._held = optimizer, held_by(optimizer)
        if self.epochs.backwards == 0:
            self.epochs.backward()
        self._check_epochs()
        self._recorder = ScriptRecorder(trained, self.options, self.guard)
        leave_note(self.options.notes, event="step")

    def _meet(self, optimizer: torch.optim.Optimizer) -> None:
        """Another optimizer steps: a wrapper or successor of ours, one that was not picked, or a new training."""
        if id(optimizer) in self._others or self._nested_in_ours(optimizer):
            return
        recorder = self._recorder
        if recorder is not None and held_by(optimizer).keys() == self._held.keys():
            self._optimizer = optimizer
            recorder.follow(optimizer)
            return
        if self.options.model is not None:
            self._others.add(id(optimizer))
            return
        raise TvgradError(
            f"a second optimizer ({type(optimizer).__name__}) began to step after step "
            f"{0 if recorder is None else recorder.steps}: pick one by --model, or trace one training at a time"
        )

    def _nested_in_ours(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether ours is in the middle of its step, and this one does the work for it."""
        return self._in_step and held_by(optimizer).keys() <= self._held.keys()

    def _check_epochs(self) -> None:
        fetcher = self.loaders.fetcher
        if self.epochs.telling and fetcher is not None and fetcher != threading.get_ident():
            raise CannotTell("another thread fetches the batches ahead of the steps")
        self.epochs.before_step()

    def _facts(self) -> dict[str, Any]:
        """What is known of the step besides the optimizer."""
        facts: dict[str, Any] = {"accumulated": self.epochs.backwards}
        if self.epochs.samples:
            facts["batch_size"] = self.epochs.samples
        fingerprint = sum_of_fingerprints([items.fingerprint for items in self.epochs.items])
        if fingerprint is not None:
            facts["batch_fingerprint"] = fingerprint
        facts |= clip_facts(self._clips, self._held, self._scale is not None)
        if self._scale is not None:
            facts["loss_scale"] = self._scale
        self._clips = []
        return facts


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
