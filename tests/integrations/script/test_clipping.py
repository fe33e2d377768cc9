"""What a traced script's clipping did: the norm before it, and the factor."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.integrations.script.script_runs import TRACE, run
from tvgrad import Run
from tvgrad.integrations.script.clipping import Clipping, clip_facts, largest_coordinate
from tvgrad.store.batch_norms import batch_norms

Write = Callable[[str], list[str]]


def parameters() -> list[nn.Parameter]:
    listed = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    for parameter in listed:
        parameter.grad = torch.ones(2)
    return listed


def call(listed: list[nn.Parameter], *, euclidean: bool = True, unscaled: bool = False) -> Clipping:
    return Clipping(listed, torch.tensor(4.0), 1.0, euclidean, unscaled)


def test_the_facts_of_one_call_for_all_gradients() -> None:
    listed = parameters()
    held = {id(parameter): parameter for parameter in listed}
    factor = {"clip_factor": pytest.approx(0.25, rel=1e-6)}
    assert clip_facts([], held, scaled=False) == {}
    assert clip_facts([call(listed)], held, scaled=False) == {**factor, "gradient_norm_before_clipping": 4.0}
    assert clip_facts([call(listed, unscaled=True)], held, scaled=True)["gradient_norm_before_clipping"] == 4.0
    assert clip_facts([call(listed)], held, scaled=True) == factor  # the norm is one of scaled gradients
    assert clip_facts([call(listed, euclidean=False)], held, scaled=False) == factor
    assert clip_facts([call(listed)], {id(listed[0]): listed[0]}, scaled=False) == factor  # and of others' gradients


def test_parts_that_were_clipped_apart_have_no_one_factor() -> None:
    listed = parameters()
    held = {id(parameter): parameter for parameter in listed}
    assert clip_facts([call(listed[:1]), call(listed[1:])], held, scaled=False) == {"clipped_in_parts": 2}
    assert clip_facts([call(listed[:2])], held, scaled=False) == {"clipped_in_parts": 1}
    listed[2].grad = None
    assert clip_facts([call(listed[:2])], held, scaled=False)["gradient_norm_before_clipping"] == 4.0


def test_coordinates_that_were_clipped_by_value() -> None:
    listed = parameters()
    held = {id(parameter): parameter for parameter in listed}
    one, harmless = (Clipping(listed, torch.tensor(size), 0.5, False, False, True) for size in (4.0, 0.25))
    assert clip_facts([one], held, scaled=False) == {"clipped_in_parts": 1, "clip_value": 0.5}
    assert clip_facts([call(listed), one], held, scaled=False) == {"clipped_in_parts": 2, "clip_value": 0.5}
    assert clip_facts([harmless], held, scaled=False) == {}
    assert clip_facts([harmless, call(listed)], held, scaled=False)["gradient_norm_before_clipping"] == 4.0
    listed[1].grad = torch.tensor([-3.0, 2.0])
    assert float(largest_coordinate(listed)) == 3.0
    assert float(largest_coordinate([nn.Parameter(torch.ones(2))])) == 0.0


def test_a_script_that_clips_values(write: Write, tmp_path: Path) -> None:
    content = """
for a, b in loader:
    optimizer.zero_grad()
    nn.functional.mse_loss(model(a), b).backward()
    print(max(p.grad.abs().max().item() for p in model.parameters()))
    nn.utils.clip_grad_value_(model.parameters(), 1e-3)
    optimizer.step()
"""
    traced = run([*TRACE, "--out", str(tmp_path / "run"), "--", *write(content)])
    steps = Run.open(tmp_path / "run").steps()
    assert [float(line) > 1e-3 for line in traced.stdout.split()] == [True] * 4
    assert steps["clip_value"].tolist() == [1e-3] * 4
    assert steps["clip_factor"].isna().all()


@pytest.mark.parametrize("scaled", [False, True])
def test_a_script_that_clips(write: Write, tmp_path: Path, scaled: bool) -> None:
    content = f"""
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled={scaled})
for epoch in range(2):
    for a, b in loader:
        optimizer.zero_grad()
        scaler.scale(nn.functional.mse_loss(model(a), b)).backward()
        scaler.unscale_(optimizer)
        print(nn.utils.clip_grad_norm_(model.parameters(), 0.3).item())
        scaler.step(optimizer)
        scaler.update()
"""
    traced = run([*TRACE, "--out", str(tmp_path / "run"), "--", *write(content)])
    truth = [float(line) for line in traced.stdout.split()]
    assert len(truth) == 8
    record = Run.open(tmp_path / "run")
    assert record.steps()["gradient_norm_before_clipping"].tolist() == truth
    for epoch in (1, 2):
        norms = truth[4 * epoch - 4 : 4 * epoch]
        consumed = [norm * min(1.0, 0.3 / (norm + 1e-6)) for norm in norms]
        assert batch_norms(record, epoch) == pytest.approx((math.fsum(norms) / 4, math.fsum(consumed) / 4))
