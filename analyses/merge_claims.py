"""The claims of the merging study, each with its verdict and the numbers that decided it, also where it fails."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from tvgrad.results import Result
from tvgrad.wording import counted

from .analysis_result import FAILS, HOLDS, UNDECIDED, VACUOUS, outcome_of
from .intervals import (
    CONFIDENCE,
    Array,
    CrossedMean,
    crossed_mean,
    crossed_ratio,
    holm,
    rank_correlation,
    seed_mean,
)

POINTS = 2.0
COSINE = 0.5
MERGED = "task_arithmetic"

SampleScores = Mapping[tuple[str, int], Sequence[Array]]
"""(method, epochs) -> scores of the test samples: one array a task, shape (seeds, samples)."""


@dataclass(frozen=True)
class ClaimVerdict(Result):
    """What became of a claim.

    Attributes:
        optimizer: for which optimizer.
        claim: the sentence.
        outcome: holds, fails, undecided, vacuous or does not apply.
        numbers: what decided it.
        p_value: of the test that decides between the outcome and its contrary; NaN for what only counts trainings.
        corrected: the same, corrected for all claims and optimizers.
        subject: gain, over the pretrained model; loss, by merging early; or another.
    """

    optimizer: str
    claim: str
    outcome: str
    numbers: str
    p_value: float = math.nan
    corrected: float = math.nan
    subject: str = ""

    def __str__(self) -> str:
        tested = "" if math.isnan(self.p_value) else f"; p = {self.p_value:.2g}, corrected {self.corrected:.2g}"
        return f"{self.optimizer}: {self.claim}: {self.outcome} ({self.numbers}{tested})"


def claim_verdicts(
    scores: pd.DataFrame, norms: pd.DataFrame, points: float = POINTS, cosine: float = COSINE
) -> list[ClaimVerdict]:
    """Judge every claim for every optimizer.

    Args:
        scores: optimizer, seed, epochs, task, method, sample_scores (one number a test sample), accuracy (their mean)
            and predicted_error of the task.
        norms: optimizer, seed, task, first_share, first_largest, cos_first, cos_last, epochs_run.
        points: what "as good" means, in points of accuracy.
        cosine: what "along the gradient" means.

    Returns:
        The verdicts, optimizer by optimizer. A claim that is tested is decided where its p value, corrected by Holm's
        method for all tested claims of all optimizers, is at most 0.05.
    """
    found = []
    for optimizer in dict.fromkeys(scores["optimizer"]):
        mine, own = scores[scores["optimizer"] == optimizer], norms[norms["optimizer"] == optimizer]
        made = [_largest(own), _direction(own, cosine), *_tested(mine, points / 100)]
        found += [replace(verdict, optimizer=optimizer) for verdict in made]
    tested = [place for place, verdict in enumerate(found) if not math.isnan(verdict.p_value)]
    corrected = holm([found[place].p_value for place in tested])
    for place, p_value in zip(tested, corrected, strict=True):
        decided = p_value <= 1 - CONFIDENCE
        outcome = found[place].outcome if decided else UNDECIDED
        found[place] = replace(found[place], corrected=p_value, outcome=outcome)
    return _with_vacuous(found)


def _with_vacuous(found: list[ClaimVerdict]) -> list[ClaimVerdict]:
    """Where no merged model is better than the pretrained one, it says nothing that early merging loses nothing."""
    gaining = {one.optimizer for one in found if one.subject == "gain" and one.outcome == HOLDS}
    return [
        replace(one, outcome=VACUOUS, numbers=f"{one.numbers}; nothing is gained that could be lost")
        if one.subject == "loss" and one.outcome == HOLDS and one.optimizer not in gaining
        else one
        for one in found
    ]


def sample_arrays(scores: pd.DataFrame) -> SampleScores:
    """Bring the scores of one optimizer into arrays.

    Args:
        scores: of one optimizer.

    Returns:
        The arrays, tasks and seeds in the order of the table.
    """
    return {
        (str(method), int(epochs)): [
            np.array(rows["sample_scores"].to_list(), dtype=np.float64) for _, rows in part.groupby("task", sort=False)
        ]
        for (method, epochs), part in scores.groupby(["method", "epochs"], sort=False)
    }


def _minus(first: Sequence[Array], second: Sequence[Array]) -> list[Array]:
    return [one - other for one, other in zip(first, second, strict=True)]


def _difference_in_words(values: Sequence[Array], estimate: CrossedMean) -> str:
    equal = not any(task.any() for task in values)
    return estimate.interval(-1, 1).points() + (" (every test sample is equal)" if equal else "")


def _tested(scores: pd.DataFrame, margin: float) -> list[ClaimVerdict]:
    samples = sample_arrays(scores)
    epochs = sorted({count for _, count in samples})
    first, last = epochs[0], epochs[-1]
    return [
        _one_epoch(samples, (first, last), margin),
        _one_epoch_relative(samples, (first, last), margin),
        _best_epoch(samples, epochs, margin),
        *(_gain(samples, count) for count in (first, last)),
        *(_joint(samples, count, margin) for count in (first, last)),
        _correlation(scores),
    ]


def _largest(norms: pd.DataFrame) -> ClaimVerdict:
    count, total = int(norms["first_largest"].sum()), len(norms)
    share = seed_mean(norms.groupby("seed")["first_share"].mean().to_numpy(), 0, 1)
    even = 1 / float(norms["epochs_run"].iloc[0])
    numbers = f"in {count} of {total} trainings; its share of the sum is {share}, an even share {even:.3f}"
    return ClaimVerdict("", "the first epoch's gradient norm is the largest", outcome_of(count == total), numbers)


def _direction(norms: pd.DataFrame, cosine: float) -> ClaimVerdict:
    last = norms["cos_last"]
    numbers = (
        f"smallest {last.min():.3f}, mean {seed_mean(norms.groupby('seed')['cos_last'].mean().to_numpy(), -1, 1)}; "
        f"after one epoch smallest {norms['cos_first'].min():.3f}"
    )
    claim = f"the last task vector's cosine to minus the first gradient is above {cosine:g}"
    return ClaimVerdict("", claim, outcome_of(bool((last > cosine).all())), numbers)


def _at_most(claim: str, numbers: str, estimate: CrossedMean, margin: float) -> ClaimVerdict:
    """A claim that a loss is no higher than a margin."""
    outcome, p_value = outcome_of(float(estimate.center) <= margin), estimate.p_value(margin)
    return ClaimVerdict("", claim, outcome, numbers, p_value, subject="loss")


def _one_epoch(samples: SampleScores, ends: tuple[int, int], margin: float) -> ClaimVerdict:
    lost = _minus(samples[MERGED, ends[1]], samples[MERGED, ends[0]])
    estimate = crossed_mean(lost)
    claim = f"merging after one epoch is within {100 * margin:g} points in accuracy"
    return _at_most(claim, f"{ends[1]} epochs minus one: {_difference_in_words(lost, estimate)}", estimate, margin)


def _one_epoch_relative(samples: SampleScores, ends: tuple[int, int], margin: float) -> ClaimVerdict:
    claim = (
        f"merging after one epoch is within {100 * margin:g} points in accuracy relative to single-task models of the "
        "same epoch"
    )
    if not all(task.any() for end in ends for task in samples["single", end]):
        return ClaimVerdict("", claim, "does not apply", "a single-task model gets no test sample right")
    (early, units), (late, more) = (crossed_ratio(samples[MERGED, end], samples["single", end]) for end in ends)
    estimate = crossed_mean(_minus(late, early), [np.maximum(*pair) for pair in zip(units, more, strict=True)])
    return _at_most(claim, f"{ends[1]} epochs minus one: {estimate.interval().points()}", estimate, margin)


def _best_epoch(samples: SampleScores, epochs: Sequence[int], margin: float) -> ClaimVerdict:
    gains = {count: _minus(samples[MERGED, count], samples[MERGED, epochs[0]]) for count in epochs[1:]}
    estimates = {count: crossed_mean(values) for count, values in gains.items()}
    best = max(estimates, key=lambda count: float(estimates[count].mean))
    above = {count: float(one.center) > margin for count, one in estimates.items()}
    p_values = {count: one.p_value(margin) for count, one in estimates.items()}
    # All epochs must be below the margin for the claim, so that the largest p value decides; one above refutes it.
    against = holm([p_values[count] if above[count] else 1.0 for count in estimates])
    p_value = min(against) if any(above.values()) else max(p_values.values())
    at_all = min(holm([one.p_value() if float(one.center) > 0 else 1.0 for one in estimates.values()]))
    numbers = (
        f"best after {counted(best, 'epoch')}, {_difference_in_words(gains[best], estimates[best])} over one; that any "
        f"is better at all has p = {at_all:.2g}, corrected for {counted(len(gains), 'epoch')}"
    )
    claim = f"no later epoch merges better than the first by more than {100 * margin:g} points"
    return ClaimVerdict("", claim, outcome_of(not any(above.values())), numbers, p_value, subject="loss")


def _gain(samples: SampleScores, epochs: int) -> ClaimVerdict:
    """Whether there is anything to keep: a merged model near the pretrained one is as good after any epoch."""
    gain, possible = (_minus(samples[name, epochs], samples["pretrained", epochs]) for name in (MERGED, "single"))
    estimate = crossed_mean(gain)
    claim = f"the model merged after {counted(epochs, 'epoch')} is better than the pretrained one"
    numbers = (
        f"{_difference_in_words(gain, estimate)}; single-task models "
        f"{_difference_in_words(possible, crossed_mean(possible))}"
    )
    return ClaimVerdict("", claim, outcome_of(float(estimate.center) > 0), numbers, estimate.p_value(), subject="gain")


def _joint(samples: SampleScores, epochs: int, margin: float) -> ClaimVerdict:
    gap = _minus(samples["joint", epochs], samples["mean", epochs])
    estimate = crossed_mean(gap)
    center = float(estimate.center)
    inside = abs(center) <= margin
    # Inside, both ends of the margin must be refuted; outside, the nearer one.
    p_value = (
        max(map(estimate.p_value, (-margin, margin))) if inside else estimate.p_value(math.copysign(margin, center))
    )
    claim = f"the merged mean is within {100 * margin:g} points of joint training after {counted(epochs, 'epoch')}"
    numbers = f"joint minus merged {_difference_in_words(gap, estimate)}"
    return ClaimVerdict("", claim, outcome_of(inside), numbers, p_value)


def _correlation(scores: pd.DataFrame) -> ClaimVerdict:
    claim = "the predicted second-order error goes with the accuracy lost by merging late"
    table = lost_by_merging_late(scores)
    if table["predicted_error"].isna().all():
        reason = "there is no prediction for a rule that is not linear in the gradients"
        return ClaimVerdict("", claim, "does not apply", reason)
    predicted, lost = (
        table.pivot_table(index="epochs", columns="task", values=column, dropna=False).to_numpy()
        for column in ("predicted_error", "lost")
    )
    found = None if np.isnan(lost).any() else rank_correlation(predicted, lost)
    if found is None:
        return ClaimVerdict("", claim, "does not apply", "there is nothing to rank: all tasks lose the same")
    numbers = f"rank correlation over {counted(predicted.shape[1], 'task')} at equal epochs {found.interval}"
    return ClaimVerdict("", claim, outcome_of(found.interval.mean > 0), numbers, found.p_value)


def lost_by_merging_late(scores: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of a task relative to its single-task model when merged after one epoch, minus that after more.

    Args:
        scores: of one optimizer.

    Returns:
        Columns task, epochs, predicted_error, lost; accuracies are means over seeds.
    """
    means = scores.groupby(["method", "epochs", "task"], sort=False)[["accuracy", "predicted_error"]].mean()
    single = means.loc["single"]["accuracy"]
    table = means.loc["mean"].assign(relative=means.loc["mean"]["accuracy"] / single.where(single > 0)).reset_index()
    first = table["epochs"].min()
    start = table[table["epochs"] == first].set_index("task")["relative"]
    later = table[table["epochs"] > first].copy()
    later["lost"] = start.reindex(later["task"]).to_numpy() - later["relative"].to_numpy()
    return pd.DataFrame(later[["task", "epochs", "predicted_error", "lost"]])


def overall_outcome(verdicts: Sequence[ClaimVerdict]) -> str:
    """Judge a claim for all optimizers together.

    Args:
        verdicts: one an optimizer.

    Returns:
        fails where it fails for one, else undecided where it is for one, vacuous where it is for all, and holds.
    """
    outcomes = {verdict.outcome for verdict in verdicts}
    return next(outcome for outcome in (FAILS, UNDECIDED, HOLDS, VACUOUS) if outcome in outcomes)
