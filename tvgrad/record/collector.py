"""Collector: gathers what the next point of a run holds, from the hooks of an optimizer."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tvgrad.numerics.no_compile import eager
from tvgrad.record.clock import Clock
from tvgrad.record.gradient_sum import GradientSum
from tvgrad.record.optimizer_options import OptimizerOptions
from tvgrad.store.writer import Content, cpu_copies
from tvgrad.vectors.parameters import Weights, dense, norm
from tvgrad.vectors.spread import own_part

Row = dict[str, Any]


@dataclass(frozen=True)
class Moment:
    """What is to be recorded of one moment, collected while the weights stand still."""

    steps: int
    tensors: dict[str, Content]
    metrics: dict[str, float]
    rows: list[Row]
    buffers: Weights

    def write(self, add: Callable[..., None], number: int, **rest: Any) -> None:
        """Record the moment as a point.

        Args:
            add: of the run's writer.
            number: the point's epochs (or steps).
            **rest: as for `RunWriter.add`.
        """
        add(number, self.steps, self.tensors, self.metrics, step_rows=self.rows, **rest)


@dataclass(frozen=True)
class StepWatch:
    """What a recorder adds to the collector's view of a step.

    Attributes:
        facts: for the row of every step, until something else is known.
        guard: runs what the collector does inside a hook.
        before_step: called when the optimizer is about to attempt a step.
        on_gradients: called when a step's gradients are there.
        after_step: called when a step was taken and counted.
        after_attempt: called after a step, and after one that the optimizer skipped.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    guard: Callable[[Callable[[], None]], None] = lambda action: action()
    before_step: Callable[[], None] = lambda: None
    on_gradients: Callable[[torch.optim.Optimizer], None] = lambda _: None
    after_step: Callable[[], None] = lambda: None
    after_attempt: Callable[[], None] = lambda: None


class Collector:
    """The rows of the steps, the sum of their gradients, and the batches since the last point.

    Where several optimizers train one model, a step is a round in which each of them steps once, or does not. A round
    is over when all have, when one of them steps again, or when the caller says so.

    Attributes:
        rows: one mapping an attempt of a step since the last point.
        parameters: name -> parameter, those that are recorded.
    """

    def __init__(
        self,
        clock: Clock,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        *,
        record: Collection[str],
        background: bool = False,
        folding: bool = False,
        watch: StepWatch = StepWatch(),
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """Start before the first step.

        Args:
            clock: counts the steps.
            model: the module that is trained.
            parameters: name -> parameter, those that are recorded.
            record: any of epoch-gradients, gradient-norms, batches.
            background: whether a thread writes one point while the next is collected.
            folding: whether steps must not wait for the sum of gradients, as in `GradientSum`.
            watch: what the recorder adds.
            settle: returns when the thread has written all that it was given.
        """
        self.rows: list[Row] = []
        self.parameters = parameters
        self._clock = clock
        self._model = model
        self._record = record
        self._folding = folding
        self._watch = watch
        shared: Weights = {}
        self._sums = [GradientSum(folding, shared, settle) for _ in range(2 if background else 1)]
        self._batches: list[torch.Tensor] = []
        self._buffers: Weights = {}
        self._began = time.perf_counter()
        self._hooks: list[RemovableHandle] = []
        self._optimizers: list[torch.optim.Optimizer] = []
        self._options: OptimizerOptions | None = None
        self._round: list[torch.optim.Optimizer] = []
        self._in_step: torch.optim.Optimizer | None = None
        self._held: dict[int, tuple[int, list[str]]] = {}

    @property
    def in_round(self) -> bool:
        """Whether an optimizer has stepped, and others that train the same model may follow."""
        return bool(self._round)

    def stepped_in_round(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether an optimizer has stepped in the step that is not over.

        Args:
            optimizer: one of the model's.

        Returns:
            Whether it has.
        """
        return any(optimizer is one for one in self._round)

    @property
    def took_step(self) -> bool:
        """Whether the optimizer's last attempt was a step."""
        return bool(self.rows) and not self.rows[-1].get("skipped")

    def restart(self) -> None:
        """Take the present buffers and the present time for those of the last point."""
        self._buffers = self._present_buffers()
        self._began = time.perf_counter()

    def attach(
        self, optimizers: Sequence[torch.optim.Optimizer], first: Sequence[dict[str, Any]] | None = None
    ) -> None:
        """Follow the optimizers of a model.

        Args:
            optimizers: they, before their first step.
            first: their options at the first step of a training that is resumed.
        """
        self._options = OptimizerOptions(optimizers, first)
        for optimizer in optimizers:
            self._follow(optimizer)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Follow an optimizer that the training has made later.

        Args:
            optimizer: it.
        """
        if self._options is not None:
            self._options.follow(optimizer)
        self._follow(optimizer)

    def _follow(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizers.append(optimizer)
        self._hooks += [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def detach(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def add_row(self, optimizer: torch.optim.Optimizer, **facts: Any) -> None:
        """Begin the row of a step that is about to be taken.

        Args:
            optimizer: which takes it.
            facts: more for the row.
        """
        self.rows.append({"step": self._clock.steps + 1, **self._rates((optimizer,)), **self._watch.facts, **facts})

    def end_round(self) -> None:
        """The optimizers that have not stepped by now do not take part in the step."""
        self._round = []

    def _rates(self, stepping: Sequence[torch.optim.Optimizer]) -> Row:
        return {} if self._options is None else self._options.row(stepping)

    def note_step(self, **facts: Any) -> None:
        """Add facts to the row of the step just taken.

        Args:
            facts: batch_size, clip_factor, loss_scale or skipped; None takes back what was said before.
        """
        if self.rows:
            row = self.rows[-1] | facts
            self.rows[-1] = {name: value for name, value in row.items() if value is not None}

    def note_batch(self, indices: torch.Tensor | Sequence[int]) -> None:
        """Note which samples the next step uses, where batches are recorded.

        Args:
            indices: positions in the training samples.
        """
        if "batches" in self._record:
            self._batches.append(torch.as_tensor(indices, dtype=torch.int64).cpu().clone())

    def collect(self, tensors: Mapping[str, Content], metrics: Mapping[str, float]) -> Moment:
        """Gather what a point recorded now holds.

        Args:
            tensors: kind -> copies of the weights, and what else was computed at them.
            metrics: name -> number.

        Returns:
            The moment; it stays as it is until `clear`.
        """
        found = dict(tensors)
        like, gathered = {name: own_part(one.detach()) for name, one in self.parameters.items()}, self._sums[0]
        if gathered:
            later = len(self._sums) == 1 or (self._folding and gathered.on_cpu)
            found["epoch_gradient"] = gathered.stream(like) if later else gathered.total(like)
        if self._batches:
            sizes = torch.tensor([len(batch) for batch in self._batches])
            found["batches"] = {"order": torch.cat(self._batches), "sizes": sizes}
        buffers = self._present_buffers()
        if any(not torch.equal(buffers[name], self._buffers[name]) for name in buffers):
            found["buffers"] = buffers
        measured = dict(metrics)
        measured.setdefault("seconds", time.perf_counter() - self._began)
        return Moment(self._clock.steps, found, measured, self.rows, buffers)

    def clear(self, moment: Moment) -> None:
        """Begin the next point.

        Args:
            moment: the one that was handed to the writer.
        """
        self.rows, self._batches, self._buffers = [], [], moment.buffers
        if self._sums[0].on_cpu:  # the writer's thread may read this sum while the next one grows
            self._sums.append(self._sums.pop(0))
        self._sums[0].clear()
        self._began = time.perf_counter()

    def _present_buffers(self) -> Weights:
        """Persistent buffers that could differ from the start's."""
        persistent = self._model.state_dict(keep_vars=True)
        return cpu_copies({name: buffer for name, buffer in self._model.named_buffers() if name in persistent})

    @eager
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """Note the step; one that takes a closure has its gradients when the closure returns, not before."""
        if self._in_step is not None and set(self._held_by(optimizer)) < set(self._held_by(self._in_step)):
            return None  # it does the work of an optimizer that wraps it
        self._in_step = optimizer
        self._watch.guard(self._watch.before_step)
        self._watch.guard(lambda: self._join(optimizer))
        return when_gradients_are_there(args, kwargs, lambda: self._watch.guard(lambda: self._consume(optimizer)))

    @eager
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._in_step is optimizer:
            self._in_step = None
            self._watch.guard(self._count_step)

    def _join(self, optimizer: torch.optim.Optimizer) -> None:
        """Begin a round, or go on with one."""
        if not self._round or self.stepped_in_round(optimizer):
            self._round = [optimizer]
            self.add_row(optimizer)
        else:
            self._round.append(optimizer)
            self.rows[-1].update(self._rates(self._round))

    def _count_step(self) -> None:
        if self.took_step:
            if len(self._round) == 1:
                self._clock.end_step()
            self._watch.after_step()
        if len(self._round) == len(self._optimizers):
            self.end_round()
        self._watch.after_attempt()

    @torch.no_grad()
    def _consume(self, optimizer: torch.optim.Optimizer) -> None:
        """Add the gradients that the step is about to consume (it may change them in place)."""
        self._watch.on_gradients(optimizer)
        # Fused optimizers take scaled gradients, and decide themselves whether to skip.
        found = getattr(optimizer, "found_inf", None)
        if found is not None and float(found) > 0:
            self.rows[-1]["skipped"] = 1
            return
        scale = getattr(optimizer, "grad_scale", None)
        divisor = None if scale is None else float(scale)
        own = {name: self.parameters[name].grad for name in self._held_by(optimizer)}
        present = {name: own_part(dense(gradient)) for name, gradient in own.items() if gradient is not None}
        if "gradient-norms" in self._record:
            before = self.rows[-1].get("gradient_norm", 0.0) if len(self._round) > 1 else 0.0
            self.rows[-1]["gradient_norm"] = math.hypot(before, norm(present) / (divisor or 1.0) if present else 0.0)
        if "epoch-gradients" in self._record:
            self._sums[0].add(present, divisor)

    def _held_by(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Names of the recorded parameters that an optimizer moves; groups may be added while it trains."""
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        known = self._held.get(id(optimizer))
        if known is None or known[0] != count:
            held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
            known = count, [name for name, parameter in self.parameters.items() if id(parameter) in held]
            self._held[id(optimizer)] = known
        return known[1]


def when_gradients_are_there(args: Any, kwargs: Any, act: Callable[[], None]) -> Any:
    """Act on the gradients of a step: before it, or after each return of the closure that computes them.

    Args:
        args: the positional arguments of a pre-step hook: the optimizer and the arguments of `step`.
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
