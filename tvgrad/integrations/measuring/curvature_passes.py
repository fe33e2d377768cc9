"""curvature_passes: Hessian-vector products of a script's loss, by central differences of measured gradients.

The Hessian at theta_0 times a vector v is `(g(theta_0 + h v) - g(theta_0 - h v)) / 2h` up to third order in h: two
measuring passes, with the same random numbers, so that noise of the script's own (dropout) is the same in both.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tvgrad.files.writing import write_tensors
from tvgrad.integrations.measuring.explain_passes import ScriptSums
from tvgrad.integrations.measuring.measure import NARROW, script_options, seconds_to_wait
from tvgrad.integrations.measuring.pass_options import PassOptions
from tvgrad.integrations.measuring.passes import run_pass
from tvgrad.numerics.floats import unit_roundoff
from tvgrad.record.step_plan import ScriptSum, StepPlan
from tvgrad.store.measured import measured_at
from tvgrad.store.run import Run
from tvgrad.update_rules.grouped import UNLIKE, weighs_alike
from tvgrad.update_rules.rules import rule_from_dict
from tvgrad.vectors.algebra import combination, difference, zeros_like
from tvgrad.vectors.parameters import Weights, norm
from tvgrad.wording import percent


@dataclass(frozen=True)
class Curvatures:
    """Products of the full-batch Hessian at theta_0.

    Attributes:
        products: epoch -> the product with the epoch's weighted displacement, an estimate.
        sentences: how good they are, or why there are none.
    """

    products: dict[int, Weights]
    sentences: tuple[str, ...]


def curvature_passes(
    run: Run,
    command: Sequence[str],
    plan: StepPlan,
    found: ScriptSums,
    epochs: Sequence[int],
    *,
    model: str | None = None,
    steps_per_epoch: int | None = None,
    patience: float | None = None,
) -> Curvatures:
    """Start a script twice for each epoch, at weights on both sides of theta_0.

    Args:
        run: the run, with the full-batch gradient at theta_0.
        command: as the user gives it.
        plan: which sums were wanted.
        found: those sums.
        epochs: for which a product is wanted.
        model: the model's name, where several have the run's parameters.
        steps_per_epoch: optimizer steps in an epoch; by default as recorded.
        patience: seconds until the command's first backward pass.

    Returns:
        The products.

    Raises:
        TvgradError: a start gave no gradient.
    """  # noqa: DOC502 - raised by run_pass
    start = run.weights(0)
    if any(str(tensor.dtype).removeprefix("torch.") in NARROW for tensor in start.values()):
        return Curvatures({}, ("the weights are too narrow for differences of gradients: curvature has no row",))
    if not weighs_alike(rule_from_dict(plan.rule), plan.ends[-1]):
        return Curvatures({}, (UNLIKE,))
    options, wait = script_options(run, command, steps_per_epoch), seconds_to_wait(run, patience)
    how = measured_at(run, 0) or {"weighing": "mean", "counter": 0}
    products, sentences = {}, []
    folder = Path(tempfile.mkdtemp(prefix="tvgrad-"))

    def gradient_at(vector: Weights, step: float) -> Weights:
        shift = folder / "shift.safetensors"
        write_tensors(combination((step, vector)), shift, max_shard_bytes=2**62)
        told = PassOptions(
            run=options.out,
            number=0,
            parent=os.getpid(),
            model=model or run.info.get("model"),
            weighing=how["weighing"],
            counter=how["counter"],
            shift=str(shift),
        )
        return run_pass(options, told, wait).gradient

    try:
        for epoch in epochs:
            vector = found.trained[epoch][ScriptSum.DISPLACEMENT]
            if not norm(vector):  # one step: no gradient was taken anywhere but at theta_0
                products[epoch] = zeros_like(vector)
                continue
            step = _step(start, vector, plan.total(epoch), getattr(torch, found.dtype))
            after, before = gradient_at(vector, step), gradient_at(vector, -step)
            products[epoch] = combination((0.5 / step, after), (-0.5 / step, before))
            sentences.append(_sentence(epoch, after, before, run.gradient(0)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Curvatures(products, tuple(sentences))


def _step(start: Weights, vector: Weights, total: float, dtype: torch.dtype) -> float:
    """Choose how far to go along a displacement."""
    # The error of a central difference grows with h^2 and its rounding with u / h, so that h of the cube root of u, on
    # the scale of the weights, keeps both small. Where gradients are computed in a narrow format that is far: then the
    # mean displacement of the training itself, vector / total, says what a small step is.
    if dtype.itemsize < 4 or not norm(start):
        return 1.0 / total
    step: float = unit_roundoff(dtype) ** (1 / 3) * norm(start) / norm(vector)
    return step


def _sentence(epoch: int, after: Weights, before: Weights, middle: Weights) -> str:
    """How far the differences on the two sides of theta_0 are apart, relative to the whole."""
    whole = difference(after, before)
    bend = combination((1.0, after), (1.0, before), (-2.0, middle))
    apart = percent(2 * norm(bend) / norm(whole)) if norm(whole) else "not known by how much"
    return (
        f"curvature of epoch {epoch} is an estimate, by a central difference of two passes at theta_0 +- h v; the "
        f"differences on its two sides are {apart} apart"
    )
