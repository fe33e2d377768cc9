"""TrainingRecorder: what the callbacks of training libraries have in common."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.integrations.logged import numbers_of_the_model
from tvgrad.record.loop_gradients import LoopGradients, LossOf
from tvgrad.record.recorder import Recorder
from tvgrad.vectors.parameters import trainable_parameters

OWN_OPTIONS = ("strict", "full_gradients")
"""Options of callbacks that are none of a `Recorder`."""


class TrainingRecorder:
    """Opens a `Recorder` when a library's training begins, and closes it when the training ends.

    Attributes:
        recorder: the recorder while a training is on, else None.
    """

    def __init__(self, directory: str | os.PathLike[str], options: Mapping[str, Any]) -> None:
        """Prepare to record.

        Args:
            directory: the run directory to make.
            options: options of `Recorder`; `strict`: end the training where recording fails; `full_gradients`:
                `epochs` to measure full-batch gradients at each recorded point.

        Raises:
            TvgradError: `full_gradients` is something else.
        """
        full = options.get("full_gradients")
        if full not in {None, "epochs"}:
            raise TvgradError(f"full_gradients={full!r} is not understood: give 'epochs', or leave it out")
        self._full_gradients = full is not None
        self.recorder: Recorder | None = None
        self._directory = directory
        self._strict = bool(options.get("strict"))
        self._options = {"background": True, **{name: one for name, one in options.items() if name not in OWN_OPTIONS}}
        self._steps = 0
        self._logged: dict[str, float] = {}

    def attempt(self, action: Callable[[], None]) -> None:
        """Do something of tvgrad's: what it raises stops the recording with a warning, and never the training.

        Args:
            action: what to do.

        Raises:
            Exception: what the action raised, where the callback was made with `strict=True`.
        """
        try:
            action()
        except Exception as error:
            recorder, self.recorder = self.recorder, None
            if recorder is not None:
                with suppress(Exception):  # the first error is the one to tell
                    recorder.__exit__(type(error), error, None)
            if self._strict:
                raise
            kept = f"{self._directory} keeps what was recorded before" if recorder else "nothing is recorded"
            why = str(error) if isinstance(error, TvgradError) else f"{type(error).__name__}: {error}"
            warnings.warn(
                f"tvgrad: recording stops, because {why}; {kept}, and the training goes on (strict=True ends it)",
                stacklevel=2,
            )

    def begin(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        clips: bool,
        training: Callable[[], tuple[Any, LossOf]] | None = None,
    ) -> None:
        """Record the weights that training starts from.

        Args:
            model: the module, without a wrapper for several processes.
            optimizers: its optimizers, of which a step is one step of each; a library's wrapper round one is taken off.
            clips: whether the library clips gradients: by which factor is not told to callbacks.
            training: returns the library's loader and its training step, where full-batch gradients are wanted.

        Raises:
            TvgradError: there is no optimizer, or the run cannot be made.
        """
        if not optimizers:
            raise TvgradError("the training has no optimizer, and a run records what one does: give the library one")
        # Accelerate's and Lightning's wrappers share the class, not the hooks.
        inner = [getattr(one, "optimizer", one) for one in optimizers]
        measured = None
        if self._full_gradients and training is not None:
            measured = LoopGradients(model, trainable_parameters(model), *training())
        recorder = Recorder(self._directory, model, inner, data=measured, **self._options)
        self.recorder = recorder.__enter__()
        if clips:
            self.recorder.add_info(clipping_unrecorded=True)
        self._steps = recorder.steps

    def after_batch(self) -> None:
        """Count the step that a batch has ended with, where it has (gradients may be accumulated)."""
        if self.recorder is not None and self.recorder.steps != self._steps:
            self._steps = self.recorder.steps
            self.recorder.end_step()

    def after_epoch(self, metrics: Mapping[str, float]) -> None:
        """Record the end of an epoch.

        Args:
            metrics: name -> number.
        """
        if self.recorder is not None:
            logged, self._logged = self._logged, {}
            self.recorder.end_epoch({**logged, **metrics})

    def log(self, logged: Mapping[str, Any]) -> None:
        """Note what a library logs: of the epoch that has just ended, or of the one that goes on.

        What is logged before the first step is left out: it is a measurement of the pretrained weights, or none.

        Args:
            logged: name -> value; only numbers that describe the model are kept.
        """
        kept = numbers_of_the_model(logged)
        if self.recorder is None or not self.recorder.steps or not kept:
            return
        if self.recorder.epoch and not self.recorder.steps_in_epoch:
            self.recorder.note_metrics(kept)
        else:
            self._logged.update(kept)

    def finish(self, error: BaseException | None = None) -> None:
        """Write what is waiting, and give the directory back; a second call does nothing.

        Args:
            error: what ended the training early.
        """
        recorder, self.recorder = self.recorder, None
        if recorder is not None:
            recorder.__exit__(None if error is None else type(error), error, None)
