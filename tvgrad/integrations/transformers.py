"""RecorderCallback for `transformers.Trainer`: records a run beside the training, by a `tvgrad.Recorder`."""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Any

import torch

from tvgrad.errors import TvgradError
from tvgrad.integrations.training_recorder import TrainingRecorder
from tvgrad.record.loop_gradients import LossOf

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
                `strict`: end the training where recording fails, instead of a warning; and `full_gradients="epochs"`:
                measure the full-batch gradient at each recorded point, by one or two passes over the Trainer's own
                loader with its own loss.

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
            step = lambda: _training_of(model, present["train_dataloader"])  # noqa: E731
            self._training.attempt(lambda: self._training.begin(model, optimizers, clips, step))

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


def _training_of(model: torch.nn.Module, loader: Any) -> tuple[Any, LossOf]:
    """The Trainer's loader, and the loss of one of its batches as the Trainer computes it."""
    trainer = _calling_trainer()
    model.train()  # as the Trainer does before each step

    def loss_of(batch: Any) -> torch.Tensor:
        prepared = trainer._prepare_inputs(batch)
        with trainer.compute_loss_context_manager():
            loss: torch.Tensor = trainer.compute_loss(model, prepared)
        return loss.mean()

    return loader, loss_of


def _calling_trainer() -> Any:
    """The Trainer that calls the callback: it is told everything but that."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if hasattr(owner, "compute_loss") and hasattr(owner, "compute_loss_context_manager"):
            return owner
        frame = frame.f_back
    raise TvgradError("full-batch gradients need the Trainer's own loss, and no Trainer calls this callback")
