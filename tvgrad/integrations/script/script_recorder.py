"""ScriptRecorder: the recorder of a training loop that does not know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.integrations.script.clipping import CLIP_FACTS
from tvgrad.integrations.script.continuation import Continuation, announce_begun, begun_before
from tvgrad.integrations.script.find_trained_module import TrainedModule, held_by
from tvgrad.integrations.script.losses import Losses
from tvgrad.integrations.script.notes import say
from tvgrad.integrations.script.options import ScriptOptions, launch_of
from tvgrad.integrations.script.spread_recording import continuation_of, spread_model, writer_of
from tvgrad.integrations.script.weights_watch import WeightsWatch, differ
from tvgrad.numerics.device import distributed_count
from tvgrad.record.clock import Clock
from tvgrad.record.collector import Collector, Moment, StepWatch
from tvgrad.record.run_header import RunHeader, read_rule
from tvgrad.record.spread_model import SpreadModel
from tvgrad.record.spread_writer import SpreadWriter
from tvgrad.store.layout import MANIFEST
from tvgrad.store.measured import LATER
from tvgrad.vectors.parameters import Weights, first_not_finite, group_names
from tvgrad.vectors.spread import own_part
from tvgrad.wording import printable

Guard = Callable[[Callable[[], None]], None]


class ScriptRecorder:
    """Records into a run directory by a thread, so that the script waits for copies in memory only.

    It keeps no state to resume from: a script that goes on loads its own checkpoint.
    """

    def __init__(
        self, trained: TrainedModule, options: ScriptOptions, guard: Guard, losses: Losses, *, trial_steps: int = 0
    ) -> None:
        """Record the weights before the first step.

        Args:
            trained: the optimizers, their module and the names of their parameters.
            options: what to record, and where.
            guard: runs a function so that its errors do not reach the script.
            losses: those of the script.
            trial_steps: how many were taken before the pretrained weights were put back.

        Raises:
            TvgradError: the run cannot be made.
        """  # noqa: DOC502 - raised by the writer
        self._model, self._parameters = trained.root, trained.parameters
        self._spread = spread_model(trained.parameters)
        self._out = Path(options.out)
        self._clock = Clock(options.record_at)
        self._keep, self._losses = options.keep, losses
        self._logged: dict[str, float] = {}
        launch = {"command": list(options.command), "launch": launch_of(options)}
        earlier = continuation_of(trained.parameters, options, self._spread)
        began = announce_begun(self._out) if earlier is None and begun_before(trained.optimizers) else {}
        header = RunHeader(
            self._out.name,
            trained.root,
            trained.parameters,
            groups=group_names(trained.parameters, options.groups),
            unit=options.record_at.unit,
            record=options.record,
            keep=options.keep,
            keep_gradients=options.keep_gradients,
            optimizers=trained.optimizers,
            info={
                **launch,
                **began,
                **_trainings_before(options.training, trial_steps),
                **_described(trained, options, self._spread),
            },
        )
        self._weights = WeightsWatch([own_part(parameter.detach()) for parameter in trained.parameters.values()])
        self._collector = Collector(
            self._clock,
            trained.root,
            trained.parameters,
            record=options.record,
            background=True,
            folding=True,
            watch=StepWatch(
                facts={"skipped": 0},
                guard=guard,
                before_step=self._weights.look,
                on_gradients=self._require_recorded,
                after_attempt=self._weights.after_step,
            ),
            settle=lambda: self._writer.wait(),
        )
        self._rule = read_rule(trained.optimizers, trained.parameters)["rule"]
        self._held: Moment | None = None
        self._version_held: int | None = None
        self._endings: list[str] = []
        self._copies: Weights = {}  # those collected last: when the script ends cleanly, those recorded last
        self._recorded_steps, self._points = 0, -1
        self._unrecorded: dict[int, tuple[int, list[torch.Tensor]]] = {}
        self._collector.restart()
        self._moved_before = 0
        created = header.creation(self._out, options.overwrite) if earlier is None else earlier.writer
        self._writer = writer_of(created, options, self._spread)
        try:
            if earlier is None:
                self._begin()
            else:
                self._go_on(earlier, launch | earlier.facts(trained.optimizers, trained.parameters, self._spread))
        except BaseException:
            self._writer.close()
            raise
        self._collector.attach(trained.optimizers, None if earlier is None else earlier.groups)

    def _begin(self) -> None:
        """Record the pretrained weights."""
        lost = first_not_finite({name: own_part(parameter) for name, parameter in self._parameters.items()})
        if lost is not None:
            say(
                f"{printable(lost)} of the weights that the training begins with is not finite, so that no task vector "
                "and no gradient of this run will be a number: check what the script loads"
            )
        self._write(self._collected())

    def _go_on(self, earlier: Continuation, facts: Mapping[str, Any]) -> None:
        """Begin where an earlier part of the training ended."""
        self._clock.go_on(earlier.number, earlier.steps)
        self._endings = list(earlier.run.info.get("epoch_endings", ()))
        self._recorded_steps, self._points = earlier.steps, len(earlier.run.points) - 1
        self._moved_before = earlier.moved
        self._copies = self._writer.copied("weights", self._parameters)
        self.add_info(**facts)
        earlier.announce()

    @property
    def steps(self) -> int:
        """Optimizer steps taken; one of several optimizers' together counts once."""
        return self._clock.steps

    @property
    def points(self) -> int:
        """Points recorded after the pretrained weights."""
        return self._points

    @property
    def has_epochs(self) -> bool:
        """Whether what was recorded looks like epochs, and not like a trial on a part of the data."""
        cut = [how == "break" for how in self._endings]
        return self._points > 0 and (not cut or not cut[-1] or (all(cut) and len(cut) > 1))

    @property
    def kept(self) -> str:
        """The end of a sentence on a recording that stopped: empty where the run directory has been removed."""
        return f"; {self._out} keeps what was recorded before" if (self._out / MANIFEST).exists() else ""

    @property
    def returned(self) -> bool:
        """Whether something besides the steps has put the pretrained weights back."""
        return self._weights.returned

    @property
    def in_round(self) -> bool:
        """Whether an optimizer has stepped, and others that train the same model may follow in the same step."""
        return self._collector.in_round

    def stepped_in_round(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether an optimizer has stepped in the step that is not over.

        Args:
            optimizer: one of the model's.

        Returns:
            Whether it has.
        """
        return self._collector.stepped_in_round(optimizer)

    def end_round(self) -> None:
        """The optimizers that have not stepped by now do not take part in the step."""
        self._collector.end_round()

    @property
    def unchanged(self) -> bool:
        """Whether the weights are those after the last step, and still the model's."""
        present = dict(self._model.named_parameters())
        own = all(present.get(name) is parameter for name, parameter in self._parameters.items())
        return own and self._weights.present_version() == self._weights.version

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on with another optimizer of parameters that are recorded.

        Args:
            optimizer: the new one.
        """
        self._collector.follow(optimizer)
        if self._rule is not None and read_rule((optimizer,), self._parameters)["rule"] != self._rule:
            self._rule = None  # the first reason stays
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
        """Add facts to the row of the last attempt, in the place of what was said of its clipping.

        Args:
            facts: plain values.
        """
        self._collector.note_step(**dict.fromkeys(CLIP_FACTS) | facts)

    def end_step(self) -> None:
        """Record the weights after the optimizer's last attempt, where it was a step that is due."""
        if self._collector.took_step and self._clock.step_due:
            self._write(self._collected())

    def hold(self, dropped: bool = False) -> None:
        """Collect what an epoch that may end here would record.

        Args:
            dropped: whether an iterator is going: where an error of this process lets it go, no other process comes to
                collect, so that of spread parameters it is done at the end of the epoch, while weights stand still.
        """
        late = dropped and self._spread is not None
        self._held = self._collected(self._clock.epoch + 1) if self._clock.by_epoch and not late else None
        self._version_held = self._versions() if late else None

    def end(self, how: str) -> None:
        """Record the end of an epoch: what `hold` collected, or the present.

        Args:
            how: loader, break, steps or exit.

        Raises:
            TvgradError: weights that are recorded late, see `hold`, were changed in between.
        """
        self._clock.end_epoch()
        if self._version_held not in {None, self._versions()}:
            raise TvgradError(
                "the script changes its weights between a `break` and its next batch, and parameters that are spread "
                "over processes are recorded then: tell the ends of epochs by --steps-per-epoch"
            )
        if self._clock.by_epoch:
            self._endings.append(how)
            self._write(self._held or self._collected())
            self._writer.extend_info("epoch_endings", [how])
        self._held = self._version_held = None

    def log(self, metrics: Mapping[str, float], ended: bool) -> None:
        """Keep what the script's library logs.

        Args:
            metrics: name -> number.
            ended: whether the last epoch has been recorded, and no step of the next was taken.
        """
        if ended and self._points > 0:
            self._writer.amend(self._clock.number, {}, metrics)
        elif self.steps:
            self._logged |= metrics

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

    @torch.no_grad()
    def _versions(self) -> int:
        """Grows with each write to the parameters, whole or this process's part, that torch knows of."""
        return sum(one._version + own_part(one)._version for one in self._parameters.values())

    def _compare_final(self) -> None:
        """Say where the weights that the script ends with are not the last that were recorded."""
        present = dict(self._model.named_parameters())
        facts: dict[str, Any] = {"moved_outside_steps": self._moved_before + self._weights.moved}
        if self.steps > self._recorded_steps:
            facts["steps_unrecorded"] = self.steps - self._recorded_steps
        if self._spread is None:
            with suppress(RuntimeError, NotImplementedError):  # weights that cannot be read any more: nothing is said
                facts["final_weights_differ"] = differ(self._copies, present)
        self.add_info(**facts)

    def _collected(self, number: int | None = None) -> Moment:
        """What a point recorded now holds; its number, where that is not the present one."""
        self._weights.look_again()
        self._copies = self._writer.copied("weights", self._parameters)
        moment = self._collector.collect({"weights": self._copies}, self._losses.metrics())
        if not isinstance(self._writer, SpreadWriter):
            return moment
        number = self._clock.number if number is None else number
        stem = f"epoch-{number:04d}" if self._clock.by_epoch else f"step-{number:06d}"
        tensors = self._writer.placed(stem, moment.tensors)
        return replace(moment, tensors=tensors, rows=self._writer.whole_norms(moment.rows))

    def _write(self, moment: Moment) -> None:
        moment = replace(moment, metrics={**moment.metrics, **self._logged})
        moment.write(self._writer.add, self._clock.number, keep=self._keep)
        self._collector.clear(moment)
        self._losses.clear()
        self._logged = {}
        self._recorded_steps = moment.steps
        self._points += 1

    def _require_recorded(self, optimizer: torch.optim.Optimizer) -> None:
        """A parameter that begins to train later is not among the recorded ones, and its file would be missing."""
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        known = self._unrecorded.get(id(optimizer))
        if known is None or known[0] != count:
            own = {id(parameter) for parameter in self._parameters.values()}
            known = count, [tensor for key, tensor in held_by(optimizer).items() if key not in own]
            self._unrecorded[id(optimizer)] = known
        late = next((tensor for tensor in known[1] if tensor.grad is not None), None)
        if late is not None:
            raise TvgradError(begins_to_train(self._model, late, self.steps))


def begins_to_train(model: nn.Module, tensor: torch.Tensor, steps: int) -> str:
    """Say that a parameter is trained that the run does not record.

    Args:
        model: the run's.
        tensor: the parameter.
        steps: that were taken before.

    Returns:
        A sentence.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return (
        f"{names.get(id(tensor), 'a parameter')} was frozen at the first step and is trained from step {steps + 1} on, "
        "and a run has the same parameters from its start: --frozen records frozen parameters too"
    )


def _described(trained: TrainedModule, options: ScriptOptions, spread: SpreadModel | None) -> dict[str, Any]:
    """What run.json says of the model and of how it is recorded."""
    held = {key for one in trained.optimizers for key, tensor in held_by(one).items() if tensor.requires_grad}
    later = [name for name, parameter in trained.parameters.items() if id(parameter) not in held]
    return {
        **({} if spread is None and distributed_count() == 1 else {"processes": distributed_count()}),
        **({LATER: later} if later else {}),
        "model": trained.label,
        "steps_per_epoch": options.steps_per_epoch,
        "config": _config_of(trained.root),
    }


def _config_of(model: nn.Module) -> dict[str, Any] | None:
    """A Hugging Face model's configuration."""
    describe = getattr(getattr(model, "config", None), "to_dict", None)
    return dict(describe()) if callable(describe) else None


def _trainings_before(training: int, trial_steps: int) -> dict[str, int]:
    """What a run says of the trainings before it in one command; nothing where there was none."""
    said = {"trial_steps": (trial_steps, 0), "training": (training, 1)}
    return {name: value for name, (value, usual) in said.items() if value != usual}
