"""What went wrong with a run as a whole: divergence, damage, an early end, weights that no recorded step explains."""

from __future__ import annotations

import math
import re

from scipy import stats

from tvgrad.store.batch_norms import batch_norms
from tvgrad.store.run import Run
from tvgrad.wording import counted

LOSSES = ("loss", "train_loss")
WORSE = "it ends worse than the pretrained model"
STOPPED = "it stopped"
NOT_BEGUN = f"{STOPPED} before the first"
OTHERS = "the script ended with weights that were not recorded"
MOVED = "its weights moved outside the optimizer's steps"
DIVERGED = "Diverged"
KINDS = {
    WORSE: "Hurt by fine-tuning",
    STOPPED: "Not finished",
    OTHERS: "Not the script's final weights",
    MOVED: "Moved outside the steps",
}
"""How a clause of trouble begins -> what a headline calls it; any other is divergence."""
GREW = 2.0
"""From how many times its first value a loss is said to have grown."""
GRADIENTS_GREW = 10.0
"""The same for gradients, whose norms vary more in a training that goes well."""

HIGHER = {"accuracy", "acc", "accuracies", "f1", "auc", "auroc", "precision", "recall", "bleu", "rouge", "iou", "map"}
"""Words in the name of a metric of which higher is better, as it is of a recipe's metric without a word of `LOWER`."""
LOWER = {"loss", "losses", "error", "errors", "err", "perplexity", "ppl", "nll", "mse", "rmse", "mae", "wer", "cer"}
"""Words in the name of a metric of which lower is better."""
LEVEL = 0.05
"""A fall of an accuracy is damage where Fisher's exact test on the number of test samples gives less than this."""


def troubles_of(run: Run) -> tuple[str, ...]:
    """Find divergence, damage, a training that did not reach its end, and weights that no recorded step explains.

    Args:
        run: a recorded run.

    Returns:
        Clauses, the worst first; empty where nothing went wrong that the record shows.
    """
    found = [*_divergence(run), *_damage(run)]
    wanted = run.info.get("epochs")
    if run.unit == "epoch" and not run.manifest.finished and wanted and run.points[-1].number < wanted:
        found.append(f"{STOPPED} after epoch {run.points[-1].number} of {wanted}")
    elif not run.manifest.finished and len(run.points) == 1:
        found.append(f"{NOT_BEGUN} {run.unit} to be recorded had ended")
    if run.info.get("final_weights_differ"):
        further = run.info.get("steps_unrecorded")
        found.append(OTHERS + (f", {counted(further, 'step')} after the last recorded ones" if further else ""))
    if run.info.get("moved_outside_steps"):
        found.append(f"{MOVED}, seen {counted(run.info['moved_outside_steps'], 'time')}")
    return tuple(found)


def kind_of(trouble: str) -> str:
    """Name a trouble by its first clause.

    Args:
        trouble: of a row; not empty.

    Returns:
        `DIVERGED`, or one of the names in `KINDS`.
    """
    return next((kind for start, kind in KINDS.items() if trouble.startswith(start)), DIVERGED)


def _divergence(run: Run) -> list[str]:
    found = []
    column = next((name for name in LOSSES if any(name in point.metrics for point in run.points)), None)
    losses = [(point.number, point.metrics[column]) for point in run.points if column in point.metrics]
    lost = [epoch for epoch, loss in losses if not math.isfinite(loss)]
    if lost:
        found.append(f"the loss is not finite in {run.unit} {lost[0]}")
    if losses:
        (_, first), (when, worst) = losses[0], max(losses, key=lambda one: one[1] if math.isfinite(one[1]) else 0.0)
        if worst - first > (GREW - 1) * abs(first) > 0:
            found.append(f"the loss grew from {first:.3g} to {worst:.3g} in {run.unit} {when}")
    return found or _runaway_gradients(run)


def _runaway_gradients(run: Run) -> list[str]:
    """What the norms of the batch gradients tell of a divergence, where no loss does."""
    recorded = [point.number for point in run.points[1:] if "steps" in point.files]
    norms = [(number, batch_norms(run, number).before_clipping) for number in recorded]
    if not norms or not math.isfinite(norms[0][1]):  # not recorded
        return []
    lost = [number for number, norm in norms if not math.isfinite(norm)]
    if lost:
        return [f"the gradients are not finite in {run.unit} {lost[0]}"]
    (_, first), (when, largest) = norms[0], max(norms, key=lambda one: one[1])
    if largest > GRADIENTS_GREW * first > 0:
        return [f"the mean batch gradient norm grew from {first:.3g} to {largest:.3g} in {run.unit} {when}"]
    return []


def _damage(run: Run) -> list[str]:
    """Test metrics, of which higher is better, that end below those of the pretrained weights by more than chance."""
    first = next((point.metrics for point in run.points if point.number == 0), {})
    fell = []
    measured = {name: (point.number, value) for point in run.points for name, value in point.metrics.items()}
    for name in first.keys() - {*LOSSES, "seconds"}:
        when, last = measured[name]
        if _higher_is_better(run, name) and last < first[name] and not _by_chance(run, name, first[name], last):
            fell.append(f"{name} {last:.4g} after {run.unit} {when}, {first[name]:.4g} before")
    return [f"{WORSE} ({'; '.join(sorted(fell))})"] if fell else []


def _higher_is_better(run: Run, name: str) -> bool:
    words = set(re.findall(r"[a-z]+1?", name.lower()))
    return not words & LOWER and (bool(words & HIGHER) or name == run.info.get("metric"))


def _by_chance(run: Run, name: str, before: float, after: float) -> bool:
    """Whether so few test samples can give such a fall by chance; False where their number is not known."""
    # Fisher's exact test takes the two shares as of independent samples; both are of the same ones: it is cautious.
    samples = run.info.get("test_samples") if name == run.info.get("metric") else None
    if not samples or not all(-1 < score < 2 for score in (before, after)):  # no shares; their product may overflow
        return False
    right = [round(score * samples) for score in (before, after)]
    if any(
        not 0 <= count <= samples or abs(count - score * samples) > 1e-6 * samples
        for count, score in zip(right, (before, after), strict=True)
    ):
        return False  # no share of right answers: what one sample adds to it is not known
    return bool(stats.fisher_exact([[count, samples - count] for count in right]).pvalue >= LEVEL)
