"""explain_passes: the two starts of a script that its error budget takes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvgrad.integrations.measuring.measure import script_options, seconds_to_wait
from tvgrad.integrations.measuring.pass_options import PassOptions
from tvgrad.integrations.measuring.passes import PassOutcome, run_pass
from tvgrad.record.step_plan import ScriptSum, StepPlan
from tvgrad.store.measured import measured_at
from tvgrad.store.run import Run
from tvgrad.vectors.parameters import Weights


@dataclass(frozen=True)
class ScriptSums:
    """What the two starts have formed.

    Attributes:
        trained: epoch that is explained -> sums of the training, done again.
        at_start: the same of a pass at theta_0.
        same_batches: whether both went through the batches that the run recorded.
        dtype: the narrowest format in which the script computes.
    """

    trained: dict[int, dict[ScriptSum, Weights]]
    at_start: dict[int, dict[ScriptSum, Weights]]
    same_batches: bool
    dtype: str


def explain_passes(
    run: Run,
    command: Sequence[str],
    plan: StepPlan,
    *,
    model: str | None = None,
    steps_per_epoch: int | None = None,
    patience: float | None = None,
) -> ScriptSums:
    """Train once more, and go through the same batches at theta_0.

    Args:
        run: the run.
        command: as the user gives it.
        plan: which sums are wanted.
        model: the model's name, where several have the run's parameters.
        steps_per_epoch: optimizer steps in an epoch; by default as recorded.
        patience: seconds until the command's first backward pass.

    Returns:
        The sums.

    Raises:
        TvgradError: a start gave none.
    """  # noqa: DOC502 - raised by run_pass
    options = script_options(run, command, steps_per_epoch)
    folder = Path(tempfile.mkdtemp(prefix="tvgrad-"))
    how = measured_at(run, 0) or {"weighing": "mean", "counter": 0}
    try:
        wanted = folder / "plan.json"
        wanted.write_text(plan.to_json(), encoding="utf-8")

        def start(**rest: Any) -> PassOutcome:
            told = PassOptions(
                run=options.out,
                number=0,
                parent=os.getpid(),
                model=model or run.info.get("model"),
                coefficients=str(wanted),
                **rest,
            )
            return run_pass(options, told, seconds_to_wait(run, patience))

        trained = start(train=True)
        at_start = start(weighing=how["weighing"], counter=how["counter"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    count = plan.ends[-1]
    mine, there = trained.facts["fingerprints"][:count], at_start.facts["fingerprints"][:count]
    table = run.steps()
    recorded = mine
    if "batch_fingerprint" in table and not table["batch_fingerprint"][:count].isna().any():
        recorded = [int(value) for value in table["batch_fingerprint"][:count]]
    same = mine == there == recorded
    return ScriptSums(trained.sums, at_start.sums, same, at_start.facts["dtype"])
