"""ScriptRecorder: the recorder of a training loop that does not know of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch

from tvgrad.errors import TvgradError
from tvgrad.integrations.script.find_trained_module import TrainedModule, held_by
from tvgrad.integrations.script.optimizer_options import OptimizerOptions
from tvgrad.integrations.script.options import ScriptOptions
from tvgrad.integrations.script.weights_watch import WeightsWatch, differ
from tvgrad.record.clock import Clock
from tvgrad.record.collector import Collector, Moment, StepWatch
from tvgrad.record.run_header import RunHeader, read_rule
from tvgrad.store.background import BackgroundWriter
from tvgrad.vectors.parameters import Weights, group_names

Guard = Callable[[Callable[[], None]], None]


class ScriptRecorder:
    """Records into a run directory by a thread, so that the script waits for copies in memory only.

    It keeps no state to resume from: the script is started again, not the recording.
    """

    def __init__(self, trained: TrainedModule, options: ScriptOptions, guard: Guard) -> None:
        """Record the weights before the first step.

        Args:
            trained: the optimizer, its module and the names of its parameters.
            options: what to record, and where.
            guard: runs a function so that its errors do not reach the script.

        Raises:
            TvgradError: the run cannot be made.
        """  # noqa: DOC502 - raised by the writer
        self._model, self._parameters = trained.root, trained.parameters
        self._clock = Clock(options.record_at)
        self._keep = options.keep
        at_first = OptimizerOptions(trained.optimizer)
        describe = getattr(getattr(trained.root, "config", None), "to_dict", None)
        header = RunHeader(
            Path(options.out).name,
            trained.root,
            trained.parameters,
            groups=group_names(trained.parameters, options.groups),
            unit=options.record_at.unit,
            record=options.record,
            keep=options.keep,
            optimizer=trained.optimizer,
            info={
                "command": list(options.command),
                "model": trained.label,
                "steps_per_epoch": options.steps_per_epoch,
                "optimizer_groups": at_first.first,
                "config": dict(describe()) if callable(describe) else None,
            },
        )
        self._weights = WeightsWatch(list(trained.parameters.values()))
        self._collector = Collector(
            self._clock,
            trained.root,
            trained.parameters,
            record=options.record,
            background=True,
            folding=True,
            watch=StepWatch(
                at_first.row,
                guard,
                before_step=self._weights.look,
                on_gradients=self._require_recorded,
                after_attempt=self._weights.after_step,
            ),
        )
        self._rule = read_rule(trained.optimizer)["rule"]
        self._held: Moment | None = None
        self._endings: list[str] = []
        self._copies: Weights = {}  # those collected last: when the script ends cleanly, those recorded last
        self._recorded_steps = 0
        self._count = -1
        self._unrecorded: list[torch.Tensor] = []
        self._collector.restart()
        self._writer = BackgroundWriter(header.creation(Path(options.out), options.overwrite))
        try:
            self._write(self._collected())
        except BaseException:
            self._writer.close()
            raise
        self._collector.attach(trained.optimizer)

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        return self._clock.steps

    @property
    def unchanged(self) -> bool:
        """Whether the weights are those after the last step, and still the model's."""
        present = dict(self._model.named_parameters())
        own = all(present.get(name) is parameter for name, parameter in self._parameters.items())
        return own and self._weights.present_version() == self._weights.version

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on with another optimizer of the same parameters.

        Args:
            optimizer: the new one.
        """
        self._collector.attach(optimizer)
        if read_rule(optimizer)["rule"] != self._rule:
            self._rule = None
            self.add_info(rule=None, rule_reason=f"the script made a new optimizer after step {self.steps}")

    def add_info(self, **facts: Any) -> None:
        """Add facts to the run's description.

        Args:
            facts: plain values.
        """
        self._writer.update_info(**facts)

    def note_skipped(self, optimizer: torch.optim.Optimizer, **facts: Any) -> None:
        """Note an attempt that a gradient scaler did not let through, because a gradient was not finite.

        Args:
            optimizer: whose step was skipped.
            facts: more for its row.
        """
        self._collector.add_row(optimizer, **facts, skipped=1)

    def note_step(self, **facts: Any) -> None:
        """Add facts to the row of the optimizer's last attempt.

        Args:
            facts: plain values.
        """
        self._collector.note_step(**facts)

    def end_step(self) -> None:
        """Record the weights after the optimizer's last attempt, where it was a step that is due."""
        if self._collector.took_step and self._clock.step_due:
            self._write(self._collected())

    def hold(self) -> None:
        """Collect what an epoch that may end here would record."""
        self._held = self._collected() if self._clock.by_epoch else None

    def end(self, how: str) -> None:
        """Record the end of an epoch: what `hold` collected, or the present.

        Args:
            how: loader, break, steps or exit.
        """
        self._clock.end_epoch()
        if self._clock.by_epoch:
            self._endings.append(how)
            self._write(self._held or self._collected())
            self.add_info(epoch_endings=list(self._endings))
        self._held = None

    def close(self, finished: bool) -> None:
        """Write what is waiting, and give the directory back.

        Args:
            finished: whether the script came to its end.
        """
        self._collector.detach()
        with closing(self._writer):
            if finished:
                self._compare_final()
                self._writer.finish()

    def _compare_final(self) -> None:
        """Say where the weights that the script ends with are not the last that were recorded."""
        present = dict(self._model.named_parameters())
        facts: dict[str, Any] = {"moved_outside_steps": self._weights.moved}
        if self.steps > self._recorded_steps:
            facts["steps_unrecorded"] = self.steps - self._recorded_steps
        with suppress(RuntimeError, NotImplementedError):  # weights that cannot be read any more: nothing is said
            facts["final_weights_differ"] = differ(self._copies, present)
        self.add_info(**facts)

    def _collected(self) -> Moment:
        self._weights.look_again()
        self._copies = self._writer.copied("weights", self._parameters)
        return self._collector.collect({"weights": self._copies}, {})

    def _write(self, moment: Moment) -> None:
        moment.write(self._writer, self._clock.number, keep=self._keep)
        self._collector.clear(moment)
        self._recorded_steps = moment.steps

    def _require_recorded(self, optimizer: torch.optim.Optimizer) -> None:
        """A parameter that begins to train later is not among the recorded ones, and its file would be missing."""
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        if count != self._count:
            own = {id(parameter) for parameter in self._parameters.values()}
            self._unrecorded = [tensor for key, tensor in held_by(optimizer).items() if key not in own]
            self._count = count
        late = next((tensor for tensor in self._unrecorded if tensor.grad is not None), None)
        if late is not None:
            names = {id(tensor): name for name, tensor in self._model.named_parameters()}
            raise TvgradError(
                f"{names.get(id(late), 'a parameter')} was frozen at the first step and is trained from step "
                f"{self.steps + 1} on: a run has one set of trainable parameters"
            )
