"""Sums over steps against the plain sums in float64, and the memory that they take."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from tvgrad.record import spilled_sum, step_sums
from tvgrad.record.gradient_sum import FOLD
from tvgrad.record.spilled_sum import SpilledSum
from tvgrad.record.step_plan import ScriptSum, StepPlan
from tvgrad.record.step_sums import StepSums
from tvgrad.update_rules import SGD, Adam, AdamW, GroupedRule
from tvgrad.update_rules.grouped import AnyRule
from tvgrad.update_rules.rules import rule_from_dict
from tvgrad.vectors.algebra import BLOCK
from tvgrad.vectors.parameters import Weights

SHAPES = {"a": (5, 7), "b": (3,), "c": ()}
STEPS = 40


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def summed(rule: AnyRule, folder: Path | None, dtype: torch.dtype = torch.float32) -> StepSums:
    weights = {1: rule.momentum_weights(STEPS // 2).tolist(), 2: rule.momentum_weights(STEPS).tolist()}
    clips = tuple(1 / (1 + step % 3) for step in range(STEPS))
    plan = StepPlan.from_json(StepPlan(rule.to_dict(), (0, STEPS // 2, STEPS), clips, weights).to_json())
    assert rule_from_dict(plan.rule) == rule
    sums = StepSums(plan, drawn(0, dtype), folder=folder)
    for step in range(STEPS):
        sums.add_training_step(drawn(100 + step, dtype), drawn(200 + step, dtype))
        sums.end_training_step(drawn(201 + step, dtype))
    assert sums.complete
    return sums


RULES = [
    AdamW(0.1, weight_decay=0.5),
    Adam(0.1, weight_decay=0.2),
    SGD(0.1),
    GroupedRule((AdamW(0.1, weight_decay=0.5), AdamW(0.2, weight_decay=0.0)), (("a",), ("b", "c"))),
]


@pytest.mark.parametrize("rule", RULES, ids=["adamw", "adam", "sgd", "groups"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sums_are_those_of_the_formulas(
    rule: AnyRule, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_sums, "BLOCK", 4)
    monkeypatch.setattr(spilled_sum, "BLOCK", 4)
    found = summed(rule, tmp_path, dtype).sums
    parts = dict(zip(rule.members, rule.parts, strict=True)) if isinstance(rule, GroupedRule) else {tuple(SHAPES): rule}
    for names, part in parts.items():
        for epoch, count in ((1, STEPS // 2), (2, STEPS)):
            c = part.momentum_weights(count)
            # Of so many additions in float32: sixteen before a sum is emptied, all of one that stays.
            adds = {ScriptSum.DISPLACEMENT: count}
            for name in names:
                g = [drawn(100 + step, dtype)[name].double() for step in range(count)]
                moved = [drawn(200 + s, dtype)[name].double() - drawn(0, dtype)[name].double() for s in range(count)]
                expected = {
                    ScriptSum.CONSUMED: [w * one for w, one in zip(c, g, strict=True)],
                    ScriptSum.UNCLIPPED: [w * (1 + s % 3) * one for s, (w, one) in enumerate(zip(c, g, strict=True))],
                    ScriptSum.DISPLACEMENT: [w * one for w, one in zip(c, moved, strict=True)],
                }
                for what, terms in expected.items():
                    narrow = dtype == torch.float32 and (part.name != "sgd" or what is ScriptSum.DISPLACEMENT)
                    rounding = 2 * adds.get(what, FOLD) * 2.0**-24 if narrow else 2.0**-46
                    assert_near(found[epoch][what][name], terms, rounding)
                assert (ScriptSum.WITHOUT_DECAY in found[epoch]) == rule.decays
                if rule.decays and not part.coupled_decay:
                    without = found[epoch][ScriptSum.WITHOUT_DECAY][name] - found[epoch][ScriptSum.RULE][name]
                    start = drawn(0, dtype)[name].double()
                    decay = [part.rate(s) * part.decoupled_decay for s in range(count)]
                    terms = [sum(decay) * start, *(d * one for d, one in zip(decay, moved, strict=True))]
                    assert_near(without, terms, 2.0**-46 if dtype == torch.float64 else 2 * count * 2.0**-24)
                assert torch.equal(found[epoch][ScriptSum.AFTER][name], drawn(200 + count, dtype)[name])


def assert_near(found: torch.Tensor, terms: list[torch.Tensor], rounding: float) -> None:
    expected, size = sum(terms, torch.zeros(())), sum((one.abs() for one in terms), torch.zeros(()))
    assert bool(((found.double() - expected).abs() <= rounding * size + 1e-15).all())


def test_a_sum_of_float32_that_was_never_emptied_is_read_too(tmp_path: Path) -> None:
    total = SpilledSum(drawn(0), tmp_path / "never")
    total.add(drawn(1), {"a": 2.0})
    assert torch.equal(total["a"], 2 * drawn(1)["a"].double())
    assert not total["b"].any()
    assert not (tmp_path / "never").exists()


def test_a_training_by_adam_holds_ten_times_the_weights_beside_itself(tmp_path: Path) -> None:
    rule, size = AdamW(0.1), 1 << 20
    plan = StepPlan(rule.to_dict(), (0, 18), (0.5,) * 18, {1: rule.momentum_weights(18).tolist()})
    weights = {"w": torch.zeros(size)}
    before = storages()
    sums = StepSums(plan, weights, folder=tmp_path, keep=lambda epoch, what, content: content)  # noqa: ARG005
    for _ in range(18):
        sums.add_training_step(weights, weights)
    held = sum(nbytes for place, nbytes in storages().items() if place not in before)
    # The task vector and Adam's two averages in float64; two sums of gradients, displacements and decay in float32.
    assert held / (4 * size) == pytest.approx(10)


def storages() -> dict[int, int]:
    """Where the tensors of at least a block lie, and how many bytes each has."""
    gc.collect()
    found = [one.untyped_storage() for one in gc.get_objects() if type(one) is torch.Tensor and not one.is_meta]
    return {one.data_ptr(): one.nbytes() for one in found if one.nbytes() >= 4 * BLOCK}
