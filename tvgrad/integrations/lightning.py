"""RecorderCallback for Lightning's Trainer: records a run beside the training, by a `tvgrad.Recorder`."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from tvgrad.errors import TvgradError
from tvgrad.integrations.training_recorder import TrainingRecorder
from tvgrad.record.loop_gradients import LossOf

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
                `strict`: end the training where recording fails, instead of a warning; and `full_gradients="epochs"`:
                measure the full-batch gradient at each recorded point, by one or two passes over the Trainer's own
                loader with the module's own `training_step`.

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
            step = lambda: _training_of(trainer, pl_module)  # noqa: E731
            self._training.attempt(lambda: self._training.begin(pl_module, optimizers, clips, step))

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


def _training_of(trainer: Any, module: Any) -> tuple[Any, LossOf]:
    """The Trainer's loader, and the loss of one of its batches as the module's `training_step` computes it."""
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise TvgradError(f"full-batch gradients need one DataLoader, and the Trainer has a {type(loader).__name__}")
    if not module.automatic_optimization:
        raise TvgradError("full-batch gradients need a training_step that takes no step itself, and this one does")
    wants = inspect.signature(module.training_step).parameters
    if "dataloader_iter" in wants:
        raise TvgradError("full-batch gradients need a training_step of batches, and this one takes dataloader_iter")
    index = (0,) if len(wants) > 1 else ()

    def loss_of(batch: Any) -> torch.Tensor:
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        with _muted(module):
            output = trainer.strategy.training_step(batch, *index)
        loss = output.get("loss") if isinstance(output, dict) else output
        if not isinstance(loss, torch.Tensor):
            raise TvgradError("full-batch gradients need the loss of every batch, and training_step returned none")
        return loss

    return loader, loss_of


@contextmanager
def _muted(module: Any) -> Generator[None]:
    """Let `training_step` log nothing, and leave its metrics as they are."""
    metrics = [one for one in module.modules() if hasattr(one, "metric_state") and hasattr(one, "_update_count")]
    states = [(dict(vars(one)), copy.deepcopy(one.metric_state)) for one in metrics]
    module.log = module.log_dict = lambda *args, **kwargs: None  # noqa: ARG005
    try:
        yield
    finally:
        del module.log, module.log_dict
        for one, (attributes, state) in zip(metrics, states, strict=True):
            vars(one).update(attributes)
            for name, value in state.items():
                setattr(one, name, value)
