"""MeasuringSession: one pass of a script at recorded weights, from its import of torch to the end of an epoch.

The script runs as it stands. Before its first forward pass the recorded weights are put into its model; its optimizer's
steps change nothing; and when the epoch is over its gradients are written for the process that waits, which ends this
one before any code after the epoch runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from tvgrad.errors import TvgradError
from tvgrad.integrations.measuring.class_weights import ClassWeights
from tvgrad.integrations.measuring.exchanges import exchanges
from tvgrad.integrations.measuring.gradient_total import GradientTotal
from tvgrad.integrations.measuring.pass_files import write_facts, write_gradient
from tvgrad.integrations.measuring.pass_options import PassOptions
from tvgrad.integrations.measuring.pass_sums import begun_sums
from tvgrad.integrations.measuring.placement import Placement
from tvgrad.integrations.measuring.ranks import averaged, facts_of_all, is_first, refuse_steps
from tvgrad.integrations.measuring.silenced_dropout import SilencedDropout
from tvgrad.integrations.measuring.waiting import wait_to_be_ended
from tvgrad.integrations.measuring.weights_probe import Reread, WeightsProbe, begun_total
from tvgrad.integrations.measuring.why_ended import why_ended, why_failed, why_raised
from tvgrad.integrations.script.epochs import CannotTell, Epochs, Held
from tvgrad.integrations.script.loaders import LoaderWatch
from tvgrad.integrations.script.notes import leave_note
from tvgrad.integrations.script.options import ScriptOptions
from tvgrad.record.batch_items import BatchItems, facts_of, sum_of_fingerprints
from tvgrad.record.reseed import reseed
from tvgrad.record.step_sums import StepSums
from tvgrad.record.telling import Telling
from tvgrad.record.weighing import Weighing
from tvgrad.vectors.parameters import Weights


class MeasuringSession:
    """Follows a script and sums the gradients of one epoch.

    What goes wrong ends the pass with one sentence, left for the process that started it.

    Attributes:
        options: the command's options; `notes` is where results go.
        plan: what this pass does.
        epochs: finds the end of the epoch.
        loaders: watches the script's loaders.
        class_weights: watches its losses.
        forward_hook: of the first forward pass; it goes with the first backward pass.
        reread: what a probe looks at besides gradients.
    """

    def __init__(self, options: ScriptOptions, plan: PassOptions) -> None:
        """Start before the script does.

        Args:
            options: how the run was recorded.
            plan: what to do.
        """
        self.options, self.plan, self.reread = options, plan, Reread(Telling(tuple(plan.tell), tuple(plan.apart)))
        self.epochs = Epochs(self, options.steps_per_epoch)
        self.loaders = LoaderWatch(self.epochs, self.guard, True, self.reread.parts if plan.probe else exchanges(plan))
        self.forward_hook: RemovableHandle | None = None
        self._placement: Placement | None = None
        self._total: GradientTotal | WeightsProbe | None = None
        self._process, self.class_weights, self._dropout = os.getpid(), ClassWeights(), SilencedDropout()
        self._batch, self._items, self._scale = 0, list[BatchItems](), 1.0
        self._stepped, self._overflowed, self._done = False, False, False
        self._depth, self._repeated, self._reseeded = 0, 0, 0
        self._dtype: torch.dtype | None = None
        self._fingerprints: list[int | None] = []
        self._sums: StepSums | None = None
        self._first, self._trial = dict[str, Any](), plan.trial

    def guard(self, action: Callable[[], None], may_exit: bool = True) -> None:  # noqa: ARG002
        """Run something of tvgrad's; what it raises ends the pass.

        Args:
            action: what to run.
            may_exit: as for `Session.guard`; no matter here.
        """
        if self._done or os.getpid() != self._process:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - it is handed on to the process that waits
            if self._trial and isinstance(error, CannotTell):
                return
            leave_note(self.options.notes, event="failed", reason=why_failed(error))
            self._wait_for_the_end()

    def made(self, optimizer: torch.optim.Optimizer) -> None:
        """The script has made an optimizer.

        Args:
            optimizer: it.
        """
        self._placed().meet(optimizer)

    def before_iterator(self, loader: Any) -> None:
        """A pass over a loader is about to begin.

        Args:
            loader: which.
        """
        self._place()
        if self.plan.reseed is not None:
            self._reseed(loader)

    def forward(self) -> None:
        """A module's forward pass is about to begin, and there was no backward pass yet."""
        self._place()

    def before_backward(self) -> None:
        """A backward pass begins."""
        self._depth += 1
        if self._depth > 1:  # inside another: checkpointing computes a part again
            return
        self.forget_first_forward()
        self._consume_batch()
        placement = self._placed()
        placement.require_no_open_step()
        if placement.trained is None:
            if placement.place():
                raise TvgradError(
                    "the recorded weights could not be put in before the script's first forward pass: it makes its "
                    "optimizer after that"
                )
            return
        if placement.place():
            raise TvgradError("the script writes its weights anew in the middle of a step: no pass stays at others")
        if self._total is None:
            parameters = placement.trained.parameters
            for parameter in parameters.values():
                self.autocast(parameter.dtype)
            self._total = begun_total(self.plan, parameters, self.reread)
        self._total.before_backward()

    def forget_first_forward(self) -> None:
        """There is a backward pass: what was before it is over."""
        if self.forward_hook is not None:
            self.forward_hook.remove()
            self.forward_hook = None
            leave_note(self.options.notes, event="backward")

    def after_backward(self) -> None:
        """A backward pass has ended."""
        self._depth = max(0, self._depth - 1)
        if self._depth:
            return
        items = self.class_weights.counted(self._items[-1] if self._items else None)
        if self._total is not None:
            self._total.after_backward(self._batch, items, self._scale)
        self._scale = 1.0

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer would step.

        Args:
            optimizer: any of the script's.
        """
        self._stepped = True
        placement = self._placed()
        if not placement.moves(optimizer):
            self._require_known(placement, optimizer)
            return
        total = self._total
        if total is None or not placement.ends_step(optimizer):
            return
        found = getattr(optimizer, "found_inf", None)
        self._overflowed |= found is not None and float(found) > 0
        if self.epochs.backwards == 0:
            self._consume_batch()
        if not self._trial:
            self.epochs.before_step()
        elif isinstance(total, GradientTotal):  # a probe makes do with a trial's batches
            total.clear()
            self.pass_over_trial()
            return
        self._end_step(total, optimizer)

    def pass_over_trial(self) -> None:
        """A step of a trial is over: batches and epochs count from its last one on."""
        self._trial -= 1
        self.epochs.forget_batches()
        self.epochs.restart()
        self._items, self._fingerprints, self._batch = [], [], 0

    @property
    def _in_trial(self) -> bool:
        return self._trial > 0 and not self.plan.probe

    def scaled(self, scale: float) -> None:
        """A loss was scaled.

        Args:
            scale: by how much.
        """
        self._scale = scale

    def autocast(self, dtype: torch.dtype) -> None:
        """The script computes in another format.

        Args:
            dtype: in which.
        """
        if dtype.is_floating_point and (self._dtype is None or dtype.itemsize < self._dtype.itemsize):
            self._dtype = dtype

    def scaler_steps(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002
        """A gradient scaler is about to step.

        Args:
            optimizer: which.
        """
        self._stepped = False

    def scaler_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """A gradient scaler has stepped, or skipped the step.

        Args:
            optimizer: which.
        """
        if not self._stepped and self._placed().moves(optimizer):
            self._overflowed = True
            self.epochs.after_step()

    def hold(self) -> None:
        """The epoch may end here: it does where every batch has had its backward pass."""
        held = self.epochs.state
        if self.plan.coefficients is not None or not isinstance(held, Held) or not held.iteration.exhausted:
            return
        if not self._in_trial and (held.iteration.lead <= 1 or not held.iteration.waiting):
            self._end_epoch()

    def end(self, how: str) -> None:  # noqa: ARG002
        """The epoch has ended.

        Args:
            how: loader, break, steps or exit.
        """
        if self.plan.coefficients is None and not self._in_trial:
            self._end_epoch()

    def close(self) -> None:
        """The script has ended by itself."""
        if self._done or os.getpid() != self._process:
            return
        reason = why_raised(self._placement)
        if reason:
            self._done = True
            leave_note(self.options.notes, event="failed", reason=reason)
            return
        self.guard(lambda: self.epochs.exit(True, True))
        if isinstance(self._total, WeightsProbe):
            self.guard(self._finish)
        stepped = self._total is not None and self._total.steps > 0
        leave_note(self.options.notes, event="ended", reason=why_ended(self._placement, stepped))
        self._done = True

    def _placed(self) -> Placement:
        if self._placement is None:
            self._placement = Placement(self.plan)
        return self._placement

    def _place(self) -> None:
        placement = self._placement
        first = placement is not None and placement.trained is None
        if placement is not None and placement.place() and first and self.plan.reseed is not None:
            self._reseed(None)
        if first and placement is not None and placement.trained is not None and self.plan.probe:
            self._dropout.silence(placement.trained.root)

    def _consume_batch(self) -> None:
        before = len(self.epochs.items)
        self.epochs.backward()
        if len(self.epochs.items) > before:
            self._batch += 1
            self._items.append(self.epochs.items[-1])
        elif self.epochs.source is None:  # no loader: what a step consumes is a batch
            self._batch = 0 if self._total is None else self._total.steps

    def _require_known(self, placement: Placement, optimizer: torch.optim.Optimizer) -> None:
        """Refuse the only optimizer of a script if it trains something else than the run records."""
        if placement.trained is None:
            placement.meet(optimizer)
            placement.place()
            if placement.hopeless(optimizer):
                raise TvgradError(f"the command {placement.misfit}")

    def _end_step(self, total: GradientTotal | WeightsProbe, optimizer: torch.optim.Optimizer) -> None:
        scale = float(getattr(optimizer, "grad_scale", None) or 1.0)
        self._fingerprints.append(sum_of_fingerprints([one.fingerprint for one in self.epochs.items]))
        if isinstance(total, WeightsProbe):
            total.end_step(scale)
            self.epochs.after_step()
            if total.compared:
                self._dropout.give_back()
            if total.ready:
                self._finish()
            return
        consumed = total.end_step(scale)
        self.epochs.after_step()
        if self.plan.coefficients is not None:
            self._add_to_sums(total, averaged(consumed, total.parameters))

    def _add_to_sums(self, total: GradientTotal, consumed: Weights) -> None:
        if self._sums is None:
            self._sums = begun_sums(self.plan, self.options.notes, self._placed())
        if self._sums.add_batch(consumed):
            total.share()
            mean = total.mean()
            self._first = self._first or self._measured(total, mean)
            self._sums.add_epoch(mean)
            total.clear()
        if self._sums.complete:
            self._finish()

    def _end_epoch(self) -> None:
        total = self._total
        if total is None:
            return
        if isinstance(total, WeightsProbe):
            self._finish()
            return
        if self._overflowed:  # the scale of the loss is lower by now, and the epoch has not all gradients
            total.clear()
            self._overflowed, self._fingerprints, self._items = False, [], []
            self._repeated += 1
        elif total.steps:
            total.flush()
            self._finish()
        elif self._items:
            raise TvgradError(
                "its optimizer took no step in the whole of an epoch: gradients are accumulated for longer than that"
            )

    def _finish(self) -> None:
        total, placement = self._total, self._placement
        assert total is not None
        assert placement is not None
        placement.require_unmoved()
        refuse_steps(Weighing(self.plan.weighing))
        if isinstance(total, WeightsProbe):
            result = self._facts() | vars(total.weights(self._dtype or torch.float32))
        elif self._sums is None:
            total.share()
            result = self._measured(total, total.mean())
        else:
            result = self._first | {"fingerprints": self._fingerprints}
        self.report_and_wait(result)

    def _facts(self) -> dict[str, Any]:
        source, dtype = self.epochs.source, self._dtype or torch.float32
        return {
            **facts_of(self._items),
            "data": None if source is None else source.data,
            "drawn_again": 0 if source is None or source.data is None else source.draws.again,
            "fingerprints": self._fingerprints,
            "dtype": str(dtype).removeprefix("torch."),
            "epochs_repeated": self._repeated,
            "overflowed": self._overflowed,
            **self.class_weights.facts,
        }

    def _measured(self, total: GradientTotal, gradient: Weights) -> dict[str, Any]:
        """Leave the gradient of an epoch; facts about it."""
        if not all(bool(torch.isfinite(tensor).all()) for tensor in gradient.values()):
            raise TvgradError("the gradient of the epoch is not finite at these weights")
        result = facts_of_all(self._facts()) | total.facts()
        if is_first():
            write_gradient(self.options.notes, gradient)
        return result

    def report_and_wait(self, facts: dict[str, Any]) -> None:
        """Leave plain values, say that the result is there, and wait to be ended.

        Args:
            facts: name -> value.
        """
        if not is_first():
            self._wait_for_the_end()
        write_facts(self.options.notes, facts)
        leave_note(self.options.notes, event="measured")
        self._wait_for_the_end()

    def _reseed(self, loader: Any) -> None:
        assert self.plan.reseed is not None
        self._reseeded += 1
        reseed(loader, self.plan.reseed + self._reseeded)

    def _wait_for_the_end(self) -> None:
        """Stop here: the process that waits ends this one and all that it has started."""
        self._done = True
        wait_to_be_ended(self.options.notes, self.plan.parent)
