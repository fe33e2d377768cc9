"""How two runs relate: every number against plain arithmetic on the files, and the sentence on planted cases."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy import stats
from torch import nn

from tests.traced_runs import Tampered, Traced
from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import Recipe
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.report.columns import COLUMNS
from tvgrad.report.relation import CHANCE, LEVEL, relate_runs
from tvgrad.store.run import Run
from tvgrad.vectors.parameters import Weights


def flat(run: Run, folder: str, epoch: int, group: str = "") -> NDArray[np.float64]:
    content = load_file(run.root / folder / f"epoch-{epoch:04d}.safetensors")
    return np.concatenate([content[name].double().numpy().ravel() for name in sorted(content) if group in name])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_interference_is_its_definition(traced: Traced, dtype: str) -> None:
    left, right = traced("low", dtype=dtype), traced("rotated", dtype=dtype, optimizer="adam", lr=1e-3)
    table = relate_runs(left, right).table
    assert list(table.columns) == [*COLUMNS["cross_task"], "interference_on_a", "interference_on_b"]
    rows = table.set_index(["epoch", "group"])
    for epoch in (1, 2, 3):
        for group in ("all", "encoder.0", "encoder.2"):
            part = "" if group == "all" else group
            tau = {run: flat(run, "weights", epoch, part) - flat(run, "weights", 0, part) for run in (left, right)}
            for own, other, column in ((left, right, "interference_on_a"), (right, left, "interference_on_b")):
                gradient = flat(own, "gradients", 0, part)
                share = -(gradient @ tau[other]) / (gradient @ tau[own])
                assert rows.loc[(epoch, group), column] == pytest.approx(share, rel=1e-7, abs=1e-10), (epoch, group)
    assert rows.loc[0, ["interference_on_a", "interference_on_b"]].isna().all(axis=None)


def test_interference_is_the_change_of_the_loss(traced: Traced, digits: dict[str, Recipe]) -> None:
    """Moved a little along each task vector, the loss of a task changes in that proportion."""
    runs = traced("inverted", dtype="float64"), traced("rotated", dtype="float64")
    share = relate_runs(*runs).table.set_index(["epoch", "group"]).loc[(3, "all"), "interference_on_a"]
    objective = prepare(digits["inverted"], TraceOptions(dtype="float64", chunk_size=1000)).objective
    start = runs[0].weights(0)

    def change(run: Run, size: float) -> float:
        moved = {name: start[name] + size * step for name, step in run.task_vector(3).items()}
        return objective.value(moved) - objective.value(start)

    # two sizes, extrapolated, so that the curvature of the loss drops out
    own, other = (4 * change(run, 1e-4) - change(run, 2e-4) for run in runs)
    assert -other / own == pytest.approx(share, rel=1e-4)


class Line(nn.Module):
    """Weights whose gradient at zero is minus `pull`, whatever the dimension."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ self.weight


def pulled(folder: Path, name: str, pull: torch.Tensor, **options: object) -> Run:
    data = pull.double().expand(4, -1).clone(), torch.zeros(4)
    recipe = Recipe(Line(len(pull)), lambda output, _: -output.mean(), data, name=name, lr=0.1, epochs=1)
    return trace(prepare(recipe, TraceOptions(chunk_size=4, **options)), folder / name)  # type: ignore[arg-type]


def test_the_sentence(tmp_path: Path) -> None:
    one = torch.ones(100)
    base = pulled(tmp_path, "base", one)
    against = torch.where(torch.arange(100) < 25, 1.0, -0.5)
    orthogonal = torch.where(torch.arange(100) % 2 == 0, 1.0, -1.0)
    chance = "chance among 100 coordinates stays within 0.3 for 99.7 % of pairs of independent random directions"
    assert relate_runs(base, pulled(tmp_path, "twice", 2 * one)).reading == (
        f"After epoch 1, the task vectors of base and twice point the same way (cosine 1.000; {chance}) and agree in "
        "100% of their signs; to first order, adding that of twice adds about 200% to the descent on base and adding "
        "that of base adds about 50% to the descent on twice."
    )
    share = -0.125 / 0.4375  # mean product with ones, over the mean square of `against`
    assert relate_runs(base, pulled(tmp_path, "against", against)).reading == (
        "After epoch 1, the task vectors of base and against are unrelated (cosine -0.189; "
        f"{chance}) and agree in 25% of their signs; to first order, adding that of against undoes about 12% of the "
        f"descent on base and adding that of base undoes about {-share:.0%} of the descent on against."
    )
    assert relate_runs(base, pulled(tmp_path, "opposite", -one)).reading.startswith(
        f"After epoch 1, the task vectors of base and opposite point against each other (cosine -1.000; {chance}) and "
        "agree in 0% of their signs; to first order, adding that of opposite undoes about 100% of the descent on base"
    )
    found = relate_runs(base, pulled(tmp_path, "across", orthogonal))
    assert found.epoch == 1
    assert found.reading.startswith("After epoch 1, the task vectors of base and across are unrelated (cosine 0.000")
    assert found.reading.endswith(
        "adding that of across leaves as it is the descent on base and adding that of base leaves as it is the descent "
        "on across."
    )


def test_a_small_cosine_is_no_common_way(tmp_path: Path) -> None:
    base = pulled(tmp_path, "base", torch.ones(10000))
    for sign, words in ((1, "lean towards each other"), (-1, "lean away from each other")):
        other = torch.where(torch.arange(10000) % 2 == 0, 1.0, -1.0) + sign * 0.06
        found = relate_runs(base, pulled(tmp_path, f"other{sign}", other)).reading
        assert (
            f"other{sign} {words} (cosine {sign * 0.06:.3f}; chance among 10,000 coordinates stays within 0.03 "
            in found
        )
    for cosine, words in ((0.49, "lean towards each other"), (0.51, "point the same way")):
        across = torch.where(torch.arange(10000) % 2 == 0, 1.0, -1.0)
        other = cosine + math.sqrt(1 - cosine**2) * across
        assert words in relate_runs(base, pulled(tmp_path, f"at{cosine}", other)).reading


@pytest.mark.parametrize("size", [10, 100, 10**4, 10**8])
def test_the_level_of_chance(size: int) -> None:
    """The squared cosine of independent directions follows a beta distribution."""
    within = stats.beta.cdf(min(CHANCE**2 / size, 1.0), 0.5, (size - 1) / 2)
    assert within >= float(LEVEL.split()[0]) / 100


def test_a_vector_that_is_zero(tmp_path: Path) -> None:
    still = relate_runs(pulled(tmp_path, "base", torch.ones(3)), pulled(tmp_path, "still", torch.zeros(3)))
    assert (
        still.reading == "After epoch 1, one of the task vectors of base and still is zero, so they have no relation."
    )


def test_without_gradients_the_sentence_ends_at_the_signs(tmp_path: Path) -> None:
    pair = [pulled(tmp_path, name, torch.ones(3), record=("epoch-gradients",)) for name in ("one", "two")]
    found = relate_runs(*pair)
    assert found.table[["interference_on_a", "interference_on_b"]].isna().all(axis=None)
    assert found.reading.endswith("and agree in 100% of their signs.")


def test_other_starts_are_told(traced: Traced, tampered: Tampered) -> None:
    def shifted(content: Weights) -> Weights:
        return {name: tensor + 1 for name, tensor in content.items()}

    moved = tampered(traced("low"), "weights", 0, shifted)
    ending = "; the two start from different weights, so that their task vectors cannot be added as they stand."
    assert relate_runs(moved, traced("rotated")).reading.endswith(ending)
    assert ending not in relate_runs(traced("low"), traced("rotated")).reading


def test_the_last_epoch_that_both_keep(traced: Traced, tmp_path: Path) -> None:
    assert relate_runs(traced("low", epochs=2), traced("rotated")).epoch == 2


def test_refusals(traced: Traced, tmp_path: Path) -> None:
    low = traced("low")
    copy = tmp_path / "again"
    shutil.copytree(low.root, copy)
    assert math.isclose(relate_runs(low, Run.open(copy)).table["cos_task_vectors"].iloc[-1], 1.0)  # a copy is a run
    with pytest.raises(TvgradError, match="was given twice: give two runs"):
        relate_runs(low, Run.open(low.root))
    steps = traced("rotated", record_at="steps:1,2")
    with pytest.raises(
        TvgradError, match=r"was recorded by epoch and .* by step: trace both with the same --record-at"
    ):
        relate_runs(low, steps)
    short = traced("rotated", epochs=5, keep="last:1")
    with pytest.raises(TvgradError, match="keep no epoch after 0 that both have: trace them to the same one"):
        relate_runs(low, short)
    with pytest.raises(TvgradError, match="are runs of different models"):
        relate_runs(low, pulled(tmp_path, "line", torch.ones(3)))
