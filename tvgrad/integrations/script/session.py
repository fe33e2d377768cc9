"""Session: everything that tvgrad does inside a traced script, kept apart from the script's own fate."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from tvgrad.errors import TvgradError
from tvgrad.integrations.logged import watch_trainer_logs
from tvgrad.integrations.script.clipping import Clipping
from tvgrad.integrations.script.epochs import CannotTell, Epochs, State
from tvgrad.integrations.script.find_trained_module import TrainedModule, choose, held_by, trained_modules
from tvgrad.integrations.script.loaders import LoaderWatch
from tvgrad.integrations.script.losses import Losses
from tvgrad.integrations.script.notes import claim, leave_note, say
from tvgrad.integrations.script.options import ScriptOptions, sibling
from tvgrad.integrations.script.script_recorder import ScriptRecorder, begins_to_train
from tvgrad.integrations.script.spread_recording import helps
from tvgrad.integrations.script.step_facts import StepFacts, only_makes_state
from tvgrad.numerics.device import distributed_rank


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
        steps = options.steps_per_epoch if options.record_at == "epochs" else 2**62
        self.epochs = Epochs(self, steps, lambda: self.guard(self._end_step))
        self.loaders = LoaderWatch(self.epochs, self.guard)
        self._recorder: ScriptRecorder | None = None
        self._process, self._first_out = os.getpid(), options.out
        self._thread: int | None = None
        self._stopped = self._exits = self._failed = self._step_open = self._stepped = False
        self._optimizers: tuple[torch.optim.Optimizer, ...] = ()
        self._trained: TrainedModule | None = None
        self._facts, self.losses = StepFacts(self.epochs), Losses()
        self._dormant: ScriptRecorder | None = None
        self._trainings, self._trial_steps = 1, 0
        self._gradients: list[tuple[int, int]] | None = None
        self._held: dict[int, torch.Tensor] = {}
        self._past, self._others = (weakref.WeakSet[torch.optim.Optimizer]() for _ in range(2))
        self._stepping: torch.optim.Optimizer | None = None

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
                if self._dormant is None or not isinstance(error, CannotTell):
                    self.stop(error)
        if self._exits and may_exit and os.getpid() == self._process:
            self._exits = False
            raise SystemExit(2)

    def before_backward(self, tensors: Any = None, gradients: Any = None) -> None:
        """A backward pass begins.

        Args:
            tensors: where.
            gradients: of them; None where they are losses.
        """
        self.epochs.backward()
        self.losses.begin_backward(tensors, gradients)
        self._gradients = self._present_gradients()

    def after_backward(self) -> None:
        """A backward pass has ended: one that left our gradients as they were is of another model's loss."""
        ours = self._gradients is None or self._gradients != self._present_gradients()
        self.epochs.backwards -= 0 if ours else 1
        self._gradients = None
        self.losses.end_backward(ours)

    def _present_gradients(self) -> list[tuple[int, int]] | None:
        """What tells gradients from later ones, where the script trains other models too."""
        if self._trained is None or (self.options.model is None and not self._others):
            return None
        gradients = [parameter.grad for parameter in self._trained.parameters.values()]
        return [(id(one), one._version) for one in gradients if one is not None]

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to step.

        Args:
            optimizer: any of the script's.
        """
        if not (self.epochs.backwards or self._step_open) and only_makes_state(optimizer):
            return
        followed = self._recorder or self._dormant
        if followed is not None and followed.returned:
            self._begin_anew("the pretrained weights were put back", followed, optimizer)
        if self._dormant is not None:
            return
        if self._recorder is None:
            self._start(optimizer)
        elif not self._ours(optimizer):
            self._meet(optimizer)
        if not self._ours(optimizer) or self._recorder is None or self._nested(optimizer):
            return
        self._stepped, self._stepping = True, optimizer
        if self._recorder.stepped_in_round(optimizer):
            self._end_step()
        if self.epochs.backwards == 0 and not self._step_open:
            self.epochs.backward()  # gradients that no backward pass of torch.autograd made
        self._check_epochs()

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped.

        Args:
            optimizer: any of the script's.
        """
        recorder = self._recorder
        if self._dormant is not None:
            self.epochs.forget_batches()
            self._trial_steps += optimizer is self._optimizers[0]
        if recorder is None or optimizer is not self._stepping:
            return
        self._stepping = None
        self._step_open = True
        recorder.note_step(**self._facts.so_far(self._held))
        self.epochs.forget_batches()
        if not recorder.in_round:
            self._end_step()

    def _log(self, metrics: dict[str, float]) -> None:
        if self._recorder is not None:
            self._recorder.log(metrics, self.epochs.state is State.ENDED)

    def _end_step(self) -> None:
        """All optimizers that take part in a step have stepped."""
        if self._step_open and self._recorder is not None:
            self._step_open = False
            self._facts.begin_step()
            self.losses.end_step()
            self._recorder.end_round()
            self.epochs.after_step()
            self._recorder.end_step()

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
            self._facts.clips.append(Clipping(parameters, total, most, euclidean, self._facts.unscaled, by_value))

    def unscaled(self, optimizer: torch.optim.Optimizer) -> None:
        """A gradient scaler has taken the loss scale out of gradients.

        Args:
            optimizer: whose.
        """
        self._facts.unscaled = self._facts.unscaled or not self._optimizers or self._ours(optimizer)

    def scaling(self, scale: float) -> None:
        """A gradient scaler is about to step.

        Args:
            scale: its loss scale.
        """
        self._facts.scale = scale
        self.losses.scale = scale
        self._stepped = False

    def scaled(self, optimizer: torch.optim.Optimizer) -> None:
        """A gradient scaler has stepped, or skipped the step.

        Args:
            optimizer: which.
        """
        skipped = not self._stepped and (self._recorder is None or self._ours(optimizer))
        if skipped and self._recorder is None:
            # The first attempts are often skipped, even for an epoch: they left the weights what they were.
            self._start(optimizer)
        if skipped and self._recorder is not None:
            self._end_step()
            self._recorder.note_skipped(optimizer, **self._facts.so_far(self._held))
            self._facts.begin_step()
            self.losses.end_step(skipped=True)
            self.epochs.after_step()
        self._facts.scale, self._facts.unscaled = None, False
        self.losses.scale = None

    def hold(self) -> None:
        """The epoch may end here."""
        if self._recorder is not None:
            self._recorder.hold(self.epochs.dropped)

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
        recorder, self._recorder = self._recorder, None
        # A trial before the training, a search for a rate say, need not have epochs.
        waits = isinstance(error, CannotTell) and not self.options.strict
        self._stopped, self._dormant = not waits, recorder if waits else None
        if waits and recorder is None:
            self._past.update(self._optimizers)
            self._failed = True
        self.epochs.restart()
        begun, reached = "nothing is recorded", ""
        if recorder is not None:
            with suppress(Exception):  # the first error is the one to tell
                recorder.add_info(stopped=str(error))
            with suppress(Exception):
                recorder.close(finished=False)
            begun, reached = "recording stops", recorder.kept
        words = str(error) if str(error) else type(error).__name__
        if not isinstance(error, TvgradError):
            words = f"{type(error).__name__}: {words}"
        goes_on = "the script is ended (--strict)" if self.options.strict else "the script goes on"
        say(f"{begun}, because {words}{reached}; {goes_on}")
        leave_note(self.options.notes, event="stopped", reason=words)
        self._exits = self.options.strict

    def close(self, clean: bool | None = None) -> None:
        """The script is at its end, `clean` or as Python tells: record what is complete, and let the writer finish."""
        if os.getpid() != self._process:
            return
        self._thread = threading.get_ident() if self._thread is not None else None
        ended_well = getattr(sys, "last_value", None) is None if clean is None else clean

        def finish() -> None:
            recorder = self._recorder
            if recorder is None:
                return
            self.epochs.exit(ended_well, recorder.unchanged)
            self._stopped = True  # no iterator that goes now means anything
            recorder.close(finished=ended_well)

        try:
            if self.active:
                finish()
        except Exception as error:  # noqa: BLE001
            self.stop(error)
        finally:
            self._stopped, self._exits = True, False

    def _start(self, optimizer: torch.optim.Optimizer) -> None:
        """The first step: find out what is trained, and record the weights before it."""
        if optimizer in self._others or optimizer in self._past:
            return
        if distributed_rank() > 0 and not helps(optimizer):
            self._stopped = True
            return
        found = trained_modules(optimizer, sys._getframe(), self._past)
        trained = choose(found, self.options.model)
        if trained is not None and self.options.frozen:
            trained = replace(trained, parameters=dict(trained.root.named_parameters()))
        if trained is None:
            self._others.add(optimizer)
            self.epochs.backwards = 0  # those were for its step
            self.losses.forget_step()
            return
        if self._thread is None and not claim(self.options.notes):
            self._stopped = True
            say(f"process {os.getpid()} is not recorded: another process of the command took the first step")
            return
        self._thread = threading.get_ident()
        self._trained, self._optimizers = trained, trained.optimizers
        self._held = {key: tensor for one in trained.optimizers for key, tensor in held_by(one).items()}
        if self.epochs.backwards == 0:
            self.epochs.backward()
        self._check_epochs()
        self._recorder = ScriptRecorder(trained, self.options, self.guard, self.losses, trial_steps=self._trial_steps)
        watch_trainer_logs(lambda metrics: self.guard(lambda: self._log(metrics)))
        if self._failed:
            say(f"another training begins, and is recorded in {self.options.out}")
        if self._failed or self._trainings > 1:
            leave_note(self.options.notes, event="anew")
        self._failed = False
        leave_note(self.options.notes, event="step", out=self.options.out)

    def _meet(self, optimizer: torch.optim.Optimizer) -> None:
        """Another optimizer steps: a wrapper or successor of ours, one of another model, or a new training.

        Raises:
            TvgradError: it trains another model, or what is not recorded.
        """
        if optimizer in self._others or self._nested(optimizer):
            return
        recorder, trained = self._recorder, self._trained
        assert recorder is not None
        assert trained is not None
        held = {key: tensor for key, tensor in held_by(optimizer).items() if tensor.requires_grad}
        recorded = {id(parameter) for parameter in trained.parameters.values()}
        if held and held.keys() <= recorded:
            self._optimizers = (*self._optimizers, optimizer)
            self._held |= held
            recorder.follow(optimizer)
            return
        inside = {id(parameter) for parameter in trained.root.parameters()}
        whole = self.options.model in {None, trained.whole, type(trained.root).__name__}
        if held.keys() & recorded or (whole and held.keys() & inside):
            late = next(tensor for key, tensor in held.items() if key not in recorded)
            raise TvgradError(begins_to_train(trained.root, late, recorder.steps))
        if self.options.model is not None:
            self._others.add(optimizer)
            return
        if optimizer in self._past or (recorder.points and not self.epochs.at_end):
            raise TvgradError(
                f"a second optimizer ({type(optimizer).__name__}) began to step after step {recorder.steps}, of "
                "another model: pick one by --model, or trace one training at a time"
            )
        self._begin_anew("another model is trained", recorder, optimizer)
        self._start(optimizer)

    def _begin_anew(self, why: str, followed: ScriptRecorder, optimizer: torch.optim.Optimizer) -> None:
        """A new training begins: what was recorded stays where epochs were, else it was a trial."""
        self._end_step()
        self.epochs.end_held()
        whole = self._dormant is None and followed.has_epochs and self.epochs.at_end
        if self._dormant is None:
            followed.close(finished=whole)
        begins = f"{why} after step {followed.steps}, and a new training begins"
        self._trainings += 1
        self._trial_steps = self._trial_steps + followed.steps if followed.returned else 0
        if whole:
            self._past.update(one for one in self._optimizers if one is not optimizer)
            out = sibling(self._first_out, self._trainings, self.options.overwrite)
            say(f"{begins}: it is recorded in {out}, and {self.options.out} holds the one before")
            self.options = replace(self.options, out=out, training=self.options.training + 1)
        else:
            say(f"{begins}: what was recorded of the trial before it is replaced")
            self.options = replace(self.options, overwrite=True)
        self._recorder = self._dormant = None
        self._optimizers, self._step_open = (), False
        self._facts.begin_step()
        self.losses.clear()
        self.epochs.restart()

    def _ours(self, optimizer: torch.optim.Optimizer) -> bool:
        return any(optimizer is one for one in self._optimizers)

    def _nested(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether one of ours is in the middle of its step, and this one does the work for it."""
        stepping = self._stepping
        return stepping not in {None, optimizer} and held_by(optimizer).keys() <= held_by(stepping).keys()

    def _check_epochs(self) -> None:
        self.loaders.require_own_thread()
        self.epochs.before_step()
