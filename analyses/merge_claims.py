"""The claims of the merging study, each with its verdict and the numbers that decided it, also where it fails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from tvgrad.wording import counted

POINTS = 2.0
COSINE = 0.5
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its confidence interval (Student's t; NaN ends for one seed)."""

    mean: float
    low: float
    high: float

    def points(self) -> str:
        """In hundredths, for accuracies."""
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}] points"

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(values: Sequence[float] | pd.Series) -> Interval:
    """Mean and 95 % confidence interval of independent values.

    Args:
        values: one a seed; for a difference of two conditions, the paired differences.

    Returns:
        The interval; a single value has no ends, and equal values have an interval of no width.
    """
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    if len(array) == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(array.mean())
    if len(array) == 1:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class ClaimVerdict:
    """What became of a claim.

    Attributes:
        optimizer: for which optimizer.
        claim: the sentence.
        outcome: holds, fails or undecided.
        numbers: what decided it.
    """

    optimizer: str
    claim: str
    outcome: str
    numbers: str

    def __str__(self) -> str:
        return f"{self.optimizer}: {self.claim}: {self.outcome} ({self.numbers})"


def claim_verdicts(
    scores: pd.DataFrame, norms: pd.DataFrame, points: float = POINTS, cosine: float = COSINE
) -> list[ClaimVerdict]:
    """Judge every claim for every optimizer.

    Args:
        scores: optimizer, seed, epochs, task, method, accuracy, normalised, and predicted_error of the task.
        norms: optimizer, seed, task, first_share, first_largest, cos_first, cos_last, epochs_run.
        points: what "as good" means, in points of accuracy.
        cosine: what "along the gradient" means.

    Returns:
        The verdicts, optimizer by optimizer.
    """
    found = []
    for optimizer in dict.fromkeys(scores["optimizer"]):
        mine, own = scores[scores["optimizer"] == optimizer], norms[norms["optimizer"] == optimizer]
        found += [
            _largest(optimizer, own),
            _direction(optimizer, own, cosine),
            *(_one_epoch(optimizer, mine, points, column) for column in ("accuracy", "normalised")),
            _best_epoch(optimizer, mine),
            *(_gain(optimizer, mine, place) for place in (0, -1)),
            *_joint(optimizer, mine, points),
            _correlation(optimizer, mine),
        ]
    return found


def curve(scores: pd.DataFrame, method: str, column: str) -> pd.DataFrame:
    """Mean over tasks, one row a seed and one column a number of epochs.

    Args:
        scores: of one optimizer.
        method: a method.
        column: accuracy or normalised.

    Returns:
        The table.
    """
    chosen = scores[scores["method"] == method]
    return pd.DataFrame(chosen.pivot_table(index="seed", columns="epochs", values=column, aggfunc="mean"))


def _outcome(holds: bool, fails: bool = True) -> str:
    return "holds" if holds else "fails" if fails else "undecided"


def _largest(optimizer: str, norms: pd.DataFrame) -> ClaimVerdict:
    count, total = int(norms["first_largest"].sum()), len(norms)
    share = interval(norms.groupby("seed")["first_share"].mean())
    even = 1 / float(norms["epochs_run"].iloc[0])
    outcome = _outcome(count == total)
    numbers = f"in {count} of {total} trainings; its share of the sum is {share}, an even share {even:.3f}"
    return ClaimVerdict(optimizer, "the first epoch's gradient norm is the largest", outcome, numbers)


def _direction(optimizer: str, norms: pd.DataFrame, cosine: float) -> ClaimVerdict:
    last = norms["cos_last"]
    numbers = (
        f"smallest {last.min():.3f}, mean {interval(norms.groupby('seed')['cos_last'].mean())}; after one epoch "
        f"smallest {norms['cos_first'].min():.3f}"
    )
    claim = f"the last task vector's cosine to minus the first gradient is above {cosine:g}"
    return ClaimVerdict(optimizer, claim, _outcome(bool((last > cosine).all())), numbers)


def _one_epoch(optimizer: str, scores: pd.DataFrame, points: float, column: str) -> ClaimVerdict:
    table = curve(scores, "task_arithmetic", column)
    loss = interval(table[table.columns[-1]] - table[table.columns[0]])
    bound = points / 100
    outcome = _outcome(loss.high <= bound, loss.low > bound)
    what = "accuracy" if column == "accuracy" else "accuracy relative to single-task models of the same epoch"
    numbers = f"{table.columns[-1]} epochs minus one: {loss.points()}"
    return ClaimVerdict(optimizer, f"merging after one epoch is within {points:g} points in {what}", outcome, numbers)


def _best_epoch(optimizer: str, scores: pd.DataFrame) -> ClaimVerdict:
    table = curve(scores, "task_arithmetic", "accuracy")
    best = table.mean().idxmax()
    lost = interval(table[best] - table[table.columns[0]])
    significant = "not above 0" if not lost.low > 0 else "above 0"
    outcome = _outcome(best == table.columns[0] or not lost.low > 0)
    numbers = f"best after {counted(best, 'epoch')}, {lost.points()} over one, {significant} with 95 % confidence"
    return ClaimVerdict(optimizer, "no later epoch merges significantly better than the first", outcome, numbers)


def _gain(optimizer: str, scores: pd.DataFrame, place: int) -> ClaimVerdict:
    """Whether there is anything to keep: a merged model near the pretrained one is as good after any epoch."""
    merged, single, before = (
        curve(scores, name, "accuracy").iloc[:, place] for name in ("task_arithmetic", "single", "pretrained")
    )
    epochs = int(scores["epochs"].min() if place == 0 else scores["epochs"].max())
    gain, possible = interval(merged - before), interval(single - before)
    outcome = _outcome(gain.low > 0, gain.high <= 0)
    claim = f"the model merged after {counted(epochs, 'epoch')} is better than the pretrained one"
    return ClaimVerdict(optimizer, claim, outcome, f"{gain.points()}; single-task models {possible.points()}")


def _joint(optimizer: str, scores: pd.DataFrame, points: float) -> list[ClaimVerdict]:
    joint, mean = (curve(scores, name, "accuracy") for name in ("joint", "mean"))
    gaps = {epochs: interval(joint[epochs] - mean[epochs]) for epochs in joint.columns}
    widest = max(gaps, key=lambda epochs: abs(gaps[epochs].mean))
    bound = points / 100
    return [
        ClaimVerdict(
            optimizer,
            f"the merged mean is within {points:g} points of joint training after {counted(epochs, 'epoch')}",
            _outcome(-bound <= gap.low and gap.high <= bound, gap.low > bound or gap.high < -bound),
            f"joint minus merged {gap.points()}; widest {gaps[widest].points()} after {counted(widest, 'epoch')}",
        )
        for epochs, gap in ((epochs, gaps[epochs]) for epochs in (joint.columns[0], joint.columns[-1]))
    ]


def _correlation(optimizer: str, scores: pd.DataFrame) -> ClaimVerdict:
    claim = "the predicted second-order error goes with the accuracy lost by merging late"
    table = lost_by_merging_late(scores)
    if table["predicted_error"].isna().all():
        reason = "there is no prediction for a rule that is not linear in the gradients"
        return ClaimVerdict(optimizer, claim, "does not apply", reason)
    found = interval([_spearman(part) for _, part in table.groupby("seed")])
    equal = pd.DataFrame([
        {"seed": seed, "rank": _spearman(one)} for (seed, _), one in table.groupby(["seed", "epochs"])
    ])
    within = interval(equal.groupby("seed")["rank"].mean())  # without those that are not defined
    outcome = _outcome(found.low > 0, found.high <= 0)
    numbers = (
        f"rank correlation over tasks and epochs {found}; over the tasks at equal epochs {within}, "
        f"which the number of epochs cannot explain"
    )
    return ClaimVerdict(optimizer, claim, outcome, numbers)


def lost_by_merging_late(scores: pd.DataFrame) -> pd.DataFrame:
    """Normalised accuracy of a task merged after one epoch, minus that after more.

    Args:
        scores: of one optimizer.

    Returns:
        Columns seed, task, epochs, predicted_error, lost.
    """
    chosen = scores[scores["method"] == "mean"]
    first = chosen["epochs"].min()
    start = chosen[chosen["epochs"] == first].set_index(["seed", "task"])["normalised"]
    later = chosen[chosen["epochs"] > first].copy()
    keys = pd.MultiIndex.from_frame(later[["seed", "task"]])
    later["lost"] = start.reindex(keys).to_numpy() - later["normalised"].to_numpy()
    return pd.DataFrame(later[["seed", "task", "epochs", "predicted_error", "lost"]])


def _spearman(table: pd.DataFrame) -> float:
    if table["predicted_error"].nunique() < 2 or table["lost"].nunique() < 2:
        return math.nan
    return float(stats.spearmanr(table["predicted_error"], table["lost"]).statistic)
