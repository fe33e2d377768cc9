"""Recorder round a loop of one's own: what is recorded, what is refused, and a resume to the same bits."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tvgrad
from tvgrad.errors import TvgradError
from tvgrad.store.run import Run
from tvgrad.update_rules.grouped import GroupedRule
from tvgrad.update_rules.rules import SGD

Bits = Callable[[Path], dict[str, bytes]]
GENERATOR = torch.Generator().manual_seed(11)
INPUTS = torch.randn(24, 6, generator=GENERATOR)
TARGETS = torch.randint(0, 3, (24,), generator=GENERATOR)
LOSS = nn.CrossEntropyLoss()


class Stop(Exception):
    """The loop is interrupted here."""


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    model = network()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objective = tvgrad.Objective(model, LOSS, (INPUTS, TARGETS))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with tvgrad.Recorder(tmp_path, model, optimizer, objective) as recorder:
        assert equal(Run.open(tmp_path).weights(0), start)
        for epoch in range(3):
            for batch in torch.arange(24).split(8):
                optimizer.zero_grad()
                LOSS(model(INPUTS[batch]), TARGETS[batch]).backward()
                optimizer.step()
            recorder.end_epoch(metrics={"accuracy": epoch / 7})
            expected.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    run = tvgrad.Run.open(tmp_path)
    assert run.problems() == []
    assert run.epochs == [0, 1, 2, 3]
    assert [point.steps for point in run.points] == [0, 3, 6, 9]
    assert all(equal(run.weights(epoch), expected[epoch - 1]) for epoch in (1, 2, 3))
    for epoch in range(4):
        theta = {name: tensor.clone().requires_grad_() for name, tensor in run.weights(epoch).items()}
        loss = LOSS(torch.func.functional_call(model, theta, (INPUTS,)), TARGETS)
        gradient = dict(zip(theta, torch.autograd.grad(loss, tuple(theta.values())), strict=True))
        for name, tensor in run.gradient(epoch).items():
            torch.testing.assert_close(tensor, gradient[name], rtol=1e-5, atol=1e-7)
        assert run.metrics["loss"][epoch] == pytest.approx(loss.item(), rel=1e-6)
    assert run.metrics["accuracy"][1:].tolist() == [0, 1 / 7, 2 / 7]
    assert run.rule == tvgrad.update_rules.SGD(0.1)
    assert run.manifest.finished


def test_epoch_gradients_are_the_sums_of_what_the_steps_consumed(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sums: list[dict[str, torch.Tensor]] = []
    with tvgrad.Recorder(tmp_path, model, optimizer) as recorder:
        for _ in range(2):
            total: dict[str, torch.Tensor] = {}
            for batch in torch.arange(24).split(7):
                optimizer.zero_grad()
                LOSS(model(INPUTS[batch]), TARGETS[batch]).backward()
                for name, parameter in model.named_parameters():
                    assert parameter.grad is not None
                    total[name] = total.get(name, torch.zeros(())) + parameter.grad.double()
                optimizer.step()
            recorder.end_epoch()
            sums.append(total)
    run = Run.open(tmp_path)
    assert run.having("epoch_gradient") == [1, 2]
    assert run.having("gradient") == []
    for epoch, total in enumerate(sums, start=1):
        for name, tensor in run.epoch_gradient(epoch).items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, total[name].float())
    lengths = run.steps()["gradient_norm"]
    assert len(lengths) == 8
    assert (lengths > 0).all()


def test_a_full_batch_loop_has_both_verdicts(tmp_path: Path) -> None:
    """With an optimizer and an objective, what the step consumed and the full-batch gradient are both recorded."""
    model = network()
    objective = tvgrad.Objective(model, LOSS, (INPUTS, TARGETS))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvgrad.Recorder(tmp_path, model, optimizer, objective) as recorder:
        optimizer.zero_grad()
        LOSS(model(INPUTS), TARGETS).backward()
        optimizer.step()
        recorder.end_epoch()
    run = tvgrad.Run.open(tmp_path)
    assert run.info["record"] == ["gradients", "epoch-gradients"]
    (verdict,) = tvgrad.check_one_epoch(run).verdicts
    assert verdict.holds == "exact"
    assert "the gradient that the step consumed, off the full-batch gradient by" in verdict.reason


def test_gradients_that_a_closure_computes(tmp_path: Path) -> None:
    """A step that takes a closure has its gradients when that has returned; before, the last step's are there."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = torch.randn(8, 3, dtype=torch.float64)
    consumed = torch.zeros(2, 3, dtype=torch.float64)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    with tvgrad.Recorder(tmp_path / "run", model, optimizer) as recorder:
        for step in range(3):
            assert (optimizer.step(closure) if step else optimizer.step(closure=closure)) is not None
            assert model.weight.grad is not None
            consumed += model.weight.grad
        recorder.end_epoch()
    record = Run.open(tmp_path / "run")
    assert torch.equal(record.epoch_gradient(1)["weight"], consumed)
    assert record.steps()["gradient_norm"].gt(0).all()


def test_the_steps_table_has_every_digit(tmp_path: Path) -> None:
    model = network()
    rates = [1 / 3, 0.1 + 0.2, 1e-17, 2 / 7]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with tvgrad.Recorder(tmp_path, model, optimizer, record=()) as recorder:
        for rate in rates:
            optimizer.param_groups[0]["lr"] = rate
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            recorder.note_step(batch_size=5, clip_factor=0.1 * 3, loss_scale=1024.0, skipped=0)
        recorder.end_epoch()
    with open(tmp_path / "steps" / "epoch-0001.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["step", "lr", "batch_size", "clip_factor", "loss_scale", "skipped"]
    assert [float(row["lr"]) for row in rows] == rates
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    table = Run.open(tmp_path).steps()
    assert table["lr"].tolist() == rates
    assert table["clip_factor"].tolist() == [0.1 * 3] * 4
    assert table["step"].tolist() == [1, 2, 3, 4]


def test_a_run_without_steps_has_an_empty_table(tmp_path: Path) -> None:
    with tvgrad.Recorder(tmp_path, network()) as recorder:
        recorder.end_epoch()
    run = Run.open(tmp_path)
    assert len(run.steps()) == 0
    assert (run.rule, run.info["rule_reason"]) == (None, "no optimizer was given")


def test_rates_that_differ_between_groups_are_not_one_rate(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD([
        {"params": model[0].parameters(), "lr": 0.1},
        {"params": model[2].parameters(), "lr": 0.2},
    ])
    with tvgrad.Recorder(tmp_path, model, optimizer, record=()) as recorder:
        optimizer.step()
        recorder.end_epoch()
    run = Run.open(tmp_path)
    assert isinstance(run.rule, GroupedRule)
    assert (run.rule.of("0.bias"), run.rule.of("2.weight")) == (SGD(0.1), SGD(0.2))
    assert np.isnan(run.steps()["lr"][0])
    assert run.steps()[["lr_0", "lr_1"]].to_numpy().tolist() == [[0.1, 0.2]]


def test_two_optimizers_of_one_model_are_one_run(tmp_path: Path) -> None:
    model = network()
    first = torch.optim.SGD(model[0].parameters(), lr=0.5)
    second = torch.optim.SGD(model[2].parameters(), lr=0.25)
    with tvgrad.Recorder(tmp_path, model, [first, second], background=True) as recorder:
        for step in range(3):
            model.zero_grad()
            model(torch.ones(2, 6)).square().mean().backward()
            first.step()
            if step != 1:
                second.step()
        assert recorder.steps == 3
        recorder.end_epoch()
    run = Run.open(tmp_path)
    rates = run.steps()
    assert rates["step"].tolist() == [1, 2, 3]
    assert rates["lr_0"].tolist() == [0.5] * 3
    assert rates["lr_1"].isna().tolist() == [False, True, False]
    for name, total in run.epoch_gradient(1).items():  # what an optimizer that did not step has not consumed
        rate = 0.5 if name.startswith("0.") else 0.25
        torch.testing.assert_close(total.double(), -run.task_vector(1)[name] / rate, rtol=1e-4, atol=1e-6)
    with pytest.raises(TvgradError, match="the state of one can be kept"):
        tvgrad.Recorder(tmp_path, model, [first, second], resume=True).__enter__()


def test_recording_by_step(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = {}
    with tvgrad.Recorder(tmp_path, model, optimizer, record_at="steps:1,3,10", record=["epoch-gradients"]) as recorder:
        for step in range(1, 5):
            optimizer.zero_grad()
            LOSS(model(INPUTS), TARGETS).backward()
            optimizer.step()
            recorder.end_step({"seen": step})
            seen[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        recorder.end_epoch()
    run = Run.open(tmp_path)
    assert (run.unit, run.epochs) == ("step", [0, 1, 3])
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == [
        f"step-{number:06d}.safetensors" for number in (0, 1, 3)
    ]
    assert all(equal(run.weights(step), seen[step]) for step in (1, 3))
    assert run.steps(3)["step"].tolist() == [2, 3]
    with pytest.raises(TvgradError, match="has no step 2: it has 0-1, 3"):
        run.weights(2)


class TiedModel(nn.Module):
    """Embedding and output share a matrix; the bias is frozen; a buffer is not part of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.output = nn.Linear(4, 5)
        self.output.weight = self.embedding.weight
        self.output.bias.requires_grad_(False)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.output(self.embedding(tokens) * self.scale)


def test_tied_and_frozen_parameters_are_stored_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TiedModel()
    tokens = torch.arange(5)
    optimizer = torch.optim.SGD([model.embedding.weight], lr=0.1)
    with tvgrad.Recorder(tmp_path, model, optimizer) as recorder:
        LOSS(model(tokens), tokens.flip(0)).backward()
        optimizer.step()
        recorder.end_epoch()
    run = Run.open(tmp_path)
    assert list(run.parameters) == ["embedding.weight"]
    assert run.manifest.tied == {"output.weight": "embedding.weight"}
    assert sorted(run.static()) == ["output.bias", "scale"]
    assert run.having("buffers") == []
    twin = TiedModel()
    twin.load_state_dict(run.complete(1))
    assert torch.equal(twin(tokens), model(tokens))


def test_buffers_are_recorded_where_they_changed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    counted = []
    with tvgrad.Recorder(tmp_path, model, optimizer, record=()) as recorder:
        for train in (False, True, False):
            model.train(train)
            optimizer.zero_grad()
            LOSS(model(INPUTS), TARGETS).backward()
            optimizer.step()
            recorder.end_epoch()
            counted.append({name: buffer.clone() for name, buffer in model.named_buffers()})
    run = Run.open(tmp_path)
    assert run.having("buffers") == [2]
    assert not (tmp_path / "buffers" / "epoch-0001.safetensors").exists()
    assert run.buffers(1) == {}
    assert equal(run.buffers(3), counted[2])
    assert run.buffers(3)["1.num_batches_tracked"] == 1
    for epoch in (1, 2, 3):
        complete = run.complete(epoch)
        assert all(torch.equal(complete[name], tensor) for name, tensor in counted[epoch - 1].items())
    assert run.problems() == []


def test_bfloat16_sums_are_kept_in_float32(tmp_path: Path) -> None:
    model = network().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvgrad.Recorder(tmp_path, model, optimizer) as recorder:
        for value in (1.0, 2.0**-9):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, value)
            optimizer.step()
        recorder.end_epoch()
    run = Run.open(tmp_path)
    assert run.parameters["0.weight"].dtype == "bfloat16"
    assert run.weights(1)["0.weight"].dtype == torch.bfloat16
    assert torch.equal(run.epoch_gradient(1)["0.weight"], torch.full((8, 6), 1 + 2.0**-9))


# --- resume ------------------------------------------------------------------------------------------------------

SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "none": lambda _: None,
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.3),
    "milestones": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 3, 4], 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
    "function": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=8),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0, factor=0.5),
    "chain": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=2), torch.optim.lr_scheduler.MultiStepLR(o, [1, 2])],
        [2],
    ),
}

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.99), amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
}


def loop(
    directory: Path,
    make_optimizer: Callable[[Any], torch.optim.Optimizer],
    make_scheduler: Callable[[torch.optim.Optimizer], Any],
    stop_after: int | None = None,
    seed: int = 0,
) -> None:
    """A plain loop: shuffled mini-batches, dropout, batch statistics, numpy and Python noise, a scheduler."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))
    optimizer = make_optimizer(model.parameters())
    scheduler = make_scheduler(optimizer)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(INPUTS, TARGETS), batch_size=8, shuffle=True, drop_last=True
    )
    recorder = tvgrad.Recorder(directory, model, optimizer, scheduler=scheduler, resume=True)
    with recorder:
        while recorder.epoch < 5:
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss = LOSS(model(inputs + 0.01 * np.random.randn()), targets)  # noqa: NPY002
                loss.backward()
                optimizer.step()
            if scheduler is not None:
                metric = (1.0,) if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else ()
                scheduler.step(*metric)
            recorder.end_epoch({"last": loss.item()})
            if recorder.epoch == stop_after:
                raise Stop


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")
@pytest.mark.filterwarnings("ignore:The epoch parameter.*:UserWarning")
@pytest.mark.parametrize(
    ("optimizer", "scheduler"), [*itertools.product(OPTIMIZERS, ["none"]), *(("adam", name) for name in SCHEDULERS)]
)
def test_a_resumed_loop_ends_with_the_same_bits(tmp_path: Path, bits: Bits, optimizer: str, scheduler: str) -> None:
    parts = OPTIMIZERS[optimizer], SCHEDULERS[scheduler]
    loop(tmp_path / "whole", *parts)
    for stop in (1, 2, 4):
        with pytest.raises(Stop):
            loop(tmp_path / "parts", *parts, stop_after=stop)
        assert not Run.open(tmp_path / "parts").manifest.finished
    loop(tmp_path / "parts", *parts)
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")
    assert Run.open(tmp_path / "parts").metrics["last"].equals(Run.open(tmp_path / "whole").metrics["last"])


def test_a_resume_does_not_need_the_same_start(tmp_path: Path, bits: Bits) -> None:
    """Weights, buffers and random numbers all come from the run, frozen parameters too."""
    parts = OPTIMIZERS["momentum"], SCHEDULERS["none"]
    loop(tmp_path / "whole", *parts)
    with pytest.raises(Stop):
        loop(tmp_path / "parts", *parts, stop_after=2)
    loop(tmp_path / "parts", *parts, seed=77)
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


def test_frozen_parameters_are_put_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TiedModel()
    with tvgrad.Recorder(tmp_path, model) as recorder:
        recorder.end_epoch()
    twin = TiedModel()
    assert not torch.equal(twin.output.bias, model.output.bias)
    with tvgrad.Recorder(tmp_path, twin, resume=True) as recorder:
        assert recorder.epoch == 1
    assert all(torch.equal(tensor, twin.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_loop_recorded_by_step_resumes_inside_an_epoch(tmp_path: Path, bits: Bits) -> None:
    def run(directory: Path, stop_at: int | None = None) -> None:
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        with tvgrad.Recorder(directory, model, optimizer, record_at="steps:1,2,4,5,8", resume=True) as recorder:
            while recorder.epoch < 3:
                for batch in torch.arange(24).split(8)[recorder.steps_in_epoch :]:
                    optimizer.zero_grad()
                    LOSS(model(INPUTS[batch]), TARGETS[batch]).backward()
                    optimizer.step()
                    recorder.end_step()
                    if recorder.steps == stop_at:
                        raise Stop
                recorder.end_epoch()

    run(tmp_path / "whole")
    for stop in (2, 3, 4, 7, 9):
        with pytest.raises(Stop):
            run(tmp_path / "parts", stop)
    run(tmp_path / "parts")
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")
    assert Run.open(tmp_path / "parts").points[-1].steps == 8


def test_what_cannot_be_resumed_is_refused_with_its_reason(tmp_path: Path) -> None:
    model = network()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = LOSS(model(INPUTS), TARGETS)
        loss.backward()
        return loss

    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    with tvgrad.Recorder(tmp_path, model, optimizer, record=()) as recorder:
        optimizer.step(closure)
        recorder.end_epoch()
    assert Run.open(tmp_path).problems() == []
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)
    with (
        pytest.raises(TvgradError, match=r"optimizer's state could not be kept .LBFGS keeps "),
        tvgrad.Recorder(tmp_path, model, optimizer, record=(), resume=True),
    ):
        pass
    assert not (tmp_path / "writer.lock").exists()


def refused(directory: Path, words: str, **options: Any) -> None:
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(TvgradError, match=words), tvgrad.Recorder(directory, **options, resume=True):
        pass
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_a_resume_with_something_else_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    def parts(seed: int = 0, lr: float = 0.1, data: torch.Tensor = INPUTS) -> dict[str, Any]:
        model = network(seed)
        return {
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=lr),
            "objective": tvgrad.Objective(model, LOSS, (data, TARGETS), chunk_size=24),
        }

    with tvgrad.Recorder(tmp_path, **parts()) as recorder:
        recorder.end_epoch()
    refused(tmp_path, r"another update rule \(name sgd lr 0.1", **parts(lr=0.2))
    refused(tmp_path, "another data", **parts(data=INPUTS + 1))
    refused(tmp_path, "another unit of recording", **parts(), record_at="steps:1")
    refused(tmp_path, "another choice of what to record", **parts(), record=["gradients"])
    refused(tmp_path, "records another model", model=nn.Linear(6, 3))
    refused(tmp_path, "another dtype", model=network().double())
    adam = parts()
    adam["optimizer"] = torch.optim.Adam(adam["model"].parameters(), lr=0.1)
    refused(tmp_path, "another update rule", **adam)
    frozen = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3), nn.BatchNorm1d(3, affine=False))
    with tvgrad.Recorder(tmp_path, **parts(), resume=True) as recorder:
        assert recorder.epoch == 1
    with tvgrad.Recorder(tmp_path / "frozen", frozen):
        pass
    refused(tmp_path / "frozen", "records another model .3.num_batches_tracked differs", model=network())


def test_a_run_killed_before_its_first_point_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tvgrad.store.writer.RunWriter.add", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError), tvgrad.Recorder(tmp_path, network()):
            pass
    assert Run.open(tmp_path).problems() == ["no epoch was finished"]
    with tvgrad.Recorder(tmp_path, network(), resume=True) as recorder:
        recorder.end_epoch()
    assert Run.open(tmp_path).epochs == [0, 1]
    assert Run.open(tmp_path).problems() == []


def test_resume_where_no_run_is_starts_one(tmp_path: Path) -> None:
    with tvgrad.Recorder(tmp_path / "new", network(), resume=True) as recorder:
        assert recorder.epoch == 0
    assert Run.open(tmp_path / "new").epochs == [0]


# --- refusals and the end ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"record": ["everything"]}, "nothing called 'everything' can be recorded: choose from gradients"),
        ({"record": ["gradients"]}, "full-batch gradients need an objective"),
        ({"record": ["epoch-gradients"]}, "epoch gradients are read from the optimizer"),
        ({"record_at": "steps:"}, "--record-at 'steps:' is not understood"),
        ({"record_at": "steps:0"}, "is not understood: use epochs, or steps:1,10,100"),
        ({"record_at": "epochs:1"}, "is not understood"),
        ({"record_at": "minutes"}, "is not understood"),
        ({"keep": "some"}, "--keep 'some' is not understood"),
        ({"groups": "("}, "is not a regular expression"),
    ],
)
def test_options_are_checked_before_a_directory_is_made(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(TvgradError, match=words):
        tvgrad.Recorder(tmp_path / "run", network(), **options)
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_refused(tmp_path: Path) -> None:
    with tvgrad.Recorder(tmp_path, network()):
        pass
    with pytest.raises(TvgradError, match="already holds a run"), tvgrad.Recorder(tmp_path, network()):
        pass


def test_a_recorder_that_is_not_entered(tmp_path: Path) -> None:
    with pytest.raises(TvgradError, match=r"not open: use it as `with tvgrad\.Recorder"):
        tvgrad.Recorder(tmp_path, network()).end_epoch()


def test_an_error_in_the_loop_leaves_an_unfinished_run_and_no_hooks(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = tvgrad.Recorder(tmp_path, model, optimizer)

    def loop_that_fails() -> None:
        with recorder:
            recorder.end_epoch()
            raise Stop

    with pytest.raises(Stop):
        loop_that_fails()
    run = Run.open(tmp_path)
    assert (run.epochs, run.manifest.finished) == ([0, 1], False)
    optimizer.step()
    assert recorder.steps == 0
    assert not (tmp_path / "writer.lock").exists()


def test_the_gradient_is_gone_once_the_weights_have_moved(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    objective = tvgrad.Objective(model, LOSS, (INPUTS, TARGETS))
    with tvgrad.Recorder(tmp_path, model, optimizer, objective) as recorder:
        assert recorder.gradient is not None
        assert equal(recorder.gradient, objective.gradient())
        optimizer.step()
        assert recorder.gradient is None
        recorder.end_epoch()
        assert recorder.gradient is not None


def test_recording_leaves_training_as_it_was(tmp_path: Path) -> None:
    """The same loop with and without a recorder gives the same weights."""

    def train(directory: Path | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        allow = ("dropout", "batchnorm")
        objective = tvgrad.Objective(model, LOSS, (INPUTS, TARGETS), chunk_size=8, allow=allow)
        recorder = None if directory is None else tvgrad.Recorder(directory, model, optimizer, objective).__enter__()
        for _ in range(3):
            for batch in torch.randperm(24).split(8):
                optimizer.zero_grad()
                LOSS(model(INPUTS[batch]), TARGETS[batch]).backward()
                optimizer.step()
            if recorder is not None:
                recorder.end_epoch()
        if recorder is not None:
            recorder.__exit__(None, None, None)
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    assert equal(train(tmp_path), train(None))
