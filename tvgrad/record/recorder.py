"""Recorder: records weights and gradients while any loop moves a model's weights."""

from __future__ import annotations

import functools
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tvgrad.errors import TvgradError
from tvgrad.numerics.no_compile import eager
from tvgrad.problem.objective import Objective
from tvgrad.record.resume_state import refuse_changes, restore_state, state_of
from tvgrad.store.background import BackgroundWriter
from tvgrad.store.manifest import Manifest, Parameter, read_manifest
from tvgrad.store.writer import RunWriter, cpu_copies, keeps
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.rules import rule_from_optimizer
from tvgrad.vectors.parameters import Weights, frozen_state, group_names, norm, tied_names, trainable_parameters

RECORDABLE = ("gradients", "epoch-gradients", "batches")


@dataclass(frozen=True)
class Moment:
    """What is to be recorded of one moment, collected while the weights stand still."""

    steps: int
    tensors: dict[str, Weights | Callable[[], Weights]]
    metrics: dict[str, float]
    rows: list[dict[str, Any]]
    state: tuple[Weights, dict[str, Any]] | None
    buffers: Weights


class Recorder:
    """Records a fine-tuning into a run directory, as a context manager round a training loop.

    On entry it records the weights (theta_0), and the full-batch gradient there when it has an objective; each
    `end_epoch` records the next point. Between points it counts optimizer steps through the optimizer's own hooks.

    Attributes:
        gradient: the full-batch gradient that was recorded at the present weights, in the parameters' dtype; None
            without an objective, and once the optimizer has moved the weights on. Full-batch training consumes this
            very tensor.
        loss: the full-batch loss at the last recorded weights, or None.
        epoch: epochs done, counting those of an earlier process that is resumed.
        steps: optimizer steps done, likewise.
        steps_in_epoch: optimizer steps since the last `end_epoch`; above 0 on entry only when a run that was recorded
            by step is resumed, whose loop has to leave out so many batches of its first epoch.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        objective: Objective | None = None,
        record_at: str = "epochs",
        record: Sequence[str] | None = None,
        keep: str = "all",
        groups: str | None = None,
        name: str | None = None,
        rule: UpdateRule | None = None,
        scheduler: Any = None,
        info: Mapping[str, Any] | None = None,
        resume: bool = False,
        finite: bool = False,
        parameters: Mapping[str, nn.Parameter] | None = None,
        background: bool = False,
    ) -> None:
        """Prepare to record; the directory is made on entry.

        A resume puts weights, buffers, optimizer, scheduler and random numbers back to the last point. What the loop
        changes after `end_epoch` (a scheduler's step, say) is not part of the point: step the scheduler before.

        Args:
            directory: the run directory to make.
            model: the module that is tuned.
            optimizer: its optimizer, from which the update rule, the rates and the consumed gradients are read.
            objective: the full-batch objective; with it, full-batch gradients are recorded.
            record_at: `epochs`, or `steps:1,10,100` with `end_step` called after each step.
            record: any of gradients, epoch-gradients, batches; by default gradients where there is an objective, and
                epoch-gradients where there is an optimizer: a check of the first epoch wants what the steps consumed.
            keep: which points keep their tensors: `all`, `last:N` or `epochs:0,1,5`.
            groups: a regular expression for groups of parameters; by default the block that owns each.
            name: the task's name; by default the directory's.
            rule: the update rule; by default read from the optimizer.
            scheduler: a learning-rate scheduler whose state a resume needs.
            info: facts for run.json.
            resume: go on with the run in `directory`, where there is one.
            finite: raise instead of recording weights or a loss that are not finite.
            parameters: the trainable parameters to record, by name; by default all that the model has.
            background: write in a thread: training waits for a copy in memory, and a point exists when the thread has
                written it, at the latest when the recorder is left.

        Raises:
            TvgradError: an option is not understood, or what it needs is missing.
        """
        self.directory = Path(directory)
        self.model = model
        self.objective = objective
        self.gradient: Weights | None = None
        self.loss: float | None = None
        self.epoch = 0
        self.steps = 0
        self.steps_in_epoch = 0
        self._parameters = trainable_parameters(model) if parameters is None else dict(parameters)
        self._background = background
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._unit, self._at = moments_of(record_at)
        default = [*(["gradients"] if objective else []), *(["epoch-gradients"] if optimizer else [])]
        self._record = tuple(default if record is None else record)
        self._check_record()
        keeps(keep, 0, [0])  # raises where the policy is not understood
        self._keep = keep
        self._groups = group_names(self._parameters, groups)
        self._name = name or self.directory.name
        self._rule, self._rule_reason = _read_rule(rule, optimizer)
        self._info = dict(info or {})
        self._resume = resume
        self._finite = finite
        self._writer: RunWriter | BackgroundWriter | None = None
        self._hooks: list[RemovableHandle] = []
        self._rows: list[dict[str, Any]] = []
        self._batches: list[torch.Tensor] = []
        self._consumed: Weights = {}
        self._buffers: Weights = {}
        self._began = time.perf_counter()

    def _check_record(self) -> None:
        for what in self._record:
            if what not in RECORDABLE:
                raise TvgradError(f"nothing called {what!r} can be recorded: choose from {', '.join(RECORDABLE)}")
        if "gradients" in self._record and self.objective is None:
            raise TvgradError(
                "full-batch gradients need an objective: pass objective=tvgrad.Objective(model, loss, data)"
            )
        if "epoch-gradients" in self._record and self._optimizer is None:
            raise TvgradError("epoch gradients are read from the optimizer: pass optimizer=")

    def __enter__(self) -> Recorder:
        exists = (self.directory / "run.json").exists()
        if self._resume and exists:
            self._go_on()
        else:
            self._start()
        if self._optimizer is not None:
            self._hooks = [
                self._optimizer.register_step_pre_hook(self._before_step),
                self._optimizer.register_step_post_hook(self._after_step),
            ]
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._writer is not None:
            try:
                if kind is None:
                    self._writer.finish()
            finally:
                self._writer.close()
                self._writer = None

    def end_epoch(self, metrics: Mapping[str, float] | None = None) -> None:
        """Record the end of an epoch.

        Args:
            metrics: name -> number, for metrics.csv.

        Raises:
            TvgradError: the recorder has not been entered.
        """  # noqa: DOC502 - raised by _add
        self.epoch += 1
        self.steps_in_epoch = 0
        if self._unit == "epoch":
            self._add(self.epoch, metrics or {})

    def end_step(self, metrics: Mapping[str, float] | None = None) -> None:
        """Note the end of an optimizer step, and record it where `record_at` names it.

        Args:
            metrics: name -> number, for metrics.csv.

        Raises:
            TvgradError: the recorder has not been entered.
        """  # noqa: DOC502 - raised by _add
        if self._optimizer is None:
            self._count_step()
        if self._unit == "step" and self.steps in self._at:
            self._add(self.steps, metrics or {})

    @property
    def due(self) -> bool:
        """Whether `end_step` will record the step that the optimizer has just taken."""
        return self._unit == "step" and self.steps in self._at

    def note_batch(self, indices: torch.Tensor | Sequence[int]) -> None:
        """Say which samples the next step uses, so that its terms can be replayed exactly.

        Args:
            indices: positions in the training samples.
        """
        if "batches" in self._record:
            self._batches.append(torch.as_tensor(indices, dtype=torch.int64).cpu().clone())

    def note_step(self, **facts: float) -> None:
        """Add facts to the row of the step just taken.

        Args:
            facts: batch_size, clip_factor, loss_scale or skipped.
        """
        if self._rows:
            self._rows[-1].update(facts)

    def add_info(self, **facts: Any) -> None:
        """Add facts to the run's description.

        Args:
            facts: plain values.
        """
        self._open().update_info(**facts)

    def _start(self) -> None:
        parameters = {
            name: Parameter(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), self._groups[name])
            for name, tensor in self._parameters.items()
        }
        manifest = Manifest(self._facts(), self._unit, parameters, tied_names(self.model))
        others = {name: p.detach() for name, p in trainable_parameters(self.model).items() if name not in parameters}
        static = cpu_copies(frozen_state(self.model) | others)
        self._writer = self._opened(lambda: RunWriter.create(self.directory, manifest, static))
        try:
            self._buffers = self._present_buffers()
            self._add(0, {})
        except BaseException:
            self.__exit__(TvgradError, None, None)
            raise

    def _go_on(self) -> None:
        """Put model, optimizer, scheduler and random numbers back to the last recorded point."""
        manifest = read_manifest(self.directory)
        expected = {name: tuple(tensor.shape) for name, tensor in self._parameters.items()}
        recorded = {name: parameter.shape for name, parameter in manifest.parameters.items()}
        if expected != recorded:
            raise TvgradError(f"{self.directory} records another model: --resume needs the one it was started with")
        if self.objective is not None and self.objective._chunk_size is None:
            # The chunk size decides the last bit of a sum: go on with the one that was measured then.
            self.objective.use_chunk_size(manifest.info.get("chunk_size"))
        refuse_changes(manifest, self.directory, self._unit, self._facts())
        self._writer = self._opened(lambda: RunWriter.resume(self.directory))
        try:
            self._restore()
        except BaseException:
            self.__exit__(TvgradError, None, None)
            raise

    def _restore(self) -> None:
        from tvgrad.store.run import Run

        run = Run.open(self.directory)
        if not run.points:  # killed before theta_0 was whole
            self._buffers = self._present_buffers()
            self._add(0, {})
            return
        last = run.points[-1]
        self.steps = last.steps
        present = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        recorded = run.static() | run.buffers(last.number) | run.weights(last.number)
        # What a module keeps as extra state is its own affair.
        recorded = {name: tensor for name, tensor in recorded.items() if not name.endswith("_extra_state")}
        for name, tensor in recorded.items():
            if name not in present or present[name].shape != tensor.shape:
                raise TvgradError(
                    f"{self.directory} records another model ({name} differs): resume with the one it was started with"
                )
        with torch.no_grad():
            for name, tensor in recorded.items():
                present[name].copy_(tensor)
        self._buffers = self._present_buffers()
        state = self._open().read_state()
        if state is not None:
            restore_state(self.directory, *state, self._optimizer, self._scheduler)
            self.epoch, self.steps_in_epoch = int(state[1]["epoch"]), int(state[1]["steps_in_epoch"])
        else:
            self.epoch = last.number
        self.loss = last.metrics.get("loss")
        self.gradient = None
        if last.number in run.having("gradient"):
            device = next(iter(self._parameters.values())).device
            self.gradient = {name: tensor.to(device) for name, tensor in run.gradient(last.number).items()}

    def _opened(self, make: Callable[[], RunWriter]) -> RunWriter | BackgroundWriter:
        return BackgroundWriter(make) if self._background else make()

    def _add(self, number: int, metrics: Mapping[str, float]) -> None:
        self._write(number, self._collected(metrics))

    def _collected(self, metrics: Mapping[str, float]) -> Moment:
        """Copy what the next steps will change, and compute what is to be recorded beside it."""
        writer = self._open()
        copied = writer.copied("weights", self._parameters) if isinstance(writer, BackgroundWriter) else None
        tensors: dict[str, Weights | Callable[[], Weights]] = {"weights": copied or cpu_copies(self._parameters)}
        measured = dict(metrics)
        if "gradients" in self._record and self.objective is not None:
            weights = {name: parameter.detach() for name, parameter in self._parameters.items()}
            self.loss, gradient = self.objective.value_and_gradient(weights)
            device = next(iter(self._parameters.values())).device
            self.gradient = {name: tensor.to(device) for name, tensor in gradient.items()}
            tensors["gradient"] = cpu_copies(gradient)
            measured.setdefault("loss", self.loss)
        if self._finite:
            self._check_finite()
        consumed = self._epoch_gradient() if "epoch-gradients" in self._record else None
        if consumed:
            tensors["epoch_gradient"] = consumed
        if self._batches:
            sizes = torch.tensor([len(batch) for batch in self._batches])
            tensors["batches"] = {"order": torch.cat(self._batches), "sizes": sizes}
        buffers = self._present_buffers()
        if any(not torch.equal(buffers[name], self._buffers[name]) for name in buffers):
            tensors["buffers"] = buffers
        measured.setdefault("seconds", time.perf_counter() - self._began)
        return Moment(self.steps, tensors, measured, self._rows, self._state(), buffers)

    def _write(self, number: int, moment: Moment) -> None:
        """Record a collected moment, and begin the next epoch."""
        writer = self._open()
        what: Any = moment.tensors  # functions among them only where the writer is one that takes them
        writer.add(number, moment.steps, what, moment.metrics, moment.rows, moment.state, self._keep)
        self._rows, self._batches, self._consumed, self._buffers = [], [], {}, moment.buffers
        self._began = time.perf_counter()

    def _epoch_gradient(self) -> Weights | Callable[[], Weights] | None:
        """The sum of the gradients consumed since the last point, as it is stored."""
        sums = self._consumed.items()
        return cpu_copies({name: tensor.to(_stored(self._parameters[name].dtype)) for name, tensor in sums})

    def _check_finite(self) -> None:
        """Refuse to record what training has lost; the points before stay."""
        where = f"after epoch {self.epoch}" if self._unit == "epoch" else f"after step {self.steps}"
        if self.loss is not None and not math.isfinite(self.loss):
            raise TvgradError(f"the loss of {self._name} is {self.loss} {where}: lower --lr; all before is recorded")
        for name, parameter in self._parameters.items():
            if not bool(torch.isfinite(parameter).all()):
                raise TvgradError(f"{name} of {self._name} is not finite {where}: lower --lr; all before is recorded")

    def _open(self) -> RunWriter | BackgroundWriter:
        if self._writer is None:
            raise TvgradError("the recorder is not open: use it as `with tvgrad.Recorder(...) as recorder:`")
        return self._writer

    @eager
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """Note the step, and the gradients that it is about to consume."""
        rates = {float(group["lr"]) for group in optimizer.param_groups}
        self._rows.append({"step": self.steps + 1, "lr": rates.pop() if len(rates) == 1 else float("nan")})
        return when_gradients_are_there(args, kwargs, self._consume)

    @torch.no_grad()
    def _consume(self) -> None:
        """Add the present gradients to the epoch's (the step may change them in place)."""
        if "epoch-gradients" in self._record:
            present = {n: p.grad for n, p in self._parameters.items() if p.grad is not None}
            self._rows[-1]["gradient_norm"] = norm(present) if present else 0.0
            for name, gradient in present.items():
                if name in self._consumed:
                    self._consumed[name].add_(gradient)
                else:
                    self._consumed[name] = gradient.to(_accumulator(gradient.dtype), copy=True)

    @eager
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._count_step()

    def _count_step(self) -> None:
        self.steps += 1
        self.steps_in_epoch += 1
        self.gradient = None  # it belongs to weights that are gone

    def _present_buffers(self) -> Weights:
        """Persistent buffers that could differ from the start's."""
        persistent = self.model.state_dict(keep_vars=True)
        return cpu_copies({name: buffer for name, buffer in self.model.named_buffers() if name in persistent})

    def _fingerprint(self) -> str | None:
        return None if self.objective is None else self.objective.samples.fingerprint()

    def _facts(self) -> dict[str, Any]:
        """What run.json says of how the run was made; the caller's facts win."""
        first = next(iter(self._parameters.values()))
        facts: dict[str, Any] = {
            "name": self._name,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "rule": None if self._rule is None else self._rule.to_dict(),
            "rule_reason": self._rule_reason,
            "optimizer": None if self._optimizer is None else type(self._optimizer).__name__,
            "fused": any(group.get("fused") for group in self._optimizer.param_groups) if self._optimizer else False,
            "dtype": str(first.dtype).removeprefix("torch."),
            "device": str(first.device),
            "threads": torch.get_num_threads(),
            "record": [what for what in RECORDABLE if what in self._record],
            "keep": self._keep,
            "modules": sorted({type(module).__name__ for module in self.model.modules()}),
            "versions": {
                "tvgrad": metadata.version("tvgrad"),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }
        if self.objective is not None:
            facts |= {
                "samples": len(self.objective.samples),
                "fingerprint": self._fingerprint(),
                "chunk_size": self.objective.chunk_size,
                "allowed": list(self.objective.allowed),
            }
        return facts | self._info

    def _state(self) -> tuple[Weights, dict[str, Any]] | None:
        """All that a resume needs beyond the weights, as tensors and plain values."""
        tensors, values = state_of(self._optimizer, self._scheduler)
        return tensors, {"epoch": self.epoch, "steps_in_epoch": self.steps_in_epoch, **values}


def moments_of(record_at: str) -> tuple[str, frozenset[int]]:
    """Read a `record_at` option.

    Args:
        record_at: `epochs`, or `steps:1,10,100`.

    Returns:
        The unit (epoch or step), and the numbers of the steps, none for epochs.

    Raises:
        TvgradError: it is neither.
    """  # noqa: DOC501 - the ValueError does not leave
    kind, _, rest = record_at.partition(":")
    if kind == "epochs" and not rest:
        return "epoch", frozenset()
    try:
        steps = frozenset(int(part) for part in rest.split(","))
        if kind == "steps" and min(steps) >= 1:
            return "step", steps
    except ValueError:
        pass
    raise TvgradError(f"--record-at {record_at!r} is not understood: use epochs, or steps:1,10,100")


def when_gradients_are_there(args: Any, kwargs: Any, act: Callable[[], None]) -> Any:
    """Act on the gradients of a step: before it, or after each return of the closure that computes them.

    Args:
        args: what a pre-step hook gets: the optimizer and the arguments of `step`.
        kwargs: the keyword arguments of `step`.
        act: what to do.

    Returns:
        What the hook returns: None, or the arguments with another closure.
    """
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if not callable(closure):
        act()
        return None

    @functools.wraps(closure)
    def watched() -> Any:
        loss = closure()
        act()
        return loss

    if len(args) > 1:
        return (args[0], watched, *args[2:]), kwargs
    return args, {**kwargs, "closure": watched}


def _read_rule(
    rule: UpdateRule | None, optimizer: torch.optim.Optimizer | None
) -> tuple[UpdateRule | None, str | None]:
    """The update rule, or the reason why there is none."""
    if rule is not None or optimizer is None:
        return rule, None if rule is not None else "no optimizer was given"
    try:
        return rule_from_optimizer(optimizer), None
    except TvgradError as error:
        return None, str(error)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """Sums of gradients are kept wider than the gradients: rounding of the sum must not show in its storage type."""
    return torch.float32 if dtype.itemsize < 4 else torch.float64


def _stored(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize < 4 else dtype
