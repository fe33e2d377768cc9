"""RecorderCallback for Lightning's Trainer: records a run beside the training, by a `tvgrad.Recorder`."""

from __future__ import annotations

import os
from typing import Any

from tvgrad.errors import TvgradError
from tvgrad.integrations.training_recorder import TrainingRecorder

try:
    from lightning.pytorch import Callback
except ImportError:  # said when a callback is made: the module itself can be imported everywhere
    Callback = None


class RecorderCallback(Callback or object):  # type: ignore[misc]
    """Records weights and consumed gradients at the end of every training epoch, on the first process.

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
            TvgradError: lightning is not installed.
        """
        if Callback is None:
            raise TvgradError("the Trainer's callback needs lightning: pip install 'tvgrad[lightning]'")
        super().__init__()
        self._training = TrainingRecorder(directory, options)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Record the pretrained weights.

        Args:
            trainer: the Trainer.
            pl_module: the module.
        """
        if trainer.is_global_zero:
            optimizers, clips = trainer.optimizers, bool(trainer.gradient_clip_val)
            self._training.attempt(lambda: self._training.begin(pl_module, optimizers, clips))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        """Record the step where `record_at` names it.

        Args:
            trainer: the Trainer.
            pl_module: the module.
            *rest: not used.
        """
        self._training.attempt(self._training.after_batch)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Record the epoch, with the metrics that the module has logged.

        Args:
            trainer: the Trainer.
            pl_module: the module.
        """
        logged = trainer.callback_metrics.items()
        self._training.attempt(lambda: self._training.after_epoch({str(name): float(value) for name, value in logged}))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the run.

        Args:
            trainer: the Trainer.
            pl_module: the module.
        """
        self._training.attempt(self._training.finish)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the run unfinished.

        Args:
            trainer: the Trainer.
            pl_module: the module.
            exception: what ended the training.
        """
        self._training.finish(exception)
