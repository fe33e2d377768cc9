"""The two verdicts and the line that joins them, on rows made for the test."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tvgrad
from tests.traced_runs import Tampered, Traced
from tvgrad.report.summary import summary_of
from tvgrad.report.tables import run_tables
from tvgrad.store.run import Run
from tvgrad.theory.equivalence import APPLIES_NOT, EXACT, FAILS
from tvgrad.theory.troubles import troubles_of
from tvgrad.theory.verdicts import NO, UNKNOWN, YES, EquivalenceRow, GradientVerdict, headline, verdict_rows
from tvgrad.wording import percent

GOOD = EquivalenceRow("a", "tau_1 = -lr g_0", EXACT, 0.9, 0.0, 0.0, "", YES, 2e-7, 1.0, "", "")
AWAY = replace(GOOD, run="b", gradient_holds=NO, deviation=0.788, cosine=0.612, cause="adam divides")
MISSING = replace(GOOD, run="c", gradient_holds=UNKNOWN, deviation=math.nan, cosine=math.nan, cause="no gradient")
BROKEN = replace(GOOD, run="d", holds=FAILS)


def test_the_negative_verdict_comes_first() -> None:
    line = headline([GOOD, AWAY, MISSING])
    assert line.index("no for 1 of 3 runs, worst b: 79 % away, cosine 0.61; adam divides") < line.index("unknown for 1")
    assert line.index("unknown for 1") < line.index("yes for 1: at most 2e-07 away")
    assert "exact for every run, within the rounding of one step from the gradient that was consumed" in line
    assert headline([BROKEN]).startswith("Optimizer step: fails for d. Task vector")
    assert headline([replace(AWAY, holds=FAILS)]).startswith("Task vector = -lr x full-batch gradient after the first")


def test_divergence_comes_before_everything() -> None:
    line = headline([GOOD, replace(AWAY, trouble="the loss grew from 1 to 9 in epoch 3")])
    assert line.startswith("Diverged: b, the loss grew from 1 to 9 in epoch 3. Task vector")
    assert headline([replace(GOOD, trouble="it stopped after epoch 2 of 6")]).startswith("Not finished: a, it stopped")


def test_weights_that_no_step_explains(tmp_path: Path) -> None:
    facts = {"final_weights_differ": True, "steps_unrecorded": 2, "moved_outside_steps": 1}
    with tvgrad.Recorder(tmp_path / "run", torch.nn.Linear(2, 1), info=facts):
        pass
    (others, moved) = troubles_of(Run.open(tmp_path / "run"))
    assert others == "the script ended with weights that were not recorded, 2 steps after the last recorded ones"
    assert moved == "its weights moved outside the optimizer's steps, seen 1 time"
    rows = [replace(GOOD, trouble=moved), replace(AWAY, trouble=f"{others}; {moved}")]
    assert headline(rows).startswith(
        f"Not the script's final weights: b, {others}; {moved}. Moved outside the steps: a, "
    )
    diverged = replace(MISSING, trouble=f"the loss grew from 1 to 9 in epoch 3; {moved}")
    assert headline([*rows, diverged]).startswith("Diverged: c, the loss grew")


def test_a_step_that_was_not_checked_says_why() -> None:
    row = replace(AWAY, holds=APPLIES_NOT, reason="epoch 1 took 4 steps (mini-batches of 128), and only one is")
    assert headline([row]).endswith("Optimizer step: not checked for b (epoch 1 took 4 steps (mini-batches of 128)).")


def test_rows_of_runs(traced: Traced, tmp_path: Path) -> None:
    plain_run = traced("rotated")
    (plain,) = verdict_rows(plain_run, "mine")
    assert (plain.run, plain.holds, plain.gradient_holds, plain.cause) == ("mine", EXACT, YES, "")
    before, *_, after = (point.metrics["accuracy"] for point in plain_run.points)
    worse = f"it ends worse than the pretrained model (accuracy {after:.4g} after epoch 3, {before:.4g} before)"
    samples = plain_run.info["test_samples"]
    noise = 1.96 * math.sqrt((before * (1 - before) + after * (1 - after)) / samples)
    assert 0 < before - after < noise  # it fell by less than so few test samples can tell
    assert plain.trouble == ""
    shutil.copytree(plain_run.root, tmp_path / "many")
    (many,) = verdict_rows(with_info(Run.open(tmp_path / "many"), test_samples=100 * samples))
    assert before - after > noise / 10
    assert many.trouble == worse
    rows = verdict_rows(traced("rotated", optimizer="adam", lr=1e-3))
    assert {row.gradient_holds for row in rows} == {NO}
    assert [row.holds for row in rows] == [APPLIES_NOT, EXACT]
    assert "adam divides each coordinate of the gradient by its own size" in rows[0].cause
    (narrow,) = verdict_rows(traced("rotated", dtype="bfloat16"))
    assert (narrow.holds, narrow.gradient_holds) == (EXACT, NO)
    assert "of the coordinates did not change, their step being lost in bfloat16" in narrow.cause


INPUTS, TARGETS = torch.randn(12, 4, generator=torch.Generator().manual_seed(3)), torch.arange(12) % 3
Change = Callable[[torch.nn.Module], object]


def stepped(folder: Path, change: Change = lambda _: None, steps: int = 1, **notes: Any) -> Run:
    """A run of one epoch in which something may be done to the gradient between backward and step."""
    torch.manual_seed(0)
    model, loss = torch.nn.Linear(4, 3), torch.nn.CrossEntropyLoss()
    objective = tvgrad.Objective(model, loss, (INPUTS, TARGETS))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    record = ("gradients", "epoch-gradients")
    with tvgrad.Recorder(folder, model, optimizer, objective, record=record) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model(INPUTS), TARGETS).backward()
            change(model)
            optimizer.step()
            recorder.note_step(batch_size=12, **notes)
        recorder.end_epoch()
    return Run.open(folder)


def with_info(run: Run, **facts: object) -> Run:
    """The run with facts added to its description."""
    path = run.root / "run.json"
    content = json.loads(path.read_text())
    content["info"].update(facts)
    path.write_text(json.dumps(content))
    return Run.open(run.root)


def scaled(factor: float) -> Change:
    return lambda model: [parameter.grad.mul_(factor) for parameter in model.parameters()]  # type: ignore[union-attr]


def noisy(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.add_(torch.ones_like(parameter.grad))


def last_row(run: Run) -> EquivalenceRow:
    return verdict_rows(run)[-1]


def test_the_answer_turns_at_one_hundredth(tmp_path: Path) -> None:
    for name, factor, expected in (("under", 1 - 0.0098, YES), ("over", 1 - 0.0102, NO)):
        row = last_row(stepped(tmp_path / name, scaled(factor)))
        assert (row.gradient_holds, row.cosine) == (expected, pytest.approx(1, abs=1e-6))
        assert row.deviation == pytest.approx(1 - factor, rel=1e-3)
        assert (row.cause == "") == (expected == YES)
    rounded = with_info(stepped(tmp_path / "rounded", scaled(1 - 0.005)), gradient_rounding=0.006)
    assert last_row(rounded).gradient_holds == NO  # the rounding of the recorded gradient counts


def test_a_gradient_scaled_by_hand_is_called_scaled(tmp_path: Path) -> None:
    assert last_row(stepped(tmp_path / "run", scaled(0.01))).cause == (
        "the gradient that the step consumed is 99 % away from the full-batch gradient and parallel to it, 0.01 times "
        "as long (scaled or clipped before the step without a record)"
    )


def test_a_gradient_changed_otherwise_does_not_blame_dropout_alone(tmp_path: Path) -> None:
    row = last_row(stepped(tmp_path / "run", noisy))
    away = row.gradient_relative_error
    assert away > 1
    assert row.cause.startswith(
        f"the gradient that the step consumed is {100 * away:.0f} % away from the full-batch gradient (dropout, "
        "augmentation, noise, other samples or other weights in the mean, or a change of the gradient between backward "
        "and step) and it is "
    )


def test_clipping_is_named(tmp_path: Path) -> None:
    by_norm = stepped(tmp_path / "norm", scaled(0.25), clip_factor=0.25)
    assert last_row(by_norm).cause.startswith("the gradient was clipped to 0.25 of its length, ")
    by_value = stepped(tmp_path / "value", scaled(0.25), clipped_in_parts=1, clip_value=0.003)
    assert last_row(by_value).cause.startswith("the coordinates of the gradient were clipped to 0.003, ")
    in_parts = stepped(tmp_path / "parts", scaled(0.25), clipped_in_parts=2)
    assert last_row(in_parts).cause.startswith("the gradient was clipped in parts, by factors that were not recorded, ")
    for run in (by_norm, by_value, in_parts):
        assert last_row(run).cause.count("75 % away from the full-batch gradient") == 1


def test_weights_that_moved_outside_the_steps_are_a_cause(tmp_path: Path) -> None:
    words = "its weights moved outside the optimizer's steps, seen 3 times in the run"
    several = with_info(stepped(tmp_path / "several", steps=2), moved_outside_steps=3)
    assert last_row(several).cause.startswith(f"epoch 1 took 2 steps, {words}")
    exact = with_info(stepped(tmp_path / "exact", scaled(0.5)), moved_outside_steps=3)
    assert last_row(exact).holds == EXACT
    assert words not in last_row(exact).cause  # they moved later


def test_a_step_that_fails_is_explained(traced: Traced, tampered: Tampered) -> None:
    broken = tampered(traced("low"), "weights", 1, lambda content: {name: t + 1 for name, t in content.items()})
    assert last_row(broken).holds == FAILS
    assert last_row(broken).cause.startswith("something besides this optimizer step moved the weights and it is ")
    moved = with_info(broken, moved_outside_steps=1)
    assert last_row(moved).cause.startswith("its weights moved outside the optimizer's steps, seen 1 time in the run")
    assert "something besides" not in last_row(moved).cause


def test_only_a_step_within_its_rounding_is_lost_in_the_format(traced: Traced, tampered: Tampered) -> None:
    run = traced("low")
    start = run.weights(0)
    held = tampered(run, "weights", 1, lambda content: {n: start[n] if t.ndim > 1 else t for n, t in content.items()})
    row = last_row(held)
    assert row.holds == FAILS
    assert row.frozen_share > 0.5
    share = percent(row.frozen_share)
    assert row.cause.startswith(f"{share} of the coordinates did not change, something besides this optimizer step ")
    summary = " ".join(summary_of(run_tables([held]).tables))
    assert "coordinates" in summary
    assert "half the spacing" not in summary
    assert "Next: find what moved the weights besides the optimizer step" in summary


def test_what_a_step_beyond_its_bound_is_put_down_to(traced: Traced, tampered: Tampered) -> None:
    def moved(name: str, **facts: object) -> Run:
        run = tampered(traced(name), "weights", 1, lambda content: {name: t + 1 for name, t in content.items()})
        return with_info(run, **facts)

    elsewhere = last_row(moved("parity", device="cuda:0"))
    assert "the step exceeds the rounding bound of PyTorch's CPU kernels, and was made on cuda:0" in elsewhere.cause
    assert "something besides" not in elsewhere.cause
    narrow = traced("low", dtype="bfloat16")
    start = narrow.weights(0)
    blocks = with_info(tampered(narrow, "weights", 1, lambda _: start), fused=True)
    untrained = last_row(blocks)
    assert untrained.cause.startswith(
        "100 % of the coordinates did not change, the optimizer's fused kernel left coordinates untrained"
    )
    assert untrained.far == "100 % away, no direction"
    assert "Next: train with fused=False" in summary_of(run_tables([blocks]).tables)[-1]


def test_the_cause_from_the_error_budget(tmp_path: Path) -> None:
    run = stepped(tmp_path / "run", noisy)
    (run.root / "results").mkdir(exist_ok=True)
    path = run.root / "results" / "error_budget.json"

    def budget(*terms: tuple[str, float]) -> None:
        rows = [
            {"run": "run", "epoch": epoch, "term": term, "norm": 1.0, "cosine": 1.0, "share": share, "nodes": "a to b"}
            for epoch in (1, 2)
            for term, share in (terms if epoch == 1 else (("another", 9.0),))
        ]
        path.write_text(json.dumps(rows))

    budget(("noise", 0.7), ("update rounding", 0.3))
    assert last_row(run).cause == "by the error budget 70 % of it is noise"
    budget(("unexplained", 0.7), ("update rounding", 0.3))
    assert last_row(run).cause == (
        "the error budget cannot split it, because the gradients that the steps consumed were neither recorded nor "
        "reproduced by a replay"
    )


def test_what_a_rule_does_is_named(traced: Traced) -> None:
    causes = {
        name: last_row(traced("low", **options)).cause
        for name, options in {
            "nesterov": {"optimizer": "nesterov", "momentum": 0.9},
            "decay": {"optimizer": "sgd", "weight_decay": 0.3},
            "decoupled": {"optimizer": "adamw", "weight_decay": 0.3},
            "batches": {"optimizer": "momentum", "momentum": 0.9, "batch_size": 100},
        }.items()
    }
    assert causes["nesterov"].startswith("Nesterov momentum stretches the first step by 1 + 0.9")
    assert causes["decay"].startswith("weight decay 0.3 moves the weights too")
    assert causes["decoupled"].startswith("adamw divides each coordinate of the gradient by its own size, weight decay")
    assert causes["batches"].startswith("epoch 1 took 5 steps on mini-batches of 100, weighed by momentum")


def test_what_is_unknown_says_what_lacks(traced: Traced, tmp_path: Path) -> None:
    rows = {
        "no full-batch gradient at the pretrained weights was recorded": traced("low", record=("epoch-gradients",)),
        "the weights after epoch 1 were not recorded or not kept": traced("low", keep="epochs:0,2"),
    }
    for words, run in rows.items():
        row = last_row(run)
        assert row.gradient_holds == UNKNOWN
        assert row.cause.startswith(words)
        assert math.isnan(row.deviation)
    unruled = with_info(stepped(tmp_path / "run"), rule=None, rule_reason="two optimizers")
    assert last_row(unruled).cause == "the learning rate is not known: two optimizers"


def test_the_sentence_of_a_gradient_verdict() -> None:
    off = ", g_0 itself 15 % off by the rounding of its format"
    no = GradientVerdict(NO, 0.5, 0.9, 0.15, "so it is")
    assert no.sentence == f"no: 50 % away{off}, cosine 0.90; so it is"
    assert replace(no, holds=YES).sentence == f"yes (deviation 50 %{off}, cosine 0.90)"
    assert replace(no, holds=UNKNOWN).sentence == "unknown: so it is"
    assert replace(no, gradient_rounding=math.nan).sentence == "no: 50 % away, cosine 0.90; so it is"


def traced_metrics(folder: Path, *rows: dict[str, float], **options: Any) -> Run:
    model = torch.nn.Linear(2, 1)
    with tvgrad.Recorder(folder, model, first_metrics=rows[0], **options) as recorder:
        for row in rows[1:]:
            recorder.end_epoch(row)
    return Run.open(folder)


def test_a_model_that_got_worse_is_trouble(tmp_path: Path) -> None:
    run = traced_metrics(tmp_path / "a", {"accuracy": 0.8}, {"accuracy": 0.9}, {"accuracy": 0.6125})
    (trouble,) = troubles_of(run)
    assert trouble == "it ends worse than the pretrained model (accuracy 0.6125 after epoch 2, 0.8 before)"
    line = headline([replace(GOOD, trouble=trouble), replace(AWAY, trouble="the loss grew from 1 to 9 in epoch 3")])
    assert line.startswith("Diverged: b, the loss grew from 1 to 9 in epoch 3. Hurt by fine-tuning: a, it ends worse ")
    for name, last in (("same", 0.8), ("better", 0.81)):
        assert troubles_of(traced_metrics(tmp_path / name, {"accuracy": 0.8}, {"accuracy": last})) == ()
    falling = {"loss": 2.0, "seconds": 3.0}, {"loss": 1.0, "seconds": 2.0}
    assert troubles_of(traced_metrics(tmp_path / "loss", *falling)) == ()  # of these lower is no loss


def test_only_metrics_of_which_higher_is_better_can_show_damage(tmp_path: Path) -> None:
    for name in ("perplexity", "error", "test_error", "mse", "wer"):
        assert troubles_of(traced_metrics(tmp_path / name, {name: 0.9}, {name: 0.1})) == ()
        said = {"metric": name, "test_samples": 1000}  # not even as the metric of a recipe
        assert troubles_of(traced_metrics(tmp_path / f"{name}-recipe", {name: 0.9}, {name: 0.1}, info=said)) == ()
    assert troubles_of(traced_metrics(tmp_path / "unknown", {"score": 0.9}, {"score": 0.1})) == ()
    for name, facts in (("val_acc", {}), ("macro-f1", {}), ("score", {"metric": "score"})):
        (trouble,) = troubles_of(traced_metrics(tmp_path / name, {name: 0.9}, {name: 0.1}, info=facts))
        assert trouble == f"it ends worse than the pretrained model ({name} 0.1 after epoch 1, 0.9 before)"


def test_a_fall_within_the_sampling_error_is_no_damage(tmp_path: Path) -> None:
    facts = {"metric": "accuracy", "test_samples": 100}
    # Of 100 samples, all right before: one tail of Fisher's test is C(200-k, 100) / C(200, 100) for k wrong after.
    for wrong, damage in ((1, False), (5, False), (6, True)):
        chance = 2 * math.comb(200 - wrong, 100) / math.comb(200, 100)
        assert (chance < 0.05) == damage
        run = traced_metrics(tmp_path / f"{wrong}", {"accuracy": 1.0}, {"accuracy": 1 - wrong / 100}, info=facts)
        assert bool(troubles_of(run)) == damage
    one = traced_metrics(tmp_path / "mean", {"accuracy": 0.9042}, {"accuracy": 0.9041}, info=facts)
    assert troubles_of(one)  # a mean of something else: its sampling error is not known
    for number, (before, after) in enumerate([(math.inf, 0.5), (0.5, -math.inf), (1e308, -1e308)]):
        assert troubles_of(
            traced_metrics(tmp_path / f"far{number}", {"accuracy": before}, {"accuracy": after}, info=facts)
        )


def test_losses_that_grew(tmp_path: Path) -> None:
    grown = traced_metrics(tmp_path / "grown", {"loss": 1.0}, {"loss": 2.1}, {"loss": 0.5})
    assert troubles_of(grown) == ("the loss grew from 1 to 2.1 in epoch 1",)
    assert troubles_of(traced_metrics(tmp_path / "calm", {"loss": 1.0}, {"loss": 1.9})) == ()
    negative = traced_metrics(tmp_path / "negative", {"loss": -5.0}, {"loss": 800.0})
    assert troubles_of(negative) == ("the loss grew from -5 to 800 in epoch 1",)
    assert troubles_of(traced_metrics(tmp_path / "falls", {"loss": -1.0}, {"loss": -5.0})) == ()
    lost = traced_metrics(tmp_path / "lost", {"loss": 1.0}, {"loss": math.nan})
    assert troubles_of(lost) == ("the loss is not finite in epoch 1",)


def test_the_worst_of_several_is_the_one_that_is_named() -> None:
    rows = [replace(AWAY, run="e", deviation=0.2, cause="less"), AWAY, replace(AWAY, run="f", deviation=0.3)]
    assert "no for 3 of 3 runs, worst b: 79 % away" in headline(rows)
    good = [GOOD, replace(GOOD, run="g", deviation=4e-3)]
    assert "yes for 2: at most 0.4 % away" in headline(good)
    assert headline([GOOD]).startswith(
        "Task vector = -lr x full-batch gradient after the first epoch: yes: 2e-07 away, cosine 1.00. Optimizer step: "
        "exact for a, within"
    )
    assert "unknown: no gradient" in headline([MISSING])


@pytest.mark.parametrize(
    ("factors", "trouble"),
    [
        ((1.0, 9.0), ""),
        ((1.0, 11.0), "the mean batch gradient norm grew from"),
        ((1.0, math.nan), "the gradients are not finite in epoch 2"),
        ((1.0, math.inf, 1.0), "the gradients are not finite in epoch 2"),
    ],
)
def test_gradients_tell_of_a_divergence_where_no_loss_does(
    tmp_path: Path, factors: tuple[float, ...], trouble: str
) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)  # the weights stand, so that the norms are the factors
    with tvgrad.Recorder(tmp_path / "run", model, optimizer) as recorder:
        for factor in factors:
            optimizer.zero_grad()
            (factor * model(torch.ones(1, 2)).sum()).backward()
            optimizer.step()
            recorder.note_step(batch_size=1)
            recorder.end_epoch()
    found = troubles_of(Run.open(tmp_path / "run"))
    assert bool(found) == bool(trouble)
    assert not found or found[0].startswith(trouble)


def test_a_gradient_that_its_own_format_rounds_is_the_cause(tmp_path: Path) -> None:
    row = last_row(with_info(stepped(tmp_path / "run"), gradient_rounding=0.15))
    assert row.gradient_holds == NO
    assert row.cause == "the recorded gradient is itself 15 % off by the rounding of its format"


def test_the_ends_of_a_cause(tmp_path: Path, traced: Traced, tampered: Tampered) -> None:
    zero = tampered(traced("low"), "gradient", 0, lambda content: {name: 0 * t for name, t in content.items()})
    assert last_row(zero).gradient_holds == UNKNOWN
    assert last_row(zero).cause == "the full-batch gradient at the start is zero"
    lost = tampered(traced("parity"), "weights", 1, lambda content: {name: t * math.inf for name, t in content.items()})
    assert (last_row(lost).gradient_holds, last_row(lost).cause) == (NO, "the weights after epoch 1 are not finite")
    for factor in (900.0, 12345.0):
        run = stepped(tmp_path / f"{factor}", scaled(factor), clip_factor=0.5)
        cause = last_row(run).cause
        assert f"it is {factor:,.0f} times as long" in cause
        assert "scaled or clipped" not in cause  # another cause is known
