"""curvature_passes: Hessian-vector products of a script's loss, by central differences of measured gradients.

The Hessian at theta_0 times a vector v is `(g(theta_0 + h v) - g(theta_0 - h v)) / 2h` up to third order in h: two
measuring passes, with the same random numbers, so that noise of the script's own (dropout) is the same in both. Half as
dear, and right up to second order only, is `(g(theta_0 + h v) - g(theta_0)) / h` with the gradient that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tvgrad.integrations.measuring.explain_passes import ScriptSums
from tvgrad.integrations.measuring.measure import NARROW
from tvgrad.integrations.measuring.starts import Starts
from tvgrad.numerics.floats import unit_roundoff
from tvgrad.record.step_plan import ScriptSum, StepPlan
from tvgrad.store.measured import measured_at
from tvgrad.update_rules.grouped import UNLIKE, weighs_alike
from tvgrad.update_rules.rules import rule_from_dict
from tvgrad.vectors.lazy import LazyCombination
from tvgrad.vectors.parameters import norm
from tvgrad.wording import percent

Vector = Mapping[str, torch.Tensor]

ONE_SIDED = (
    "by the difference of one pass at theta_0 + h v to g_0; how far it is off is not known: without --one-sided a pass "
    "on the other side tells"
)


@dataclass(frozen=True)
class Curvatures:
    """Products of the full-batch Hessian at theta_0.

    Attributes:
        products: epoch -> the product with the epoch's weighted displacement, an estimate.
        sentences: how good they are, or why there are none.
    """

    products: dict[int, Vector]
    sentences: tuple[str, ...]


def curvature_passes(
    starts: Starts, plan: StepPlan, found: ScriptSums, epochs: Sequence[int], *, one_sided: bool = False
) -> Curvatures:
    """Start a script twice for each epoch, at weights on both sides of theta_0; or once, on one side.

    Args:
        starts: of the command, for the run, with the full-batch gradient at theta_0.
        plan: which sums were wanted.
        found: those sums.
        epochs: for which a product is wanted.
        one_sided: leave the pass at theta_0 - h v out.

    Returns:
        The products.

    Raises:
        TvgradError: a start gave no gradient.
    """  # noqa: DOC502 - raised by run_pass
    run, start = starts.run, starts.run.weights(0)
    if any(str(tensor.dtype).removeprefix("torch.") in NARROW for tensor in start.values()):
        return Curvatures({}, ("the weights are too narrow for differences of gradients: curvature has no row",))
    if not weighs_alike(rule_from_dict(plan.rule), plan.ends[-1]):
        return Curvatures({}, (UNLIKE,))
    how = measured_at(run, 0) or {"weighing": "mean", "counter": 0}
    products, sentences, size = dict[int, Vector](), [], norm(start)
    del start  # it is not needed while the command runs
    for epoch in epochs:
        vector = found.trained[epoch][ScriptSum.DISPLACEMENT]
        length = norm(vector)
        if not length:  # one step: no gradient was taken anywhere but at theta_0
            products[epoch] = LazyCombination((1.0, vector))
            continue
        step = _step(size, length, plan.total(epoch), getattr(torch, found.dtype), 1 / 2 if one_sided else 1 / 3)
        where = str(vector.path)
        after, *before = (
            starts.pass_at(0, weighing=how["weighing"], counter=how["counter"], shift=where, along=along).gradient
            for along in ((step,) if one_sided else (step, -step))
        )
        if before:
            products[epoch] = LazyCombination((0.5 / step, after), (-0.5 / step, before[0]))
            sentences.append(_sentence(epoch, after, before[0], run.gradient(0)))
        else:
            products[epoch] = LazyCombination((1 / step, after), (-1 / step, run.gradient(0)))
            sentences.append(f"curvature of epoch {epoch} is an estimate, {ONE_SIDED}")
    return Curvatures(products, tuple(sentences))


def _step(size: float, length: float, total: float, dtype: torch.dtype, power: float) -> float:
    """Choose how far to go along a displacement of that length, from weights of that size."""
    # The error of a central difference grows with h^2 and its rounding with u / h, so that h of the cube root of u, on
    # the scale of the weights, keeps both small; that of a one-sided one grows with h, which takes the square root.
    # Where gradients are computed in a narrow format that is far: then the mean displacement of the training itself,
    # vector / total, says what a small step is.
    if dtype.itemsize < 4 or not size:
        return 1.0 / total
    step: float = unit_roundoff(dtype) ** power * size / length
    return step


def _sentence(epoch: int, after: Vector, before: Vector, middle: Vector) -> str:
    """How far the differences on the two sides of theta_0 are apart, relative to the whole."""
    whole = norm(LazyCombination((1.0, after), (-1.0, before)))
    bend = norm(LazyCombination((1.0, after), (1.0, before), (-2.0, middle)))
    apart = percent(2 * bend / whole) if whole else "not known by how much"
    return (
        f"curvature of epoch {epoch} is an estimate, by a central difference of two passes at theta_0 +- h v; the "
        f"differences on its two sides are {apart} apart"
    )
