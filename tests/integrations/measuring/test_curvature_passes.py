"""Products with a script's Hessian by differences of gradients, of a loss whose derivatives are known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tvgrad
from tvgrad import Run
from tvgrad.files.lazy_weights import LazyWeights
from tvgrad.files.writing import write_tensors
from tvgrad.integrations.measuring.curvature_passes import curvature_passes
from tvgrad.record.step_plan import ScriptSum, StepPlan
from tvgrad.store.writer import RunWriter
from tvgrad.update_rules import SGD

CUBIC = 0.3


def gradient(theta: torch.Tensor) -> torch.Tensor:
    """Of the loss theta^2 + 0.1 theta^3, coordinate by coordinate."""
    return 2 * theta + CUBIC * theta**2


class Starts:
    """Stands for a command: its gradient at shifted weights, and the passes that were asked for."""

    def __init__(self, run: Run) -> None:
        self.run, self.asked = run, list[float]()

    def pass_at(self, number: int, *, shift: str, along: float, **_: Any) -> Any:
        self.asked.append(along)
        moved = self.run.weights(number)["weight"] + along * LazyWeights(Path(shift))["weight"]
        return SimpleNamespace(gradient={"weight": gradient(moved)})


@pytest.mark.parametrize("one_sided", [False, True])
def test_products_are_those_of_the_hessian(one_sided: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvgrad.Recorder(tmp_path / "run", model, optimizer):
        pass
    run = Run.open(tmp_path / "run")
    theta, vector = run.weights(0)["weight"], torch.randn(3, 4, dtype=torch.float64)
    writer = RunWriter.resume(run.root)
    writer.amend(0, {"gradient": {"weight": gradient(theta)}}, {})
    writer.close()
    path = write_tensors({"weight": vector}, tmp_path / "vector.safetensors")
    starts = Starts(Run.open(run.root))
    plan = StepPlan(SGD(0.1).to_dict(), (0, 2), (1.0, 1.0), {1: [0.1, 0.1]})
    found = SimpleNamespace(trained={1: {ScriptSum.DISPLACEMENT: LazyWeights(path)}}, dtype="float64")
    made = curvature_passes(starts, plan, found, [1], one_sided=one_sided)  # type: ignore[arg-type]
    truth = (2 + 2 * CUBIC * theta) * vector
    # The third derivative is constant: a central difference errs by rounding alone, a one-sided one by h v^2 times it.
    (first, *others), length = starts.asked, float(vector.norm())
    assert len(others) == (0 if one_sided else 1)
    error = abs(first) * CUBIC * float(vector.square().max()) if one_sided else 0.0
    rounding = 8 * 2.0**-53 * float(theta.norm() + length) / abs(first)
    off = (made.products[1]["weight"] - truth).abs().max()
    assert float(off) <= error + rounding
    assert float(off) <= (1e-6 if one_sided else 1e-8) * length
    assert ("how far it is off is not known" in made.sentences[0]) is one_sided
    assert ("two passes at theta_0 +- h v" in made.sentences[0]) is not one_sided
