"""Measuring a traced script from the command line, and what is then said of its gradients."""

from __future__ import annotations

import errno
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

import tvgrad
from tests.integrations.script.script_runs import SCRIPTS, run, warm, warm_tvgrad
from tvgrad import Run
from tvgrad.errors import TvgradError
from tvgrad.integrations.measuring import starts as starting
from tvgrad.integrations.measuring.measure import cost_sentence, measure, measure_point, points_of, require_same_epoch
from tvgrad.integrations.measuring.pass_options import PassOptions
from tvgrad.integrations.measuring.passes import PassOutcome
from tvgrad.integrations.measuring.placement import ANOTHER
from tvgrad.integrations.measuring.starts import Starts
from tvgrad.integrations.measuring.why_ended import WITHOUT
from tvgrad.record.measurement import Measurement, known_as_before, known_from_one
from tvgrad.record.weighing import BatchWeights, Weighing
from tvgrad.report.summary import summary_of
from tvgrad.report.tables import run_tables
from tvgrad.store.lock import WriterLock
from tvgrad.store.measured import ESTIMATE, EXACT
from tvgrad.store.writer import RunWriter
from tvgrad.theory.verdicts import NO, UNKNOWN, YES, headline, verdict_rows
from tvgrad.vectors.algebra import difference
from tvgrad.vectors.parameters import norm

GD = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
x = torch.randn(40, 8)
data = TensorDataset(x, x.sum(1).long() % 2)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(2):
    for a, b in DataLoader(data, batch_size=40, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(a), b).backward()
        optimizer.step()
"""


def test_gradient_descent_is_exact_by_the_script_s_own_gradient(tmp_path: Path) -> None:
    script, out = tmp_path / "gd.py", tmp_path / "run"
    script.write_text(GD)
    done = run(warm_tvgrad("trace", "--out", str(out), "--gradients", "0", "--", *warm(str(script))), starts=4)
    assert done.returncode == 0, done.stderr
    assert "1 point, 2 passes of one epoch of forward and backward" in done.stderr
    assert "gradient at epoch 0: exact full batch" in done.stderr
    record = Run.open(out)
    assert not record.problems()
    (row,) = verdict_rows(record)
    assert (row.holds, row.gradient_holds) == ("exact", YES)
    assert row.gradient_relative_error < 1e-6
    assert "estimate" not in headline([row])

    script.write_text(GD.replace("torch.randn(40, 8)", "torch.randn(41, 8)"))
    other = run(warm_tvgrad("measure", str(out), "--at", "1", "--", sys.executable, str(script)), starts=2)
    assert other.returncode == 2
    assert "data is not what" in other.stderr
    assert "41 samples, and had 40" in other.stderr
    assert Run.open(out).having("gradient") == [0]


def test_training_is_the_same_and_dropout_makes_an_estimate(tmp_path: Path) -> None:
    plain, traced = tmp_path / "plain", tmp_path / "traced"
    plain.mkdir()
    traced.mkdir()
    command = warm(str(SCRIPTS / "adamw_cosine.py"), "--out")
    alone = run([*command, str(plain)])
    options = ["--out", str(tmp_path / "run"), "--gradients", "0"]
    watched = run(warm_tvgrad("trace", *options, "--", *command, str(traced)), starts=4)
    assert watched.returncode == alone.returncode == 7
    assert watched.stdout == alone.stdout
    assert all((plain / f"epoch{e}.pt").read_bytes() == (traced / f"epoch{e}.pt").read_bytes() for e in range(4))
    assert "gradient at epoch 0: one epoch's estimate" in watched.stderr
    record = Run.open(tmp_path / "run")
    made = record.info["measured_gradients"]["0"]
    assert made["kind"] == ESTIMATE
    assert 0.01 < made["deviation"] < 1
    assert "dropout" in made["reason"]
    assert (made["samples"], made["data"], made["steps"]) == (50, 50, 7)

    torch.manual_seed(0)
    x = torch.randn(70, 8)[:50]
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 2)).double()
    model.load_state_dict(record.weights(0))
    parameters = dict(model.named_parameters())
    means = []
    for _ in range(200):
        loss = nn.functional.cross_entropy(model(x.double()), y)
        means.append(torch.autograd.grad(loss, list(parameters.values())))
    mean = {name: sum(parts) / len(means) for name, parts in zip(parameters, zip(*means, strict=True), strict=True)}
    off = norm(difference(record.gradient(0), mean)) / norm(mean)
    assert 0 < off < 2 * made["deviation"], "the error bar is of the error's size"

    (*_, row) = verdict_rows(record)
    assert row.gradient_error_bar == made["deviation"]
    assert "g_0 being one epoch's estimate" in headline([row])
    tables = run_tables([record]).tables
    assert tables["norms"].query("epoch == 0 and group == 'all'")["gradient_error_bar"].tolist() == [made["deviation"]]
    assert any(sentence.startswith("Estimates from one epoch: 1 gradient of run") for sentence in summary_of(tables))


@pytest.fixture
def recorded(tmp_path: Path) -> Run:
    """Two epochs of plain gradient descent, with the tables of a script."""
    return descent(tmp_path / "run", 11, 11)


def descent(folder: Path, *contents: int) -> Run:
    """Record an epoch of one step for each fingerprint of its samples."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvgrad.Recorder(folder, model, optimizer, record=("epoch-gradients",)) as recorder:
        for content in contents:
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().mean().backward()
            optimizer.step()
            recorder.note_step(batch_size=4, batch_fingerprint=content, accumulated=2)
            recorder.end_epoch()
    return Run.open(folder)


FACTS = {
    "samples": 4, "data": 4, "batches": 1, "content": 11, "dtype": "float32", "epochs_repeated": 0, "weight": 4.0,
    "steps": 1, "batches_a_step": 1, "mean_norm": 1.0, "batch_fingerprints": [11], "batches_of_each": [1],
    "watched": False,
}  # fmt: skip
PROBED = {"weighing": "mean", "counter": 0, "confirmed": True, "reason": "", "noise": False, "redrawn": False}


def measured(monkeypatch: pytest.MonkeyPatch, record: Run, *, apart: float = 0.0, **facts: Any) -> Measurement:
    """What is made of passes with these facts, whose gradients lie `apart` of their norm from one another."""
    first = record.epoch_gradient(1)
    told = {key: facts.pop(key, PROBED[key]) for key in PROBED}
    second = {"content": facts.pop("content_of_second", facts.get("content", FACTS["content"]))}

    def run_pass(options: Any, plan: PassOptions, patience: float, keep: Path) -> PassOutcome:  # noqa: ARG001
        if plan.probe:
            return PassOutcome(told, {})
        factor = 1.0 if plan.reseed is None else 1 + apart
        more = {} if plan.reseed is None else second
        scaled = {name: tensor.double() * factor for name, tensor in first.items()}
        return PassOutcome({**FACTS, "mean_norm": norm(first), **facts, **more}, scaled)

    monkeypatch.setattr(starting, "run_pass", run_pass)
    found: list[Measurement] = []
    measure(record.root, ["python"], [0], on_point=lambda _, made: found.append(made))
    return found[0]


def test_passes_that_agree_are_the_full_batch(recorded: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = measured(monkeypatch, recorded, apart=1e-7)
    assert (made.kind, made.reason) == (EXACT, "")
    assert made.deviation == pytest.approx(1e-7, rel=1e-6)
    again = Run.open(recorded.root)
    assert again.info["measured_gradients"] == {"0": asdict(made)}
    assert "gradients" in again.info["record"]
    (row,) = verdict_rows(again)
    assert (row.holds, row.gradient_holds, row.gradient_relative_error) == ("exact", YES, 0.0)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"apart": 0.01}, "more than rounding"),
        ({"noise": True}, "another gradient another time"),
        ({"redrawn": True}, "samples that are read again are others (augmentation, say); both passes drew the same"),
        ({"redrawn": True, "apart": 0.01}, "samples that are read again are others"),
        ({"data": 5}, "used 4 samples of a data set of 5"),
        ({"apart": 0.01, "dtype": "bfloat16", "content_of_second": 12}, "more than rounding"),
        ({"apart": 0.01, "dtype": "bfloat16", "noise": None}, "more than rounding"),
    ],
)
def test_anything_else_is_an_estimate(
    recorded: Run, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], reason: str
) -> None:
    made = measured(monkeypatch, recorded, **facts)
    assert made.kind == ESTIMATE
    assert reason in made.reason
    (row,) = verdict_rows(Run.open(recorded.root))
    assert row.gradient_holds == (
        NO if facts.get("apart") else UNKNOWN
    )  # of passes that drew the same: an unknown error
    assert "one epoch's estimate" in row.far


SEEN = BatchWeights(Weighing.MEAN, 0, confirmed=True, noise=False)


def test_one_pass_is_enough_where_a_second_could_only_repeat_it() -> None:
    made = known_from_one(SEEN, FACTS, [11, 11])
    assert made is not None
    assert (made.kind, made.passes, made.deviation) == (EXACT, 1, 0.0)
    assert "from one pass" in made.sentence
    assert "each epoch of the run had the same samples" in made.sentence


@pytest.mark.parametrize(
    ("facts", "weights", "recorded"),
    [
        ({}, {}, [11]),
        ({}, {}, [11, 12]),
        ({}, {"noise": True}, [11, 11]),
        ({}, {"noise": None}, [11, 11]),
        ({}, {"redrawn": True}, [11, 11]),
        ({}, {"confirmed": False}, [11, 11]),
        ({"data": 5}, {}, [11, 11]),
        ({"data": None}, {}, [11, 11]),
        ({"content": None}, {}, [11, 11]),
        ({"epochs_repeated": 1}, {}, [11, 11]),
        ({"dtype": "bfloat16"}, {}, [11, 11]),
    ],
)
def test_anything_that_is_not_known_takes_a_second_pass(
    facts: dict[str, Any], weights: dict[str, Any], recorded: list[int]
) -> None:
    assert known_from_one(replace(SEEN, **weights), {**FACTS, **facts}, recorded) is None


@pytest.mark.parametrize(
    ("kind", "facts", "recorded", "passes"),
    [
        (EXACT, {}, [11], 1),
        (EXACT, {"content": 12}, [11, 12], 1),
        (EXACT, {"content": 12}, [11], None),
        (EXACT, {"content": None}, [11], None),
        (EXACT, {}, [], None),
        (EXACT, {"samples": 3}, [11], None),
        (EXACT, {"epochs_repeated": 1}, [11], None),
        (EXACT, {"drawn_again": 2}, [11], None),
        (EXACT, {"dtype": "bfloat16"}, [11], None),
        (ESTIMATE, {}, [11], None),
    ],
)
def test_a_later_point_takes_one_pass_where_the_first_was_exact(
    kind: str, facts: dict[str, Any], recorded: list[int], passes: int | None
) -> None:
    settled = known_from_one(SEEN, FACTS, [11, 11])
    assert settled is not None
    made = known_as_before(replace(settled, kind=kind, passes=2, deviation=1e-7), {**FACTS, **facts}, recorded)
    assert (made and (made.passes, made.kind, made.deviation)) == (passes and (passes, EXACT, 1e-7))


def test_what_can_be_done_where_the_run_takes_no_gradient(recorded: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other place and no resume is advised: neither is an option of measuring."""
    full, taken = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only file system")
    for called, error, end in (
        ("tvgrad.files.atomic.replace", full, "free some space and type the command again: finished epochs are whole"),
        ("tvgrad.store.lock.FileLock.acquire", taken, "(Read-only file system): measure a copy of the run"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(called, Mock(side_effect=error))
            with pytest.raises(TvgradError) as caught:
                measured(monkeypatch, recorded)
        assert str(caught.value).endswith(end)
    (recorded.root / "writer.lock").mkdir()
    with pytest.raises(TvgradError, match=r"cannot be locked \(it is a directory .*\): remove it, or measure a copy"):
        measured(monkeypatch, recorded)


def test_passes_at_later_points_are_left_out_and_said(recorded: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said = cost_sentence(recorded, [0, 1, 2])
    assert "3 points, 6 passes" in said
    assert "4 passes where the first point's two agree" in said
    assert "where the first" not in cost_sentence(recorded, [0])
    starts: list[tuple[int, int | None]] = []

    def run_pass(options: Any, plan: PassOptions, patience: float, keep: Path) -> PassOutcome:  # noqa: ARG001
        if plan.probe:
            return PassOutcome(PROBED, {})
        starts.append((plan.number, plan.reseed))
        return PassOutcome(FACTS, {name: tensor.double() for name, tensor in recorded.epoch_gradient(1).items()})

    monkeypatch.setattr(starting, "run_pass", run_pass)
    found: list[Measurement] = []
    measure(recorded.root, ["python"], [0, 1, 2], on_point=lambda _, made: found.append(made))
    assert [number for number, _ in starts] == [0, 0, 1, 2]
    assert [made.passes for made in found] == [2, 1, 1]
    assert "as at the first point" in found[2].sentence


def test_other_data_is_refused_after_one_pass(recorded: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int | None] = []

    def run_pass(options: Any, plan: PassOptions, patience: float, keep: Path) -> PassOutcome:  # noqa: ARG001
        starts.append(plan.reseed)
        return PassOutcome(PROBED if plan.probe else {**FACTS, "content": 12}, {})

    monkeypatch.setattr(starting, "run_pass", run_pass)
    with pytest.raises(TvgradError, match="its samples have another fingerprint"):
        measure(recorded.root, ["python"], [0])
    assert starts == [None, None]
    writer = RunWriter.resume(recorded.root)
    writer.update_info(training=2)
    writer.close()
    with pytest.raises(TvgradError, match="fingerprint; the run is of training 2 of its command, and a measuring pass"):
        measure(recorded.root, ["python"], [0])


@pytest.mark.parametrize("why", [f"the command {ANOTHER}: it does not train w", f"it {WITHOUT}", "exit code 1"])
def test_another_model_of_an_earlier_training(recorded: Run, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    def run_pass(*told: object) -> PassOutcome:
        raise TvgradError(f"the measuring pass failed: {why}")

    monkeypatch.setattr(starting, "run_pass", run_pass)
    writer = RunWriter.resume(recorded.root)
    for training in (1, 2):
        writer.update_info(training=training)
        with pytest.raises(TvgradError, match="the measuring pass failed") as refused:
            measure_point(Starts(Run.open(recorded.root), ["python"], recorded.root), 0, BatchWeights())
        named = training == 2 and why != "exit code 1"
        assert str(refused.value).endswith("begins with this one (a fold of its own, say)") is named
    writer.close()


def test_noise_that_both_passes_drew_is_no_error_bar(recorded: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "both passes drew the same noise" in measured(monkeypatch, recorded, noise=True).sentence
    assert "both passes drew" not in measured(monkeypatch, recorded, noise=True, apart=0.01).sentence


def test_bfloat16_rounds_more_where_samples_and_noise_are_known(recorded: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = measured(monkeypatch, recorded, apart=0.01, dtype="bfloat16")
    assert made.kind == EXACT
    assert made.reason == "the script computes in bfloat16, so exact to the rounding of that"


def test_weights_that_are_not_confirmed_are_said(recorded: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    unconfirmed = {"confirmed": False, "reason": "it normalises batches"}
    made = measured(monkeypatch, recorded, **unconfirmed, steps=2, batches=2)
    assert "the weights are not confirmed: it normalises batches" in made.sentence
    assert made.kind == ESTIMATE, "that two passes agree says nothing of the weights"
    assert measured(monkeypatch, recorded, **unconfirmed, steps=2, batches=0).kind == ESTIMATE
    assert measured(monkeypatch, recorded, **unconfirmed).kind == EXACT, "one batch needs no weights"
    tokens = measured(monkeypatch, recorded, weighing=Weighing.STEP.value, counter=1)
    assert tokens.weights == "steps weighted by tokens"


def test_starts_through_an_epoch_of_other_data_are_refused(recorded: Run, tmp_path: Path) -> None:
    require_same_epoch(recorded, [11, 5])
    require_same_epoch(recorded, [None])
    with pytest.raises(TvgradError, match=r"data is not what .*: its samples have another fingerprint"):
        require_same_epoch(recorded, [12])
    augmented = descent(tmp_path / "augmented", 11, 12)
    for first, second in (([13], None), ([13], [14]), ([12], [12]), ([], [])):
        require_same_epoch(augmented, first, second)
    with pytest.raises(TvgradError, match=r"data is not what .*: two starts of it had the same samples"):
        require_same_epoch(augmented, [13, 1], [13, 2])


@pytest.mark.parametrize("facts", [{"samples": 9}, {"content": 12}])
def test_other_data_is_refused(recorded: Run, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any]) -> None:
    with pytest.raises(TvgradError, match="the command's data is not what"):
        measured(monkeypatch, recorded, **facts)
    assert not Run.open(recorded.root).having("gradient")


def test_a_run_that_is_being_written_is_refused_before_long_work(
    recorded: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "run_pass", lambda *_, **__: pytest.fail("the command was started"))
    lock = WriterLock(recorded.root)
    try:
        with pytest.raises(TvgradError, match="is being written by process"):
            measure(recorded.root, ["python"], [0])
    finally:
        lock.close()


def test_points_and_costs(recorded: Run) -> None:
    assert points_of(recorded, "0, last") == [0, 2]
    assert points_of(recorded, "all") == [0, 1, 2]
    for wrong in ("", "first", "-1"):
        with pytest.raises(TvgradError, match="is no list of points"):
            points_of(recorded, wrong)
    with pytest.raises(TvgradError, match="keeps no weights at epoch 7"):
        points_of(recorded, "7")
    assert cost_sentence(recorded, [0, 2]).startswith("2 points, 4 passes of one epoch of forward and backward (up to")


def test_wrong_usage(recorded: Run, capsys: pytest.CaptureFixture[str]) -> None:
    from tvgrad.cli.main import main

    for words, message in (
        (["measure", str(recorded.root), "--"], "there is no command after `--`"),
        (["measure", str(recorded.root), "--", "no-such-program"], "is not found"),
        (["measure", str(recorded.root), "--at", "9", "--", "true"], "keeps no weights at epoch 9"),
        (["trace", "--gradients", "x", "--out", str(recorded.root / "o"), "--", "true"], "no list of points"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_the_run_says_what_was_measured(recorded: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, recorded)
    content = json.loads((recorded.root / "run.json").read_text())
    assert content["info"]["measured_gradients"]["0"]["kind"] == EXACT
    assert content["info"]["samples"] == 4
