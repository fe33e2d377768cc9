"""explain_passes: the starts of a script that its error budget takes, and those of its gradient at theta_0.

The pass through the script's batches at theta_0 measures the gradient there too. Another one confirms it only where
the record does not say already that it would be the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvgrad.errors import TvgradError
from tvgrad.files.lazy_weights import LazyWeights
from tvgrad.integrations.measuring.measure import batch_weights, measure_point, require_same_epoch, weights_told
from tvgrad.integrations.measuring.starts import Starts
from tvgrad.record.measurement import Measurement
from tvgrad.record.step_plan import ScriptSum, StepPlan
from tvgrad.store.measured import measured_at
from tvgrad.store.run import Run

Sums = dict[int, dict[ScriptSum, LazyWeights]]


@dataclass(frozen=True)
class ScriptSums:
    """What the starts have formed. Vectors lie in files of the passes' folder, and are read when they are asked for.

    Attributes:
        trained: epoch that is explained -> sums of the training, done again.
        at_start: the same of a pass at theta_0.
        same_batches: whether both went through the batches that the run recorded.
        dtype: the narrowest format in which the script computes.
    """

    trained: Sums
    at_start: Sums
    same_batches: bool
    dtype: str


def explain_passes(
    starts: Starts, plan: StepPlan, *, on_measured: Callable[[Measurement], None] = lambda made: None
) -> ScriptSums:
    """Go through a script's batches at theta_0, and train once more.

    Args:
        starts: of the command.
        plan: which sums are wanted.
        on_measured: called with what was measured at theta_0, where that was not known before.

    Returns:
        The sums.

    Raises:
        TvgradError: a start gave none, or its data is not the run's.
    """  # noqa: DOC502 - raised by run_pass and require_same_epoch
    run, wanted = starts.run, starts.folder / "plan.json"
    wanted.write_text(plan.to_json(), encoding="utf-8")
    weights = None if 0 in run.having("gradient") else batch_weights(starts, 0)
    how = measured_at(run, 0) or {"weighing": "mean", "counter": 0}
    if weights is not None:
        how = {"weighing": weights.weighing.value, "counter": weights.used}
    at_start = starts.pass_at(0, coefficients=str(wanted), weighing=how["weighing"], counter=how["counter"])
    if weights is not None:
        weights, at_start = weights_told(starts, 0, weights, at_start, coefficients=str(wanted))
    _require_as_many(run, at_start.facts["processes"])
    require_same_epoch(run, at_start.facts["fingerprints"])
    if weights is not None:
        first = at_start if _whole(at_start.facts) else None
        on_measured(measure_point(starts, 0, weights, first, frugal=True)[0])
    trained = starts.pass_at(0, coefficients=str(wanted), train=True)
    count = plan.ends[-1]
    mine, there = trained.facts["fingerprints"][:count], at_start.facts["fingerprints"][:count]
    require_same_epoch(run, there, mine)
    table = run.steps()
    recorded = mine
    if "batch_fingerprint" in table and not table["batch_fingerprint"][:count].isna().any():
        recorded = [int(value) for value in table["batch_fingerprint"][:count]]
    return ScriptSums(trained.sums, at_start.sums, mine == there == recorded, at_start.facts["dtype"])


def _require_as_many(run: Run, processes: int) -> None:
    """Refuse another number of processes than the run was recorded on: each step would have other batches."""
    recorded = run.info.get("processes", processes)
    if recorded != processes:
        raise TvgradError(
            f"{run.root} was recorded on {recorded} process{'es' * (recorded != 1)}, and the command starts "
            f"{processes}, whose steps have other batches: explain it on as many"
        )


def _whole(facts: dict[str, Any]) -> bool:
    """Whether a pass that follows steps has seen what one that follows the data would have: an epoch and all of it."""
    return facts["samples"] == facts["data"] and not facts["overflowed"]
