"""ReplaySession: a script trained once more, to form the sums over its steps that its error budget needs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.integrations.measuring.gradient_total import consumed_gradients
from tvgrad.integrations.measuring.held_whole import average, take_apart
from tvgrad.integrations.measuring.measuring_session import MeasuringSession
from tvgrad.integrations.measuring.pass_sums import begun_sums
from tvgrad.record.batch_items import sum_of_fingerprints
from tvgrad.record.step_sums import StepSums


class ReplaySession(MeasuringSession):
    """Follows a script as it trains from the recorded theta_0, up to the end of the last epoch that is explained."""

    _training = False
    _steps: StepSums | None = None
    _aside: Mapping[str, torch.Tensor] = MappingProxyType({})

    def before_backward(self) -> None:
        """A backward pass begins."""
        self._depth += 1
        if self._depth > 1:
            return
        self.forget_first_forward()
        if self._placement is not None:
            self._placement.require_no_open_step()
        self._training = True
        self._consume_batch()
        self._aside = take_apart(self._made_whole)

    def after_backward(self) -> None:
        """A backward pass has ended."""
        self._depth = max(0, self._depth - 1)
        if self._depth == 0 and self._made_whole:
            average(self._made_whole, self._aside)

    @property
    def _made_whole(self) -> dict[str, nn.Parameter]:
        """The parameters of a model that was spread: averaging their gradients is no matter of its modules any more."""
        placement = self._placement
        return placement.trained.parameters if placement and placement.made_whole and placement.trained else {}

    def before_step(self, optimizer: torch.optim.Optimizer, *, again: bool = False) -> None:
        """An optimizer is about to step, and its gradients are there.

        Args:
            optimizer: any of the script's.
            again: whether a closure has computed gradients in this step before.

        Raises:
            TvgradError: the optimizer computes its gradients several times.
        """
        placement = self._placed()
        if not placement.moves(optimizer):
            self._require_known(placement, optimizer)
            return
        if again:
            raise TvgradError("its optimizer computes gradients several times in a step, which has no update rule here")
        if placement.in_step:  # the first of several optimizers found the gradients of all
            return
        assert placement.trained is not None
        if self._trial:
            return
        parameters = placement.trained.parameters
        if self._steps is None:
            self._steps = begun_sums(self.plan, self.options.notes, placement)
        scale = getattr(optimizer, "grad_scale", None)
        grads = consumed_gradients(parameters, 1.0 if scale is None else float(scale))
        self._steps.add_training_step(grads, {name: p.detach() for name, p in parameters.items()})
        self._fingerprints.append(sum_of_fingerprints([one.fingerprint for one in self.epochs.items]))

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped.

        Args:
            optimizer: any of the script's.
        """
        placement, steps = self._placed(), self._steps
        if placement.trained is None or not placement.moves(optimizer) or not placement.ends_step(optimizer):
            return
        if self._trial:
            self.pass_over_trial()
        if steps is None:
            return
        steps.end_training_step(placement.trained.parameters)
        self.epochs.after_step()
        if steps.complete:
            self.report_and_wait({"fingerprints": self._fingerprints})

    def hold(self) -> None:
        """Ends of epochs are those of the plan."""

    def end(self, how: str) -> None:
        """Ends of epochs are those of the plan.

        Args:
            how: of no matter.
        """

    def _place(self) -> None:
        if not self._training:
            super()._place()
