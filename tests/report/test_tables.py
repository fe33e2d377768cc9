"""Every number of norms, directions and cross_task against plain arithmetic on the same files, in wider numbers."""

from __future__ import annotations

import csv
import itertools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

import tvgrad
from tests.traced_runs import Tampered, Traced
from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import Recipe
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.report.columns import COLUMNS
from tvgrad.report.tables import distinct_runs, run_names, run_tables
from tvgrad.store.run import Run

Vector = NDArray[np.longdouble]
Vectors = dict[tuple[str, int], dict[str, Vector]]

BLOCKS = {
    "encoder.0.bias": "encoder.0",
    "encoder.0.weight": "encoder.0",
    "encoder.2.bias": "encoder.2",
    "encoder.2.weight": "encoder.2",
}
CONTRACT = {
    "norms": "run, epoch, group, gradient_norm, task_vector_norm, displacement_norm, gradient_norm_share, "
    "epoch_gradient_norm, epoch_gradient_norm_share, mean_batch_gradient_norm, mean_batch_gradient_norm_share",
    "directions": "run, epoch, group, cos_task_vector_descent, cos_epoch_gradient_first, "
    "cos_task_vector_epoch_descent, cos_gradient_first, cos_task_vector_first, "
    "relative_residual",
    "equivalence": "run, rule, holds, worst_ratio_to_budget, frozen_share, gradient_relative_error, reason, "
    "gradient_holds, deviation, cosine, cause, trouble",
    "cross_task": "run_a, run_b, epoch, group, cos_task_vectors, cos_gradients, sign_agreement",
}


# The oracle ---------------------------------------------------------------------------------------


def vectors(run: Run, groups: dict[str, str]) -> Vectors:
    """(kind, epoch) -> group -> vector, straight from the files."""
    found: Vectors = {}
    for kind, folder in (("weights", "weights"), ("gradient", "gradients"), ("sum", "epoch_gradients")):
        for path in sorted((run.root / folder).glob("*.safetensors")):
            content = {name: tensor.double().numpy().ravel() for name, tensor in load_file(path).items()}
            assert set(content) == set(groups)
            parts = {
                group: np.concatenate([content[name] for name in sorted(content) if groups[name] == group])
                for group in set(groups.values())
            }
            parts["all"] = np.concatenate([content[name] for name in sorted(content)])
            point = int(path.stem.split("-")[1])
            # A sum is written at the end of its epoch and belongs to the beginning.
            found[kind, point - (kind == "sum")] = {g: v.astype(np.longdouble) for g, v in parts.items()}
    for epoch in [epoch for kind, epoch in list(found) if kind == "weights" and epoch > 0]:
        found["tau", epoch] = {g: v - found["weights", 0][g] for g, v in found["weights", epoch].items()}
    return found


def norm(vector: Vector | None) -> float:
    return np.nan if vector is None else float(np.sqrt(vector @ vector))


def cosine(left: Vector | None, right: Vector | None) -> float:
    if left is None or right is None:
        return np.nan
    return float(left @ right / np.sqrt((left @ left) * (right @ right)))


def naive_tables(run: Run, groups: dict[str, str], moved_from: dict[int, int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`moved_from`: epoch -> the epoch at which its displacement begins."""
    found = vectors(run, groups)
    epochs = sorted({epoch for kind, epoch in found if kind == "weights"})
    norms, directions = [], []
    for group in ["all", *dict.fromkeys(groups.values())]:

        def get(kind: str, epoch: int, group: str = group) -> Vector | None:
            return found[kind, epoch][group] if (kind, epoch) in found else None

        def moved(epoch: int, group: str = group) -> Vector | None:
            if epoch not in moved_from:
                return None
            return found["weights", epoch][group] - found["weights", moved_from[epoch]][group]

        before_last = [norm(get("gradient", epoch)) for epoch in range(epochs[-1])]
        first, first_sum = get("gradient", 0), get("sum", 0)
        sums = {epoch: norm(get("sum", epoch)) for kind, epoch in found if kind == "sum"}
        for epoch in epochs:
            tau, gradient = get("tau", epoch), get("gradient", epoch)
            share = norm(gradient) / sum(before_last) if epoch < epochs[-1] else np.nan
            total = sums.get(epoch, np.nan)
            norms.append((
                *(epoch, group, norm(gradient), norm(tau) if epoch else 0.0, norm(moved(epoch)), share, total),
                total / sum(sums.values()) if sums else np.nan,
            ))
            residual = np.nan
            if tau is not None and first is not None:
                residual = norm(tau - (tau @ first) / (first @ first) * first) / norm(tau)
            directions.append((
                epoch,
                group,
                -cosine(tau, first),
                cosine(get("sum", epoch), first_sum),
                -cosine(tau, first_sum),
                cosine(gradient, first),
                cosine(tau, get("tau", 1)),
                cosine(moved(epoch), moved(moved_from.get(epoch, -1))),
                residual,
            ))
    return (
        pd.DataFrame(norms, columns=list(COLUMNS["norms"][1:9])),
        pd.DataFrame(directions, columns=list(COLUMNS["directions"][1:])),
    )


def assert_numbers(found: pd.DataFrame, expected: pd.DataFrame, tolerance: float) -> None:
    keys = ["epoch", "group"]
    left = found.drop(columns="run").set_index(keys).sort_index()
    right = expected.set_index(keys).sort_index()
    assert left.index.equals(right.index)
    for column in right.columns:
        rel, absolute = (1e-6, 1e-9) if column == "relative_residual" else (tolerance, tolerance)
        if column.endswith("_norm"):
            absolute = 0.0
        np.testing.assert_allclose(left[column], right[column], rel, absolute, equal_nan=True, err_msg=column)


def consecutive(last: int) -> dict[int, int]:
    return {epoch: epoch - 1 for epoch in range(1, last + 1)}


# Numbers ------------------------------------------------------------------------------------------

TOLERANCES = [("float32", 1e-7), ("float64", 1e-12), ("bfloat16", 1e-7)]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("options", [{}, {"optimizer": "adam", "lr": 1e-3, "batch_size": 300}], ids=["gd", "adam"])
def test_norms_and_directions(traced: Traced, dtype: str, tolerance: float, options: dict[str, Any]) -> None:
    run = traced("rotated", dtype=dtype, epochs=4, **options)
    tables = run_tables([run]).tables
    norms, directions = naive_tables(run, BLOCKS, consecutive(4))
    assert set(tables["norms"]["run"]) == {"rotated"}
    assert_numbers(tables["norms"], norms, tolerance)
    assert_numbers(tables["directions"], directions, tolerance)


@pytest.mark.parametrize("pattern", [r"encoder\.(\d)", "bias|weight", "0.bias"])
def test_groups_of_ones_own(traced: Traced, pattern: str) -> None:
    groups = {
        r"encoder\.(\d)": {name: name[8] for name in BLOCKS},
        "bias|weight": {name: name.split(".")[-1] for name in BLOCKS},
        "0.bias": {name: "0.bias" if name == "encoder.0.bias" else "other" for name in BLOCKS},
    }[pattern]
    run = traced("rotated")
    tables = run_tables([run], pattern).tables
    norms, directions = naive_tables(run, groups, consecutive(3))
    assert_numbers(tables["norms"], norms, 1e-7)
    assert_numbers(tables["directions"], directions, 1e-7)


SUMS = {"optimizer": "sgd", "batch_size": 200, "epochs": 4}


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("record", [("epoch-gradients",), ("gradients", "epoch-gradients")])
def test_epoch_gradients_belong_to_the_epoch_that_begins(
    traced: Traced, dtype: str, tolerance: float, record: tuple[str, ...]
) -> None:
    run = traced("rotated", dtype=dtype, record=record, **SUMS)
    tables = run_tables([run]).tables
    norms, directions = naive_tables(run, BLOCKS, consecutive(4))
    assert_numbers(tables["norms"], norms, tolerance)
    assert_numbers(tables["directions"], directions, tolerance)
    first = tables["norms"].set_index(["group", "epoch"]).loc["all"]
    assert first["epoch_gradient_norm_share"][:4].sum() == pytest.approx(1.0, abs=1e-14)
    assert first["epoch_gradient_norm"].isna().tolist() == [False] * 4 + [True]
    whole = tables["directions"].set_index(["group", "epoch"]).loc["all"]
    assert whole["cos_task_vector_epoch_descent"].isna().tolist() == [True] + [False] * 4
    assert whole.loc[0, "cos_epoch_gradient_first"] == pytest.approx(1.0, abs=1e-7)
    if "gradients" not in record:
        assert first["gradient_norm"].isna().all()
        assert whole["cos_task_vector_descent"].isna().all()


def test_sums_over_steps_are_no_epoch_gradients(traced: Traced) -> None:
    options = {"optimizer": "sgd", "batch_size": 300, "record_at": "steps:2,3,5", "record": ("epoch-gradients",)}
    table = run_tables([traced("rotated", epochs=2, **options)]).tables["norms"]
    assert table["epoch_gradient_norm"].isna().all()


def test_shares_sum_to_one_before_the_last_epoch(traced: Traced) -> None:
    table = run_tables([traced("rotated"), traced("low")]).tables["norms"]
    for _, part in table.groupby(["run", "group"]):
        assert list(part["epoch"]) == [0, 1, 2, 3]
        assert part["gradient_norm_share"][:-1].sum() == pytest.approx(1.0, abs=1e-14)
        assert part["gradient_norm_share"].isna().tolist() == [False, False, False, True]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_cross_task(traced: Traced, dtype: str, tolerance: float) -> None:
    runs = [traced(task, dtype=dtype) for task in ("low", "rotated", "permuted")]
    table = run_tables(runs).tables["cross_task"].set_index(["run_a", "run_b", "epoch", "group"])
    found = [vectors(run, BLOCKS) for run in runs]
    rows = 0
    for (left, a), (right, b) in itertools.combinations(zip(runs, found, strict=True), 2):
        for epoch, group in itertools.product(range(4), ["all", "encoder.0", "encoder.2"]):
            row = table.loc[left.name, right.name, epoch, group]
            rows += 1
            gradients = cosine(a["gradient", epoch][group], b["gradient", epoch][group])
            np.testing.assert_allclose(row["cos_gradients"], gradients, tolerance, tolerance)
            if epoch == 0:
                assert row[["cos_task_vectors", "sign_agreement"]].isna().all()
                continue
            tau, other = a["tau", epoch][group], b["tau", epoch][group]
            np.testing.assert_allclose(row["cos_task_vectors"], cosine(tau, other), tolerance, tolerance)
            both = (tau != 0) & (other != 0)
            assert row["sign_agreement"] == pytest.approx(
                np.mean(np.sign(tau[both]) == np.sign(other[both])), abs=1e-15
            )
    assert len(table) == rows


def test_the_relative_residual_of_an_exact_step_is_small(traced: Traced) -> None:
    """The case that a Gram matrix alone gets wrong: a task vector that lies along the gradient but for rounding."""
    run = traced("rotated", epochs=4, dtype="float64")
    table = run_tables([run]).tables["directions"].set_index(["epoch", "group"])
    assert 0 < table.loc[(1, "all"), "relative_residual"] < 1e-12
    run = traced("rotated", epochs=4, dtype="float32")
    table = run_tables([run]).tables["directions"].set_index(["epoch", "group"])
    assert 0 < table.loc[(1, "all"), "relative_residual"] < 1e-3


# Runs with gaps -----------------------------------------------------------------------------------


def test_dropped_epochs(traced: Traced) -> None:
    run = traced("rotated", epochs=6, keep="epochs:0,2,4,5")
    tables = run_tables([run]).tables
    norms, directions = naive_tables(run, BLOCKS, {5: 4, 6: 5})
    assert_numbers(tables["norms"], norms, 1e-7)
    assert_numbers(tables["directions"], directions, 1e-7)
    assert sorted(set(tables["norms"]["epoch"])) == [0, 2, 4, 5, 6]
    assert tables["norms"]["gradient_norm_share"].isna().all()  # the sum over all epochs is not there
    assert tables["directions"].set_index(["epoch", "group"])["cos_successive_displacements"].notna().sum() == 3


def test_recorded_steps(traced: Traced) -> None:
    run = traced("rotated", epochs=2, optimizer="sgd", batch_size=300, record_at="steps:2,3,5")
    tables = run_tables([run]).tables
    norms, directions = naive_tables(run, BLOCKS, {2: 0, 3: 2, 5: 3})
    assert_numbers(tables["norms"], norms, 1e-7)
    assert_numbers(tables["directions"], directions, 1e-7)
    assert tables["norms"].query("epoch > 0")["displacement_norm"].notna().all()


def test_recorded_steps_without_gaps_have_shares(traced: Traced) -> None:
    run = traced("rotated", epochs=2, optimizer="sgd", batch_size=300, record_at="steps:1,2,3")
    table = run_tables([run]).tables["norms"].query("group == 'all'")
    assert table["gradient_norm_share"].sum() == pytest.approx(1.0, abs=1e-14)


def test_weights_alone(traced: Traced) -> None:
    run = traced("rotated", record=())
    tables = run_tables([run, traced("low")]).tables
    norms = tables["norms"].query("run == 'rotated'")
    assert norms["gradient_norm"].isna().all()
    assert norms["task_vector_norm"].notna().all()
    assert tables["cross_task"]["cos_gradients"].isna().all()
    assert tables["cross_task"].query("epoch > 0")["cos_task_vectors"].notna().all()
    assert list(tables["cross_task"]["epoch"].unique()) == [1, 2, 3]


def test_a_task_vector_of_zero_has_no_direction(traced: Traced, tampered: Tampered) -> None:
    run = traced("rotated")
    start = load_file(run.root / "weights/epoch-0000.safetensors")
    still = tampered(run, "weights", 1, lambda content: start)
    row = run_tables([still]).tables["directions"].query("epoch == 1 and group == 'all'").iloc[0]
    assert row[["cos_task_vector_descent", "cos_task_vector_first", "relative_residual"]].isna().all()
    assert run_tables([still]).tables["norms"].query("epoch == 1")["task_vector_norm"].eq(0.0).all()


# Columns, names, refusals -------------------------------------------------------------------------


def test_columns_are_those_that_scripts_rely_on(traced: Traced) -> None:
    tables = run_tables([traced("rotated"), traced("low")]).tables
    for name, columns in CONTRACT.items():
        present = list(tables[name].columns)
        assert present == list(COLUMNS[name])
        assert [column for column in present if column in columns.split(", ")] == columns.split(", ")


def test_equivalence_has_one_row_a_verdict(traced: Traced) -> None:
    table = run_tables([traced("rotated"), traced("rotated", optimizer="adam", lr=1e-3)]).tables["equivalence"]
    assert list(table["holds"]) == ["exact", "does not apply", "exact"]
    assert table["run"].nunique() == 2


def test_runs_of_one_name_are_told_apart(traced: Traced) -> None:
    runs = [traced("rotated"), traced("rotated", dtype="float64"), traced("low")]
    names = run_names(runs)
    assert len(set(names)) == 3
    assert all("/" in name for name in names)
    assert set(run_tables(runs).tables["norms"]["run"]) == set(names)


def test_a_run_given_twice_is_one_run(traced: Traced) -> None:
    run = traced("rotated")
    again = Run.open(run.root / ".." / run.root.name)
    other = traced("low")
    assert distinct_runs([run, other, again]) == [run, other]
    assert set(run_tables([run, again]).tables["norms"]["run"]) == {"rotated"}


def test_no_runs_and_runs_of_two_models_are_refused(traced: Traced, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(TvgradError, match="there is no run to report on"):
        run_tables([])
    inputs, targets = np.eye(4, dtype=np.float32), np.arange(4)
    recipe = Recipe(nn.Linear(4, 4), nn.CrossEntropyLoss(), (inputs, targets), name="other")
    other = trace(prepare(recipe, TraceOptions(epochs=1)), tmp_path_factory.mktemp("other") / "run")
    with pytest.raises(TvgradError, match=r"are runs of different models \(.*\): report on each by itself"):
        run_tables([traced("rotated"), other])


def test_a_pattern_that_is_none(traced: Traced) -> None:
    with pytest.raises(tvgrad.TvgradError, match="is not a regular expression"):
        run_tables([traced("rotated")], "encoder(")


def test_progress_ends_at_the_total(traced: Traced) -> None:
    seen: list[tuple[int, int]] = []
    run_tables([traced("rotated")], progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_mean_batch_gradient_norms(traced: Traced) -> None:
    options = {"optimizer": "sgd", "batch_size": 200, "record": ("gradients", "epoch-gradients"), "epochs": 3}
    run = traced("rotated", **options)
    table = run_tables([run]).tables["norms"].set_index(["group", "epoch"])
    means = []
    for epoch in range(3):
        with (run.root / f"steps/epoch-{epoch + 1:04d}.csv").open() as handle:
            norms = [float(row["gradient_norm"]) for row in csv.DictReader(handle)]
        assert len(norms) == 5
        means.append(sum(norms) / 5)
        assert table.loc[("all", epoch), "mean_batch_gradient_norm"] == pytest.approx(means[-1], rel=1e-14)
    for epoch in range(3):
        share = table.loc[("all", epoch), "mean_batch_gradient_norm_share"]
        assert share == pytest.approx(means[epoch] / sum(means), rel=1e-14)
    assert np.isnan(table.loc[("all", 3), "mean_batch_gradient_norm_share"])
    plain = run_tables([traced("rotated")]).tables["norms"]
    assert plain["mean_batch_gradient_norm"].isna().all()


def test_groups_stand_in_the_order_of_the_model(tmp_path: Path) -> None:
    names = ("zeta", "alpha", "mu")
    model = nn.Sequential(OrderedDict((name, nn.Linear(3, 3)) for name in names))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvgrad.Recorder(tmp_path / "run", model, optimizer) as recorder:
        model(torch.ones(2, 3)).square().mean().backward()
        optimizer.step()
        recorder.end_epoch()
    table = run_tables([Run.open(tmp_path / "run")]).tables["norms"]
    assert list(dict.fromkeys(table["group"])) == ["all", *names]
