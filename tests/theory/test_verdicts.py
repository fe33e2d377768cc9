"""The two verdicts and the line that joins them, on rows made for the test."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

import tvgrad
from tests.traced_runs import Traced
from tvgrad.store.run import Run
from tvgrad.theory.equivalence import APPLIES_NOT, EXACT, FAILS
from tvgrad.theory.verdicts import NO, UNKNOWN, YES, EquivalenceRow, headline, troubles_of, verdict_rows

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


def test_rows_of_runs(traced: Traced) -> None:
    (plain,) = verdict_rows(traced("rotated"), "mine")
    assert (plain.run, plain.holds, plain.gradient_holds, plain.cause, plain.trouble) == ("mine", EXACT, YES, "", "")
    rows = verdict_rows(traced("rotated", optimizer="adam", lr=1e-3))
    assert {row.gradient_holds for row in rows} == {NO}
    assert [row.holds for row in rows] == [APPLIES_NOT, EXACT]
    assert "adam divides each coordinate of the gradient by its own size" in rows[0].cause
    (narrow,) = verdict_rows(traced("rotated", dtype="bfloat16"))
    assert (narrow.holds, narrow.gradient_holds) == (EXACT, NO)
    assert "of the coordinates did not change, their step being lost in bfloat16" in narrow.cause
