"""RecorderCallback for `transformers.Trainer`: records a run beside the training, by a `tvgrad.Recorder`."""

from __future__ import annotations

import os
from typing import Any

from tvgrad.errors import TvgradError
from tvgrad.integrations.training_recorder import TrainingRecorder

try:
    from transformers import TrainerCallback
except ImportError:  # said when a callback is made: the module itself can be imported everywhere
    TrainerCallback = None


class RecorderCallback(TrainerCallback or object):  # type: ignore[misc]
    """Records weights and consumed gradients at the end of every epoch of a Trainer, on its first process.

    Pass it as `Trainer(..., callbacks=[RecorderCallback("runs/mine")])`. `tvgrad trace -- COMMAND` records more of the
    steps (batch sizes, clip factors, loss scales) and needs no callback.
    """

    def __init__(self, directory: str | os.PathLike[str], **options: Any) -> None:
        """Prepare to record; the directory is made when training begins.

        Args:
            directory: the run directory to make.
            **options: options of `tvgrad.Recorder`: objective, record_at, record, keep, groups, name, overwrite; and
                `strict`: end the training where recording fails, instead of a warning.

        Raises:
            TvgradError: transformers is not installed.
        """
        if TrainerCallback is None:
            raise TvgradError("the Trainer's callback needs transformers: pip install 'tvgrad[hf]'")
        super().__init__()
        self._training = TrainingRecorder(directory, options)

    def on_train_begin(self, args: Any, state: Any, control: Any, **present: Any) -> None:
        """Record the pretrained weights.

        Args:
            args: the Trainer's arguments.
            state: its state.
            control: what callbacks may ask of it.
            **present: its model and optimizer, among others.
        """
        if state.is_world_process_zero:
            model, optimizers, clips = present["model"], [present["optimizer"]], bool(args.max_grad_norm)
            self._training.attempt(lambda: self._training.begin(model, optimizers, clips))

    def on_step_end(self, args: Any, state: Any, control: Any, **present: Any) -> None:
        """Record the step where `record_at` names it.

        Args:
            args: the Trainer's arguments.
            state: its state.
            control: what callbacks may ask of it.
            **present: not used.
        """
        self._training.attempt(self._training.after_batch)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **present: Any) -> None:
        """Record the epoch.

        Args:
            args: the Trainer's arguments.
            state: its state.
            control: what callbacks may ask of it.
            **present: not used.
        """
        self._training.attempt(lambda: self._training.after_epoch({}))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **present: Any) -> None:
        """Keep what the Trainer logs (losses, and the metrics of an evaluation) for metrics.csv.

        Args:
            args: the Trainer's arguments.
            state: its state.
            control: what callbacks may ask of it.
            logs: name -> value.
            **present: not used.
        """
        self._training.attempt(lambda: self._training.log(logs or {}))

    def on_train_end(self, args: Any, state: Any, control: Any, **present: Any) -> None:
        """Close the run.

        Args:
            args: the Trainer's arguments.
            state: its state.
            control: what callbacks may ask of it.
            **present: not used.
        """
        self._training.attempt(self._training.finish)
