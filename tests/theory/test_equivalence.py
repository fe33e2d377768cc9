"""The verdict on the first epoch, on runs that tvgrad traced and on loops of other people's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tvgrad
from tests.traced_runs import Tampered, Traced
from tvgrad.problem.recipe import Recipe
from tvgrad.record.options import TraceOptions
from tvgrad.record.recorder import Recorder
from tvgrad.record.training_loop import prepare, trace
from tvgrad.store.run import Run
from tvgrad.theory.equivalence import APPLIES_NOT, EXACT, FAILS, StepVerdict, check_one_epoch
from tvgrad.theory.verdicts import NO, gradient_verdict
from tvgrad.update_rules.rules import SGD

GRADIENT_FORM = "tau_1 = -lr g_0"


def flat(run: Run, folder: str, number: int) -> torch.Tensor:
    """One file of a run as a float64 vector, read by the safetensors library."""
    content = load_file(run.root / folder / f"{run.unit}-{number:0{6 if run.unit == 'step' else 4}d}.safetensors")
    return torch.cat([content[name].double().flatten() for name in sorted(content)])


def only(run: Run) -> StepVerdict:
    (verdict,) = check_one_epoch(run).verdicts
    return verdict


# Runs that tvgrad drives --------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["low", "rotated", "permuted"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_gradient_descent_is_exact(traced: Traced, dtype: str, task: str) -> None:
    run = traced(task, dtype=dtype)
    verdict = only(run)
    assert (verdict.run, verdict.rule, verdict.holds) == (task, GRADIENT_FORM, EXACT)
    assert check_one_epoch(run).holds == EXACT
    assert 0.5 < verdict.worst_ratio_to_budget <= 1.0
    assert not verdict.gradient_relative_error
    assert dtype in verdict.reason


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_share_of_unchanged_coordinates_is_a_count(traced: Traced, dtype: str) -> None:
    run = traced("rotated", dtype=dtype)
    before, after = flat(run, "weights", 0).numpy(), flat(run, "weights", 1).numpy()
    moving = flat(run, "gradients", 0).numpy() != 0
    expected = np.count_nonzero((before == after) & moving) / np.count_nonzero(moving)
    verdict = only(run)
    assert verdict.frozen_share == expected
    if dtype == "bfloat16":
        assert expected > 0.3
        assert f"{expected:.1%} of the coordinates are unchanged" in verdict.reason


@pytest.mark.parametrize(("dtype", "kind"), [("float64", np.float64), ("float32", np.float32)])
def test_worst_ratio_is_that_of_the_formula(traced: Traced, dtype: str, kind: type[np.floating[Any]]) -> None:
    run = traced("rotated", dtype=dtype)
    before, after = flat(run, "weights", 0).numpy(), flat(run, "weights", 1).numpy()
    gradient = flat(run, "gradients", 0).numpy()
    u = np.finfo(kind).eps / 2
    a = u if dtype == "float64" else 2 * u + u * u
    budget = 0.5 * np.spacing(np.abs(after).astype(kind)).astype(np.float64) + a * np.abs(0.1 * gradient)
    if dtype == "float64":
        with np.errstate(divide="ignore"):
            outside = ~((after / before >= 0.5) & (after / before <= 2))
        budget += u * np.abs(after - before) * outside
    expected = np.max(np.abs(after - before + 0.1 * gradient) / budget)
    assert only(run).worst_ratio_to_budget == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(
    ("options", "formula", "why"),
    [
        ({"optimizer": "sgd"}, GRADIENT_FORM, None),
        ({"optimizer": "momentum", "momentum": 0.8}, GRADIENT_FORM, None),
        ({"optimizer": "nesterov"}, "tau_1 = -lr (1 + momentum) g_0", "Nesterov"),
        ({"optimizer": "sgd", "weight_decay": 0.1}, "tau_1 = -lr (g_0 + decay theta_0)", "weight decay 0.1 adds"),
        (
            {"optimizer": "nesterov", "weight_decay": 0.1},
            "tau_1 = -lr (1 + momentum) (g_0 + decay theta_0)",
            "Nesterov",
        ),
        ({"optimizer": "adam", "lr": 1e-3}, "tau_1 = -lr g_0 / (|g_0| + eps)", "divides"),
        (
            {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.1},
            "tau_1 = -lr h / (|h| + eps), h = g_0 + decay theta_0",
            "divides",
        ),
        ({"optimizer": "adamw", "lr": 1e-3}, "tau_1 = -lr g_0 / (|g_0| + eps) - lr decay theta_0", "divides"),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_every_rule_has_a_form(
    traced: Traced, options: dict[str, Any], formula: str, why: str | None, dtype: str
) -> None:
    run = traced("rotated", dtype=dtype, **options)
    check = check_one_epoch(run)
    assert check.holds == EXACT
    *others, own = check.verdicts
    assert (own.rule, own.holds) == (formula, EXACT)
    assert own.worst_ratio_to_budget <= 1.0
    if why is None:
        assert not others
    else:
        (gradient_form,) = others
        assert (gradient_form.rule, gradient_form.holds) == (GRADIENT_FORM, APPLIES_NOT)
        assert why in gradient_form.reason
        tau = flat(run, "weights", 1) - flat(run, "weights", 0)
        lr = options.get("lr", 0.1)
        descent = -lr * flat(run, "gradients", 0)
        measured = float((tau - descent).norm() / descent.norm())
        assert f"{measured:.2g}" in gradient_form.reason


def test_a_wrong_form_does_not_pass(traced: Traced) -> None:
    """Each form is told from every other one."""
    run = traced("rotated", optimizer="nesterov")
    for change in ({"name": "momentum", "lr": 0.1, "momentum": 0.9}, {"name": "sgd", "lr": 0.1}):
        run = Run.open(run.root)
        run.info["rule"] = change
        assert only(run).holds == FAILS


def test_a_rate_that_is_off_by_one_part_in_a_million_fails(traced: Traced) -> None:
    run = Run.open(traced("rotated", dtype="float64").root)
    run.steps = lambda number=None: Run.steps(run, number).assign(lr=0.1 * (1 + 1e-6))  # type: ignore[method-assign]
    assert only(run).holds == FAILS


def test_the_recorded_rate_is_used(traced: Traced) -> None:
    """A schedule is read from the steps, not from the rule."""
    run = Run.open(traced("rotated").root)
    run.info["rule"] = {"name": "gd", "lr": 123.0}
    assert only(run).holds == EXACT


def test_mini_batches_have_no_gradient_form(traced: Traced) -> None:
    run = traced("rotated", optimizer="sgd", batch_size=64)
    verdict = only(run)
    assert verdict.holds == APPLIES_NOT
    assert f"epoch 1 took {math.ceil(898 / 64)} steps (mini-batches of 64)" in verdict.reason
    tau, gradient = flat(run, "weights", 1) - flat(run, "weights", 0), flat(run, "gradients", 0)
    assert f"{float((tau + 0.1 * gradient).norm() / (0.1 * gradient).norm()):.2g}" in verdict.reason


def test_the_first_of_recorded_steps_is_checked_against_its_own_batch(traced: Traced) -> None:
    run = traced(
        "rotated",
        optimizer="sgd",
        batch_size=64,
        record_at="steps:1,5",
        record=("gradients", "epoch-gradients"),
    )
    verdict = only(run)
    assert verdict.holds == EXACT
    full, consumed = flat(run, "gradients", 0), flat(run, "epoch_gradients", 1)
    assert verdict.gradient_relative_error == pytest.approx(float((full - consumed).norm() / full.norm()), rel=1e-9)
    assert verdict.gradient_relative_error > 0.01
    assert f"off the full-batch gradient by {verdict.gradient_relative_error:.2g}" in verdict.reason


def test_a_first_epoch_that_was_not_kept(traced: Traced) -> None:
    verdict = only(traced("rotated", keep="epochs:0,3"))
    assert verdict.holds == APPLIES_NOT
    assert "epoch 1 were not recorded or not kept" in verdict.reason
    assert math.isnan(verdict.worst_ratio_to_budget)


def test_a_run_without_gradients(traced: Traced) -> None:
    verdict = only(traced("rotated", record=()))
    assert verdict.holds == APPLIES_NOT
    assert "--record" in verdict.reason


# Runs that were tampered with ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_one_edited_coordinate_is_found(traced: Traced, tampered: Tampered, dtype: str) -> None:
    def edit(content: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        row = content["encoder.2.weight"].view(-1)
        for _ in range(3):
            row[17] = torch.nextafter(row[17], torch.tensor(9.0, dtype=row.dtype))
        return content

    run = tampered(traced("rotated", dtype=dtype), "weights", 1, edit)
    assert run.problems() == []
    verdict = only(run)
    assert verdict.holds == FAILS
    assert verdict.worst_ratio_to_budget > 1.0
    assert "something besides" in verdict.reason


def test_one_coordinate_one_bit_further_from_the_formula_is_found(traced: Traced, tampered: Tampered) -> None:
    run = traced("rotated", dtype="float64")
    name = "encoder.2.weight"
    error = run.task_vector(1)[name] + 0.1 * run.gradient(0)[name]
    # where the weight dwarfs its step, so that one bit of it is two budgets
    place = int((run.weights(0)[name].abs() / run.gradient(0)[name].abs()).argmax())

    def edit(content: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        row, away = content[name].view(-1), error.view(-1)[place].sign() * 9.0
        row[place] = torch.nextafter(row[place], away)
        return content

    verdict = only(tampered(run, "weights", 1, edit))
    assert verdict.holds == FAILS
    assert 1.5 < verdict.worst_ratio_to_budget < 3.1


def test_weights_that_are_not_finite_fail(traced: Traced, tampered: Tampered) -> None:
    def edit(content: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        content["encoder.0.bias"][3] = math.nan
        return content

    verdict = only(tampered(traced("rotated"), "weights", 1, edit))
    assert verdict.holds == FAILS
    assert verdict.worst_ratio_to_budget == math.inf


def test_an_edited_gradient_is_found(traced: Traced, tampered: Tampered) -> None:
    run = tampered(traced("rotated"), "gradient", 0, lambda content: {n: 1.001 * t for n, t in content.items()})
    assert only(run).holds == FAILS


def test_a_file_without_one_of_the_parameters_is_refused(traced: Traced, tampered: Tampered) -> None:
    run = tampered(traced("rotated"), "weights", 1, lambda content: {"encoder.0.bias": content["encoder.0.bias"]})
    with pytest.raises(tvgrad.TvgradError, match=r"has no .* in one of its files: run `tvgrad verify"):
        check_one_epoch(run)


# Loops that tvgrad does not drive -----------------------------------------------------------------


def problem(dtype: torch.dtype = torch.float32, dropout: bool = False) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 8), nn.Tanh(), *([nn.Dropout(0.3)] if dropout else []), nn.Linear(8, 3)]
    inputs, targets = torch.randn(40, 5, dtype=dtype), torch.randint(0, 3, (40,))
    return nn.Sequential(*layers).to(dtype), (inputs, targets)


def own_loop(
    directory: Path,
    optimizer_of: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    samples: int = 40,
    before_step: Callable[[nn.Module], None] = lambda model: None,
    after_step: Callable[[nn.Module], None] = lambda model: None,
    objective: bool = True,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Run:
    """Two epochs of one step each on the first samples, by hand."""
    model, (inputs, targets) = problem(dtype)
    optimizer = optimizer_of(list(model.parameters()))
    full = tvgrad.Objective(model, nn.CrossEntropyLoss(), (inputs, targets)) if objective else None
    with Recorder(directory, model, optimizer, full, **options) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[:samples]), targets[:samples]).backward()
            before_step(model)
            optimizer.step()
            after_step(model)
            recorder.end_epoch()
    return Run.open(directory)


BOTH = ("gradients", "epoch-gradients")


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


@pytest.mark.parametrize("samples", [40, 25])
def test_step_and_gradient_are_judged_apart(tmp_path: Path, samples: int) -> None:
    run = own_loop(tmp_path / "run", sgd, samples, record=BOTH)
    verdict = only(run)
    assert verdict.holds == EXACT
    full, consumed = flat(run, "gradients", 0), flat(run, "epoch_gradients", 1)
    assert verdict.gradient_relative_error == pytest.approx(float((full - consumed).norm() / full.norm()), rel=1e-9)
    assert (verdict.gradient_relative_error < 1e-6) == (samples == 40)
    assert f"off the full-batch gradient by {verdict.gradient_relative_error:.2g}" in verdict.reason


def test_without_a_full_batch_gradient_the_step_alone_is_judged(tmp_path: Path) -> None:
    verdict = only(own_loop(tmp_path / "run", sgd, objective=False))
    assert verdict.holds == EXACT
    assert math.isnan(verdict.gradient_relative_error)
    assert "no full-batch gradient was recorded" in verdict.reason


def test_without_the_consumed_gradient_nothing_is_claimed(tmp_path: Path) -> None:
    verdict = only(own_loop(tmp_path / "run", sgd, record=("gradients",)))
    assert verdict.holds == APPLIES_NOT
    assert "was not recorded" in verdict.reason
    assert "measured" in verdict.reason


def test_clipping_before_the_step_is_part_of_what_is_consumed(tmp_path: Path) -> None:
    def clip(model: nn.Module) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)

    verdict = only(own_loop(tmp_path / "run", sgd, before_step=clip, record=BOTH))
    assert verdict.holds == EXACT
    assert verdict.gradient_relative_error > 0.5


def test_a_change_after_the_step_fails(tmp_path: Path) -> None:
    @torch.no_grad()
    def shrink(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.mul_(0.999)

    assert only(own_loop(tmp_path / "run", sgd, after_step=shrink, record=BOTH)).holds == FAILS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_decoupled_decay_of_a_hand_written_rule(tmp_path: Path, dtype: torch.dtype) -> None:
    @torch.no_grad()
    def shrink(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.mul_(1 - 0.1 * 0.2)

    rule = SGD(0.1, weight_decay=0.2, decoupled=True)
    run = own_loop(tmp_path / "run", sgd, before_step=shrink, record=BOTH, rule=rule, dtype=dtype)
    gradient_form, own = check_one_epoch(run).verdicts
    assert (gradient_form.holds, own.holds) == (APPLIES_NOT, EXACT)
    assert "weight decay 0.2 shrinks the weights" in gradient_form.reason
    assert own.rule == "tau_1 = -lr g_0 - lr decay theta_0"


def test_a_rate_of_zero_has_no_ratio(tmp_path: Path) -> None:
    run = own_loop(tmp_path / "run", lambda parameters: torch.optim.AdamW(parameters, lr=0.0))
    assert (
        check_one_epoch(run).verdicts[0].reason.endswith("(lr g_0 is zero, as where a warm-up begins at a rate of 0)")
    )


def test_an_unknown_optimizer(tmp_path: Path) -> None:
    verdict = only(own_loop(tmp_path / "run", lambda parameters: torch.optim.RMSprop(parameters, lr=0.1)))
    assert verdict.holds == APPLIES_NOT
    assert "the update rule is not known" in verdict.reason
    assert "RMSprop" in verdict.reason


def test_groups_with_rates_of_their_own_have_each_its_step(tmp_path: Path) -> None:
    def two_rates(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.2}], lr=0.1)

    run = own_loop(tmp_path / "run", two_rates, record=BOTH)
    verdict = only(run)
    assert (verdict.rule, verdict.holds) == (f"{GRADIENT_FORM}, lr of each group", EXACT)
    gradient = gradient_verdict(run, check_one_epoch(run))  # no one rate: no one multiple of the gradient
    tau, g = flat(run, "weights", 1) - flat(run, "weights", 0), flat(run, "gradients", 0)
    nearest = -(tau @ g) / (g @ g) * g
    assert gradient.holds == NO
    assert gradient.deviation == pytest.approx(float((tau + nearest).norm() / nearest.norm()), rel=1e-6)
    assert gradient.cosine == pytest.approx(float(-(tau @ g) / tau.norm() / g.norm()), rel=1e-6)
    assert "rates of their own, from 0.1 to 0.2" in gradient.cause


def test_decay_and_no_decay_groups_have_each_its_step(tmp_path: Path) -> None:
    """The norm in Hugging Face, timm and nanoGPT: matrices decay, biases do not, and a group may be empty."""

    def groups(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        matrices, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim < 2]
        split = [{"params": []}, {"params": matrices}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(split, lr=1e-3, weight_decay=0.1)

    run = own_loop(tmp_path / "run", groups, record=BOTH)
    gradient_form, own = check_one_epoch(run).verdicts
    assert (gradient_form.holds, own.holds) == (APPLIES_NOT, EXACT)
    assert "- lr decay theta_0" in own.rule
    assert run.rule is not None
    assert run.rule.decays
    run.info["rule"]["groups"][2]["rule"]["weight_decay"] = 0.1  # biases would decay too
    assert check_one_epoch(run).holds == FAILS


def test_two_steps_an_epoch_name_the_assumption(tmp_path: Path) -> None:
    model, (inputs, targets) = problem()
    optimizer = sgd(list(model.parameters()))
    with Recorder(tmp_path / "run", model, optimizer) as recorder:
        for part in (slice(0, 20), slice(20, 40)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[part]), targets[part]).backward()
            optimizer.step()
        recorder.end_epoch()
    verdict = only(Run.open(tmp_path / "run"))
    assert verdict.holds == APPLIES_NOT
    assert "epoch 1 took 2 steps" in verdict.reason


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["gd", "adam", "adamw", "nesterov"])
def test_zero_weights_and_zero_gradients_are_exact(tmp_path: Path, optimizer: str, dtype: str) -> None:
    """Dead inputs and weights that start at zero: a prediction of 0 and a step of 0."""
    model, (inputs, targets) = problem()
    inputs[:, 2] = 0.0
    nn.init.zeros_(model[0].weight)  # type: ignore[index, arg-type]
    nn.init.zeros_(model[0].bias)  # type: ignore[index, arg-type]
    recipe = Recipe(model, nn.CrossEntropyLoss(), (inputs, targets), name="dead")
    run = trace(prepare(recipe, TraceOptions(optimizer=optimizer, epochs=1, lr=1e-3, dtype=dtype)), tmp_path / "run")
    assert bool((flat(run, "gradients", 0) == 0).any())
    check = check_one_epoch(run)
    assert check.holds == EXACT
    assert check.verdicts[-1].worst_ratio_to_budget <= 1.0


# What a reason has to say -------------------------------------------------------------------------


def test_an_allowed_dropout_is_repeated(tmp_path: Path) -> None:
    model, data = problem(dropout=True)
    recipe = Recipe(model, nn.CrossEntropyLoss(), data, name="noisy", allow=("dropout",))
    run = trace(prepare(recipe, TraceOptions(epochs=2)), tmp_path / "run")
    verdict = only(run)
    assert verdict.holds == EXACT
    assert "noise in the forward pass (dropout)" in verdict.reason


def fused(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5, fused=True)


def test_blocks_that_a_fused_kernel_leaves_untrained_are_named(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(256, dtype=torch.bfloat16))
    parameter.grad = torch.ones_like(parameter)
    fused([parameter]).step()
    if bool((parameter != 1).any()):
        pytest.skip(f"torch {torch.__version__} trains bfloat16 parameters with fused SGD on this machine")
    verdict = only(own_loop(tmp_path / "run", fused, dtype=torch.bfloat16, record=BOTH))
    assert verdict.holds == FAILS
    assert "fused kernel left" in verdict.reason
    assert "use fused=False" in verdict.reason
    assert f"{verdict.frozen_share:.1%}" in verdict.reason


def test_a_fused_kernel_is_not_blamed_for_other_changes(tmp_path: Path) -> None:
    @torch.no_grad()
    def shift(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.add_(1.0)

    verdict = only(own_loop(tmp_path / "run", fused, dtype=torch.bfloat16, record=BOTH, after_step=shift))
    assert verdict.holds == FAILS
    assert "fused" not in verdict.reason


def test_a_run_from_another_device_says_whose_kernels_the_budget_knows(traced: Traced) -> None:
    run = Run.open(traced("rotated").root)
    run.info.update(device="cuda:0", rule={"name": "nesterov", "lr": 0.1, "momentum": 0.9})
    assert "CPU kernels, and the run is from cuda:0" in check_one_epoch(run).verdicts[-1].reason
