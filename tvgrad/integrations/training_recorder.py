"""TrainingRecorder: what the callbacks of training libraries have in common."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.record.recorder import Recorder


class TrainingRecorder:
    """Opens a `Recorder` when a library's training begins, and closes it when the training ends.

    Attributes:
        recorder: the recorder while a training is on, else None.
    """

    def __init__(self, directory: str | os.PathLike[str], options: Mapping[str, Any]) -> None:
        """Prepare to record.

        Args:
            directory: the run directory to make.
            options: options of `Recorder`.
        """
        self.recorder: Recorder | None = None
        self._directory = directory
        self._options = {"background": True, **options}
        self._steps = 0

    def begin(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], clips: bool) -> None:
        """Record the weights that training starts from.

        Args:
            model: the module, without a wrapper for several processes.
            optimizers: its optimizers; a library's wrapper round one is taken off.
            clips: whether the library clips gradients: by which factor is not told to callbacks.

        Raises:
            TvgradError: there is not exactly one optimizer, or the run cannot be made.
        """
        if len(optimizers) != 1:
            raise TvgradError(
                f"the training has {len(optimizers)} optimizers, and a run holds one: record a part of it by "
                "`tvgrad trace --model NAME`, or by a tvgrad.Recorder of your own"
            )
        optimizer = optimizers[0]
        # Accelerate's and Lightning's wrappers share the class, not the hooks.
        inner = getattr(optimizer, "optimizer", optimizer)
        recorder = Recorder(self._directory, model, inner, **self._options)
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
            self.recorder.end_epoch(metrics)

    def finish(self, error: BaseException | None = None) -> None:
        """Write what is waiting, and give the directory back; a second call does nothing.

        Args:
            error: what ended the training early.
        """
        recorder, self.recorder = self.recorder, None
        if recorder is not None:
            recorder.__exit__(None if error is None else type(error), error, None)
