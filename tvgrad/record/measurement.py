"""Measurement: what a measured full-batch gradient is, from two passes over the data with other random numbers each.

Where both agree to rounding, every sample was used and the weights of batches are confirmed, the gradient is the full
batch's. Else it is one epoch's estimate of it, and their distance says how good that is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tvgrad.numerics.floats import unit_roundoff
from tvgrad.record.batch_items import COUNTERS
from tvgrad.record.weighing import CLASS_WEIGHTS, BatchWeights, Weighing
from tvgrad.store.measured import ESTIMATE, EXACT
from tvgrad.vectors.lazy import LazyCombination
from tvgrad.vectors.parameters import norm
from tvgrad.wording import percent

Pass = tuple[dict[str, Any], Mapping[str, torch.Tensor]]
"""Facts of a pass over the data, and the gradient that it has summed, in float64. The facts are samples, data,
drawn_again, batches, batch_fingerprints, watched, steps, batches_a_step, content, dtype, epochs_repeated, weight and
mean_norm."""

AS_BEFORE = "exact as at the first point, where two passes were compared"
"""The reason of a gradient that one pass has measured."""

DIFFER = "the passes differ by more than rounding (augmentation, noise, or other samples in each)"
OTHERWISE = (
    "the passes differ by more than rounding, with the same samples in other batches: some of them weigh otherwise "
    "than in the batch that was looked at"
)


@dataclass(frozen=True)
class Measurement:
    """The full-batch gradient at one point, as it is kept in run.json.

    Attributes:
        kind: `exact full batch`, or `one epoch's estimate`.
        deviation: between two passes, relative to the gradient: the error bar of an estimate.
        samples: in the epoch that was measured.
        data: in the loader's data set; None where that is not known.
        steps: optimizer steps of the epoch.
        weights: how batches are weighted, in words.
        reason: why it is an estimate, or a sentence on the weights; empty where there is nothing to say.
        weighing: the same weights, as `tvgrad.integrations.measuring.pass_options.Weighing` has them.
        counter: which count of a batch it is weighted by.
        passes: over the data, that were compared.
        repeat: whether they agree to rounding: the distance of two that repeat one another is no error bar.
    """

    kind: str
    deviation: float
    samples: int
    data: int | None
    steps: int
    weights: str
    reason: str
    weighing: str
    counter: int
    passes: int = 2
    repeat: bool = False

    @property
    def sentence(self) -> str:
        """What was measured, in words."""
        seen = "from one pass" if self.passes == 1 else f"two passes differ by {percent(self.deviation)}"
        if self.kind == ESTIMATE and self.repeat:
            seen = "of unknown error (two passes repeat one another)"
        said = f"{self.kind}, {seen}, {self.weights}"
        return f"{said}; {self.reason}" if self.reason else said


def compared(weights: BatchWeights, first: Pass, second: Pass) -> Measurement:
    """Compare two passes over the data, the second with other random numbers.

    Args:
        weights: how batches are weighted.
        first: facts and gradient of a pass.
        second: of another at the same weights.

    Returns:
        What the first pass's gradient is.
    """
    (facts, gradient), (again, other) = first, second
    length, apart = norm(gradient), norm(LazyCombination((1.0, gradient), (-1.0, other)))
    deviation = apart / length if length else (0.0 if apart == 0 else math.inf)
    data = facts["data"]
    # Where an epoch is one batch, or one step of unknown batches, no weights are needed.
    settled = weights.confirmed or (facts["steps"] == 1 and facts["batches"] <= 1)
    reasons = ["" if settled else f"the weights are not confirmed: {weights.reason}"]
    parts = facts["batches"] if weights.weighing is Weighing.SUM else facts["batches_a_step"]
    exact = repeat = apart <= parts * _rounding(first, max(getattr(torch, facts["dtype"]), torch.float32, key=_width))
    if not exact and weights.noise is False and _same_content(facts, again):
        exact = apart <= parts * _rounding(first, getattr(torch, facts["dtype"]))
    if weights.noise:
        exact = False
        reasons.append("the same batch gives another gradient another time (dropout, say)")
        if repeat:
            reasons.append("both passes drew the same noise")
    if weights.redrawn:
        exact = False
        reasons.append("samples that are read again are others (augmentation, say)")
        if repeat:
            reasons.append("both passes drew the same ones")
    elif not exact and not weights.noise:
        known = weights.noise is False and _same_content(facts, again)
        reasons.append(OTHERWISE if settled and known else DIFFER)
    reasons += _uneven(weights, facts)
    if not settled or _uneven(weights, facts):
        exact = False
    elif _unseen(weights, facts) and _some_kept(facts, again):
        exact = False
        reasons.append(
            "some batches held the same samples in both passes, which would hide targets that the script's own code "
            "weighs otherwise than those of the batch that was looked at"
        )
    if data is not None and facts["samples"] != data:
        exact = False
        reasons.append(f"the epoch used {facts['samples']:,} samples of a data set of {data:,}")
    if drawn_again := max(facts.get("drawn_again", 0), again.get("drawn_again", 0)):
        exact = False
        reasons.append(f"{drawn_again:,} of its samples had come before in the same epoch")
    if exact and getattr(torch, facts["dtype"]).itemsize < 4:
        reasons.append(f"the script computes in {facts['dtype']}, so exact to the rounding of that")
    if facts["epochs_repeated"]:
        reasons.append(f"an epoch with an overflow of the loss scale was left out, {facts['epochs_repeated']} times")
    return Measurement(
        kind=EXACT if exact else ESTIMATE,
        repeat=repeat,
        deviation=deviation,
        samples=facts["samples"],
        data=data,
        steps=facts["steps"],
        weights=_weights_in_words(weights, facts),
        reason="; ".join(filter(None, reasons)),
        weighing=weights.weighing.value,
        counter=weights.counter,
    )


def known_from_one(weights: BatchWeights, facts: dict[str, Any], recorded: Sequence[int]) -> Measurement | None:
    """Tell what one pass has measured, where a second one could only repeat it.

    So it is where the same batch gave the same gradient twice, samples were the same when they were read again, batches
    are made of their parts with confirmed weights, which a loss of torch divides by, every sample was used, and the
    recorded epochs, two or more of them, went through the very samples of this pass.

    Args:
        weights: how batches are weighted.
        facts: of the pass.
        recorded: the fingerprint of all samples of each epoch that the training went through, where it is known.

    Returns:
        What its gradient is; None where a second pass is needed.
    """
    same = len(recorded) > 1 and all(content == facts.get("own_content", facts["content"]) for content in recorded)
    wide = getattr(torch, facts["dtype"]).itemsize >= 4
    if (
        weights.redrawn
        or _uneven(weights, facts)
        or not (same and wide and weights.confirmed and weights.noise is False)
    ):
        return None
    if _unseen(weights, facts):
        return None
    if facts["samples"] != facts["data"] or facts["epochs_repeated"] or facts.get("drawn_again"):
        return None
    reason = (
        "the same batch gives the same gradient again, and each epoch of the run had the same samples: another pass "
        "would repeat it"
    )
    settled = EXACT, 0.0, facts["samples"], facts["data"], facts["steps"], _weights_in_words(weights, facts)
    return Measurement(*settled, reason, weights.weighing.value, weights.counter, passes=1)


def known_as_before(earlier: Measurement, facts: dict[str, Any], recorded: Sequence[int]) -> Measurement | None:
    """Tell what one pass has measured, where two were compared at another point of the same training.

    Args:
        earlier: what was measured there.
        facts: of the pass.
        recorded: the fingerprint of all samples of each epoch that the training went through, where it is known.

    Returns:
        What its gradient is, with the deviation seen there; None where a second pass is needed, as where a format as
        narrow as bfloat16 makes that deviation large, and another one at other weights.
    """
    wide = getattr(torch, facts["dtype"]).itemsize >= 4
    same = wide and facts["samples"] == earlier.samples and facts.get("own_content", facts["content"]) in recorded
    if earlier.kind != EXACT or not same or facts["epochs_repeated"] or facts.get("drawn_again"):
        return None
    return replace(earlier, steps=facts["steps"], reason=AS_BEFORE, passes=1)


def _rounding(one: Pass, dtype: torch.dtype) -> float:
    """What rounding explains of the distance of two means: a sum of n terms errs by about sqrt(n) u of their size."""
    facts, gradient = one
    terms = max(facts["samples"], facts["weight"]) + max(
        (size for tensor in gradient.values() for size in tensor.shape), default=1
    )
    bound: float = 8 * unit_roundoff(dtype) * facts["mean_norm"]
    return bound * terms**0.5 if dtype.itemsize >= 4 else bound


def _width(dtype: torch.dtype) -> int:
    return dtype.itemsize


def _unseen(weights: BatchWeights, facts: dict[str, Any]) -> bool:
    """Whether rare targets may weigh otherwise by code of the script's own, which is not followed."""
    watched = facts["watched"] and CLASS_WEIGHTS in weights.fitting
    return not watched and facts["batches"] > 1 and weights.weighing is not Weighing.SUM


def _some_kept(facts: dict[str, Any], again: dict[str, Any]) -> bool:
    """Whether a batch of the second pass had the samples of one of the first, or that is not known."""
    before, after = set(facts["batch_fingerprints"]), set(again["batch_fingerprints"])
    return None in before or bool(before & after)


def _same_content(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first["content"] is not None and first["content"] == second["content"]


def _uneven(weights: BatchWeights, facts: dict[str, Any]) -> list[str]:
    """Why batches of several sizes do not add up to the full batch."""
    if weights.shared and not facts["even"]:
        return [
            "its loss or its gradients are divided by what all processes have at a step, so that batches of other "
            "sizes weigh differently"
        ]
    if facts.get("refactored"):
        return ["the script multiplies accumulated gradients by factors that differ between its steps"]
    return []


def _weights_in_words(weights: BatchWeights, facts: dict[str, Any]) -> str:
    if not facts["batches"]:
        return "each step weighed alike (its batches come from no DataLoader)"
    counter = COUNTERS[weights.counter]
    if weights.weighing is Weighing.SUM:
        count = facts.get("processes", 1)
        shared = f", and divided by {count}: its processes average their gradients" if count > 1 else ""
        return f"batches added, the loss being a sum{shared}"
    what = "steps" if weights.weighing is Weighing.STEP else "batches"
    said = f"{what} weighted by {counter}"
    if facts["batches_a_step"] > 1 and weights.weighing is Weighing.MEAN:
        said += f", {facts['batches_a_step']} batches to a step"
    return said
