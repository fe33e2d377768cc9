"""Recorder: records weights and gradients while any loop moves a model's weights."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Objective
from tvgrad.record.clock import Clock
from tvgrad.record.collector import Collector, StepWatch
from tvgrad.record.gradient_rounding import gradient_rounding
from tvgrad.record.loop_gradients import LoopGradients, loop_gradients
from tvgrad.record.record_at import RecordAt
from tvgrad.record.recordable import recorded_kinds, several
from tvgrad.record.resume_state import refuse_changes, restore_state, restore_weights, state_of
from tvgrad.record.run_header import RunHeader
from tvgrad.store.background import BackgroundWriter, start_writer
from tvgrad.store.keep_policy import KeepPolicy
from tvgrad.store.kept_gradients import KeptGradients
from tvgrad.store.layout import MANIFEST
from tvgrad.store.manifest import Manifest, read_manifest
from tvgrad.store.measured import MEASURED
from tvgrad.store.run import Run
from tvgrad.store.writer import Content, RunWriter
from tvgrad.update_rules.grouped import AnyRule
from tvgrad.vectors.parameters import Weights, first_not_finite, group_names, trainable_parameters


class Recorder:
    """Records a fine-tuning into a run directory, as a context manager round a training loop.

    On entry it records the pretrained weights, and the full-batch gradient there when it has an objective; each
    `end_epoch` records the next point. Between points it counts optimizer steps through the optimizer's own hooks.

    Attributes:
        directory: the run directory.
        model: the module that is tuned.
        objective: the full-batch objective, or None.
        gradient: the full-batch gradient that was recorded at the present weights, in the parameters' dtype; None
            without an objective, and once the optimizer has moved the weights on. Full-batch training consumes this
            very tensor.
        loss: the full-batch loss at the last recorded weights, or None.

    Examples:
        >>> import tempfile, torch, tvgrad
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> directory = tempfile.TemporaryDirectory()
        >>> with tvgrad.Recorder(f"{directory.name}/run", model, optimizer) as recorder:
        ...     for epoch in range(2):
        ...         optimizer.zero_grad()
        ...         model(torch.ones(3, 2)).square().mean().backward()
        ...         optimizer.step()
        ...         recorder.end_epoch()
        >>> tvgrad.Run.open(f"{directory.name}/run").epochs
        [0, 1, 2]
        >>> directory.cleanup()
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        objective: Objective | None = None,
        *,
        data: Iterable[Any] | LoopGradients | None = None,
        loss: Callable[[Any, Any], torch.Tensor] | None = None,
        record_at: str = "epochs",
        record: Sequence[str] | None = None,
        keep: str = "all",
        keep_gradients: str = "all",
        groups: str | None = None,
        name: str | None = None,
        rule: AnyRule | None = None,
        scheduler: Any = None,
        info: Mapping[str, Any] | None = None,
        resume: bool = False,
        overwrite: bool = False,
        finite: bool = False,
        background: bool = False,
        first_metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Prepare to record; the directory is made on entry.

        A resume puts weights, buffers, optimizer, scheduler and random numbers back to the last point. What the loop
        changes after `end_epoch` (a scheduler's step, say) is not part of the point: step the scheduler before.

        Args:
            directory: the run directory to make.
            model: the module that is tuned.
            optimizer: its optimizer, from which the update rule, the rates and the consumed gradients are read; or all
                of its optimizers, of which a step is one step of each.
            objective: the full-batch objective; with it, full-batch gradients are recorded.
            data: the loop's own loader, or a list of batches, in place of an objective: full-batch gradients are then
                measured by passes over it at each point, with modules in the modes (train, eval) that they have now.
            loss: with `data`, callable(output, target) -> mean loss; None where the model returns it.
            record_at: `epochs`, or `steps:1,10,100` with `end_step` called after each step.
            record: any of gradients, epoch-gradients, batches; by default gradients where there is an objective, and
                epoch-gradients where there is an optimizer: a check of the first epoch wants what the steps consumed.
            keep: which points keep their tensors: `all`, `last:N` or `epochs:0,1,5`.
            keep_gradients: `all`, or `sketch:65536`: sketches of so many numbers, for norms and estimated cosines.
            groups: a regular expression for groups of parameters; by default the block that owns each.
            name: the task's name; by default the directory's.
            rule: the update rule; by default read from the optimizer.
            scheduler: a learning-rate scheduler whose state a resume needs.
            info: facts for run.json.
            resume: go on with the run in `directory`, where there is one.
            overwrite: replace the run in `directory`, where there is one; nothing but a run of tvgrad is deleted.
            finite: raise instead of recording weights or a loss that are not finite.
            background: write in a thread: training waits for a copy in memory, and a point exists when the thread has
                written it, at the latest when the recorder is left.
            first_metrics: name -> number, of the weights before training.

        Raises:
            TvgradError: an option is not understood, or what it needs is missing.
        """
        if not isinstance(model, nn.Module):
            raise TvgradError(f"a {type(model).__name__} is no model: pass the torch.nn.Module, not its parameters")
        self.directory = Path(directory)
        self.model, self.objective = model, objective
        self.gradient: Weights | None = None
        self.loss: float | None = None
        self._optimizers, self._scheduler = several(optimizer), scheduler
        if resume and overwrite:
            raise TvgradError("a run is either resumed or overwritten: give one of resume and overwrite")
        if data is not None and objective is not None:
            raise TvgradError("objective and data are two ways to the same gradients: leave one of them out")
        self._resume, self._overwrite = resume, overwrite
        self._finite, self._background = finite, background
        self._first_metrics = dict(first_metrics or {})
        self._parameters = trainable_parameters(model)
        self._loop = loop_gradients(model, self._parameters, data, loss)
        self._record = recorded_kinds(record, self._optimizers, objective or self._loop)
        self._clock = Clock(RecordAt(record_at))
        self._header = self._make_header(name, groups, (keep, keep_gradients), rule, info or {})
        self._collector = self._make_collector()
        self._writer: RunWriter | BackgroundWriter | None = None
        self._recorded = 0

    def _make_header(
        self,
        name: str | None,
        groups: str | None,
        kept: tuple[str, str],
        rule: AnyRule | None,
        info: Mapping[str, Any],
    ) -> RunHeader:
        return RunHeader(
            name or self.directory.name,
            self.model,
            self._parameters,
            groups=group_names(self._parameters, groups),
            unit=self._clock.record_at.unit,
            record=self._record,
            keep=KeepPolicy(kept[0]),
            keep_gradients=KeptGradients(kept[1]),
            optimizers=self._optimizers,
            objective=self.objective,
            rule=rule,
            info=info,
        )

    def _make_collector(self) -> Collector:
        return Collector(
            self._clock,
            self.model,
            self._parameters,
            record=[*self._record, *(["gradient-norms"] if "epoch-gradients" in self._record else [])],
            background=self._background,
            watch=StepWatch(after_step=self._forget_gradient),
        )

    @property
    def epoch(self) -> int:
        """Epochs done, counting those of an earlier process that is resumed."""
        return self._clock.epoch

    @property
    def steps(self) -> int:
        """Optimizer steps done, likewise."""
        return self._clock.steps

    @property
    def steps_in_epoch(self) -> int:
        """Optimizer steps since the last `end_epoch`.

        It is above 0 on entry only when a run that was recorded by step is resumed: its loop has to leave out so many
        batches of its first epoch.
        """
        return self._clock.steps_in_epoch

    @property
    def due(self) -> bool:
        """Whether `end_step` will record the step that the optimizer has just taken."""
        return self._clock.step_due

    def __enter__(self) -> Recorder:
        resumed = self._resume and (self.directory / MANIFEST).exists()
        if resumed:
            self._refuse_changes(read_manifest(self.directory))
        if not resumed and not self._overwrite and (self.directory / MANIFEST).exists():
            raise TvgradError(
                f"{self.directory} already holds a run: choose another directory, go on with it by "
                "Recorder(..., resume=True), or replace it by overwrite=True"
            )
        create = self._header.creation(self.directory, self._overwrite, self._background)
        make = (lambda: RunWriter.resume(self.directory)) if resumed else create
        self._writer = start_writer(make, self._background)
        try:
            run = Run.open(self.directory) if resumed else None
            if run is not None and run.points:
                self._restore(run)
                self._collector.restart()
            else:  # a new run, or one that was killed before its first point was whole
                self._collector.restart()
                self._add_point(self._first_metrics)
                self._note_rounding()
        except BaseException:
            self.__exit__(TvgradError, None, None)
            raise
        self._collector.attach(self._optimizers, run.info.get("optimizer_groups") if run is not None else None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._collector.detach()
        writer, self._writer = self._writer, None
        if writer is not None:
            with closing(writer):
                if kind is None:
                    writer.finish()

    def end_epoch(self, metrics: Mapping[str, float] | None = None) -> None:
        """Record the end of an epoch.

        Args:
            metrics: name -> number, for metrics.csv.

        Raises:
            TvgradError: the recorder has not been entered.
        """  # noqa: DOC502 - raised by _add_point
        self._collector.end_round()
        self._clock.end_epoch()
        if self._clock.by_epoch:
            self._add_point(metrics or {})

    def end_step(self, metrics: Mapping[str, float] | None = None) -> None:
        """Note the end of an optimizer step, and record it where `record_at` names it.

        Args:
            metrics: name -> number, for metrics.csv.

        Raises:
            TvgradError: the recorder has not been entered.
        """  # noqa: DOC502 - raised by _add_point
        self._collector.end_round()
        if not self._optimizers:
            self._clock.end_step()
            self._forget_gradient()
        if self._clock.step_due:
            self._add_point(metrics or {})

    def note_batch(self, indices: torch.Tensor | Sequence[int]) -> None:
        """Say which samples the next step uses, so that its terms can be recomputed exactly.

        Args:
            indices: positions in the training samples.
        """
        self._collector.note_batch(indices)

    def note_step(self, **facts: float) -> None:
        """Add facts to the row of the step just taken.

        Args:
            facts: batch_size, clip_factor, loss_scale or skipped.
        """
        self._collector.note_step(**facts)

    def note_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add numbers to the point that was recorded last, for what is measured after its epoch has ended.

        Args:
            metrics: name -> number, for metrics.csv.
        """
        self._open_writer().amend(self._recorded, {}, metrics)

    def add_info(self, **facts: Any) -> None:
        """Add facts to the run's description.

        Args:
            facts: plain values.
        """
        self._open_writer().update_info(**facts)

    def _add_point(self, metrics: Mapping[str, float]) -> None:
        """Copy what the next steps will change, compute the gradient, and write both."""
        writer = self._open_writer()
        tensors: dict[str, Content] = {"weights": writer.copied("weights", self._parameters)}
        measured = dict(metrics)
        if "gradients" in self._record and self.objective is not None:
            weights = {name: parameter.detach() for name, parameter in self._parameters.items()}
            self.loss, gradient = self.objective.value_and_gradient(weights)
            self.gradient = self._on_device(gradient)
            tensors["gradient"] = writer.copied("gradient", gradient)
            measured.setdefault("loss", self.loss)
        elif "gradients" in self._record and self._loop is not None:
            gradient, made = self._loop.measure()
            self.loss, tensors["gradient"] = self._loop.loss, writer.copied("gradient", gradient)
            measured.setdefault("loss", self.loss)
            writer.extend_info(MEASURED, {str(self._clock.number): asdict(made)})
        if self._finite:
            self._require_finite()
        moment = self._collector.collect(tensors, measured)
        buffers, values = state_of(self._optimizers, self._scheduler)
        state = writer.copied("state", buffers), {"epoch": self.epoch, "steps_in_epoch": self.steps_in_epoch, **values}
        moment.write(writer.add, self._clock.number, state=state, keep=self._header.keep)
        self._collector.clear(moment)
        self._recorded = self._clock.number

    def _note_rounding(self) -> None:
        """Say how far the first gradient is from float32, where its format is a narrow one."""
        if self.objective is not None and self.gradient is not None:
            relative = gradient_rounding(self.objective, self._parameters, self.gradient)
            if relative is not None:
                self.add_info(gradient_rounding=relative)

    def _require_finite(self) -> None:
        """Refuse to record what training has lost; the points before stay."""
        name, lost = self._header.name, first_not_finite(self._parameters)
        where = f"after {self._header.unit} {self._clock.number}: lower --lr; all before is recorded"
        if self._clock.number == 0:
            where = "at the pretrained weights: check how they are made or loaded"
        if self.loss is not None and not math.isfinite(self.loss):
            raise TvgradError(f"the loss of {name} is {self.loss} {where}")
        if lost is not None:
            raise TvgradError(f"{lost} of {name} is not finite {where}")

    def _refuse_changes(self, manifest: Manifest) -> None:
        """Refuse to resume another model, or with different options."""
        expected = {name: tuple(tensor.shape) for name, tensor in self._parameters.items()}
        if expected != {name: parameter.shape for name, parameter in manifest.parameters.items()}:
            raise TvgradError(f"{self.directory} records another model: --resume needs the one it was started with")
        if self.objective is not None and self.objective._chunk_size is None:
            # The chunk size decides the last bit of a sum: go on with the one that was measured then.
            self.objective.use_chunk_size(manifest.info.get("chunk_size"))
        refuse_changes(manifest, self.directory, self._header.unit, self._header.facts())

    def _restore(self, run: Run) -> None:
        """Put model, optimizer, scheduler and random numbers back to the last recorded point."""
        last = run.points[-1]
        restore_weights(run, self.model)
        self._clock.steps, self._clock.epoch, self._recorded = last.steps, last.number, last.number
        state = self._open_writer().read_state()
        if state is not None:
            restore_state(self.directory, *state, self._optimizers, self._scheduler)
            self._clock.epoch, self._clock.steps_in_epoch = int(state[1]["epoch"]), int(state[1]["steps_in_epoch"])
        self.loss = last.metrics.get("loss")
        if last.number in run.having("gradient"):
            self.gradient = self._on_device(run.gradient(last.number))

    def _on_device(self, gradient: Weights) -> Weights:
        device = next(iter(self._parameters.values())).device
        return {name: tensor.to(device) for name, tensor in gradient.items()}

    def _forget_gradient(self) -> None:
        self.gradient = None  # it belongs to weights that are gone

    def _open_writer(self) -> RunWriter | BackgroundWriter:
        if self._writer is None:
            raise TvgradError("the recorder is not open: use it as `with tvgrad.Recorder(...) as recorder:`")
        return self._writer
