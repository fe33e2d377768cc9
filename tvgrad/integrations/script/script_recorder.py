"""ScriptRecorder: the recorder of a training loop that does not know of it."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch

from tvgrad.errors import TvgradError
from tvgrad.integrations.script.find_trained_module import Trained, held_by
from tvgrad.integrations.script.options import ScriptOptions
from tvgrad.numerics.no_compile import eager
from tvgrad.record.gradient_sum import GradientSum
from tvgrad.record.recorder import Moment, Recorder, _read_rule, when_gradients_are_there
from tvgrad.vectors.parameters import Weights, norm

HYPER = ("momentum", "dampening", "nesterov", "betas", "eps", "weight_decay", "amsgrad", "alpha", "maximize")

Guard = Callable[[Callable[[], None]], None]


class ScriptRecorder(Recorder):
    """Records into a run directory by a thread, so that the script waits for copies in memory only.

    It keeps no state to resume from: the script is started again, not the recording.
    """

    def __init__(self, trained: Trained, options: ScriptOptions, guard: Guard) -> None:
        """Prepare to record.

        Args:
            trained: the optimizer, its module and the names of its parameters.
            options: what to record, and where.
            guard: runs a function so that its errors do not reach the script.
        """
        describe = getattr(getattr(trained.root, "config", None), "to_dict", None)
        super().__init__(
            options.out,
            trained.root,
            trained.optimizer,
            record_at=options.record_at,
            record=[kind for kind in options.record if kind != "gradient-norms"],
            keep=options.keep,
            groups=options.groups,
            info={
                "command": list(options.command),
                "model": trained.label,
                "steps_per_epoch": options.steps_per_epoch,
                "optimizer_groups": [_hyper(group) for group in trained.optimizer.param_groups],
                "config": dict(describe()) if callable(describe) else None,
            },
            parameters=trained.parameters,
            background=True,
        )
        self._guard = guard
        self._norms = "gradient-norms" in options.record
        self._first = [_hyper(group) for group in trained.optimizer.param_groups]
        self._given = _given(trained.optimizer.param_groups)
        self._mutable = any(isinstance(value, (list, torch.Tensor)) for group in self._given for value in group)
        self._sum, self._other_sum = GradientSum(), GradientSum()
        self._held: Moment | None = None
        self._endings: list[str] = []
        self._version = 0
        self._count = -1
        self._unrecorded: list[torch.Tensor] = []

    @property
    def unchanged(self) -> bool:
        """Whether the weights are those after the last step, and still the model's."""
        present = dict(self.model.named_parameters())
        own = all(present.get(name) is parameter for name, parameter in self._parameters.items())
        return own and self._versions() == self._version

    @property
    def took_step(self) -> bool:
        """Whether the last attempt of the optimizer was a step."""
        return bool(self._rows) and not self._rows[-1].get("skipped")

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on with another optimizer of the same parameters.

        Args:
            optimizer: the new one.
        """
        for hook in self._hooks:
            hook.remove()
        self._optimizer = optimizer
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        rule = _read_rule(None, optimizer)[0]
        if (rule and rule.to_dict()) != (self._rule and self._rule.to_dict()):
            self._rule, self._rule_reason = None, f"the script made a new optimizer after step {self.steps}"
            self.add_info(rule=None, rule_reason=self._rule_reason)

    def note_skipped(self, optimizer: torch.optim.Optimizer, **facts: Any) -> None:
        """Note an attempt that a gradient scaler did not let through, because a gradient was not finite.

        Args:
            optimizer: whose step was skipped.
            facts: more for its row.
        """
        self._rows.append({**self._row(optimizer), **facts, "skipped": 1})

    def hold(self) -> None:
        """Collect what an epoch that may end here would record."""
        self._held = None
        if self._unit == "epoch":
            self._held = self._collected({})

    def end(self, how: str) -> None:
        """Record the end of an epoch: what `hold` collected, or the present.

        Args:
            how: loader, break, steps or exit.
        """
        moment, self._held = self._held, None
        self.epoch += 1
        self.steps_in_epoch = 0
        if self._unit == "epoch":
            self._endings.append(how)
            self._write(self.epoch, self._collected({}) if moment is None else moment)
            self.add_info(epoch_endings=list(self._endings))

    @eager
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """Note the step; one that takes a closure has its gradients when the closure returns, not before."""
        self._guard(lambda: self._rows.append(self._row(optimizer)))
        return when_gradients_are_there(args, kwargs, lambda: self._guard(self._consume))

    @eager
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._guard(self._count_step)

    def _count_step(self) -> None:
        if self.took_step:
            super()._count_step()
            self._version = self._versions()

    def _row(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Rates, and whatever other option of the optimizer is not what it was at the first step."""
        groups = optimizer.param_groups
        rates = [float(group["lr"]) for group in groups]
        rate = rates[0] if len(set(rates)) == 1 else float("nan")
        row: dict[str, Any] = {"step": self.steps + 1, "lr": rate, "skipped": 0}
        if len(set(rates)) > 1:
            row |= {f"lr_{index}": rate for index, rate in enumerate(rates)}
        if not self._mutable and _given(groups) == self._given:
            return row
        for index, group in enumerate(groups):
            then = self._first[index] if index < len(self._first) else {}
            for name, value in _hyper(group).items():
                if name not in then or then[name] != value:
                    row[f"{name}_{index}" if len(groups) > 1 else name] = value
        return row

    @torch.no_grad()
    def _consume(self) -> None:
        """Add the gradients that the step is about to consume (it may change them in place)."""
        optimizer = self._optimizer
        if optimizer is None:
            return
        self._check_unrecorded(optimizer)
        # Fused optimizers take scaled gradients, and decide themselves whether to skip.
        found = getattr(optimizer, "found_inf", None)
        if found is not None and float(found) > 0:
            self._rows[-1]["skipped"] = 1
            return
        scale = getattr(optimizer, "grad_scale", None)
        present = {n: p.grad for n, p in self._parameters.items() if p.grad is not None}
        if "epoch-gradients" in self._record:
            self._sum.add(present, None if scale is None else float(scale))
        if self._norms and present:
            self._rows[-1]["gradient_norm"] = norm(present) / (1.0 if scale is None else float(scale))

    def _check_unrecorded(self, optimizer: torch.optim.Optimizer) -> None:
        """A parameter that begins to train later is not among the recorded ones, and its file would be missing."""
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        if count != self._count:
            own = {id(parameter) for parameter in self._parameters.values()}
            self._unrecorded = [tensor for key, tensor in held_by(optimizer).items() if key not in own]
            self._count = count
        if any(tensor.grad is not None for tensor in self._unrecorded):
            names = {id(tensor): name for name, tensor in self.model.named_parameters()}
            late = next(tensor for tensor in self._unrecorded if tensor.grad is not None)
            raise TvgradError(
                f"{names.get(id(late), 'a parameter')} was frozen at the first step and is trained from step "
                f"{self.steps + 1} on: a run has one set of trainable parameters"
            )

    def _versions(self) -> int:
        return sum(map(attrgetter("_version"), self._parameters.values()))

    def _write(self, number: int, moment: Moment) -> None:
        super()._write(number, moment)
        if self._sum.on_cpu:  # the thread reads this sum while the next one grows
            self._sum, self._other_sum = self._other_sum, self._sum
        self._sum.clear()

    def _epoch_gradient(self) -> Weights | Callable[[], Weights] | None:
        gathered, like = self._sum, self._parameters
        if not gathered:
            return None
        return (lambda: gathered.total(like)) if gathered.on_cpu else gathered.total(like)

    def _state(self) -> None:
        return None


def _given(groups: list[dict[str, Any]]) -> list[list[Any]]:
    """The groups' options but the rate, as they are: a look at every step must be quick."""
    return [[group.get(name) for name in HYPER] for group in groups]


def _hyper(group: dict[str, Any]) -> dict[str, Any]:
    """A parameter group's options but the rate, as plain values."""
    found: dict[str, Any] = {}
    for name in HYPER:
        value = group.get(name)
        if name == "betas" and value is not None:
            found |= {f"beta{index}": float(beta) for index, beta in enumerate(value, start=1)}
        elif value is not None:
            found[name] = value if isinstance(value, (bool, int)) else float(value)
    return found
