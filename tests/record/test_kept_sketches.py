"""Runs that keep sketches of their gradients, compared with the same runs with whole gradients."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from tvgrad.cli.main import main

import tvgrad
from tests.integrations.script.script_runs import run as run_command
from tests.integrations.script.script_runs import warm, warm_tvgrad
from tvgrad.errors import DamagedRun, TvgradError
from tvgrad.problem.recipe import Recipe
from tvgrad.record.options import TraceOptions
from tvgrad.record.trace_cost import trace_cost
from tvgrad.record.training_loop import prepare, trace
from tvgrad.report.tables import RunTables, run_tables
from tvgrad.sketching.sketches import Sketch
from tvgrad.store.kept_gradients import KeptGradients
from tvgrad.store.run import Run
from tvgrad.theory.sketched_step import sketched_deviation
from tvgrad.theory.verdicts import headline, verdict_rows

WIDTH = 512
SKETCH = f"sketch:{WIDTH}"
BOTH = ("gradients", "epoch-gradients")


@pytest.fixture
def wide(make_recipe: Callable[..., Recipe]) -> Recipe:
    """A recipe of 9,603 parameters: nineteen blocks of a sketch."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(5, 60), nn.Tanh(), nn.Linear(60, 150), nn.Tanh(), nn.Linear(150, 3))
    recipe = make_recipe(model)
    for parameter in recipe.model.parameters():
        parameter.requires_grad_()
    return recipe


@pytest.fixture
def runs(wide: Recipe, traced: Callable[..., Run], tmp_path: Path) -> tuple[Run, Run]:
    """The same mini-batch training, with whole gradients and with sketches."""
    options = {"optimizer": "sgd", "batch_size": 6, "record": BOTH}
    whole = traced(tmp_path / "whole", wide, **options)
    return whole, traced(tmp_path / "sketched", wide, keep_gradients=SKETCH, **options)


def tables(*runs: Run) -> RunTables:
    return run_tables(runs)


def test_norms_are_exact_and_cosines_within_their_intervals(runs: tuple[Run, Run]) -> None:
    whole, sketched = (tables(run).tables for run in runs)
    assert "sketches" not in whole
    columns = ["gradient_norm", "gradient_norm_share", "epoch_gradient_norm", "task_vector_norm"]
    for column in columns:
        exact, kept = whole["norms"][column], sketched["norms"][column]
        assert exact.notna().any()
        assert kept.to_numpy() == pytest.approx(exact.to_numpy(), rel=1e-6, nan_ok=True), column
    assert set(sketched["norms"]["group"]) == {"all", "0", "2", "4"}
    assert sketched["directions"]["cos_gradient_first"].isna().all()
    exact = {
        (row["epoch"], row["group"], name): row[name]
        for table in ("norms", "directions")
        for row in whole[table].to_dict("records")
        for name in row
    }
    found = sketched["sketches"].to_dict("records")
    quantities = {row["quantity"] for row in found}
    assert quantities == {
        "gradient_norm", "epoch_gradient_norm", "cos_gradient_first", "cos_epoch_gradient_first",
        "cos_task_vector_descent", "cos_task_vector_epoch_descent",
    }  # fmt: skip
    assert len(found) == 4 * (4 + 4 + 3 + 3 + 3 + 3)
    assert list(dict.fromkeys(row["group"] for row in found)) == ["all", "0", "2", "4"]
    for row in found:
        slack = 1e-6 * max(1, row["estimate"])  # the other run's gradients were rounded to float32
        assert row["low"] - slack <= exact[row["epoch"], row["group"], row["quantity"]] <= row["high"] + slack, row
        if row["group"] in {"0", "4"}:  # tensors of few entries, which are kept
            assert row["high"] - row["low"] < 1e-11 * max(1, row["estimate"])
        assert row["low"] <= row["estimate"] <= row["high"]
        assert row["high"] - row["low"] < 0.3 * max(1, row["estimate"])


def test_a_sketch_is_of_the_gradient(runs: tuple[Run, Run]) -> None:
    whole, sketched = runs
    assert sketched.info["keep_gradients"] == SKETCH
    assert "keep_gradients" not in whole.info
    assert not sketched.having("gradient")
    for epoch in whole.having("gradient"):
        assert torch.equal(sketched.gradient_sketch(epoch).values, tvgrad.sketch(whole.gradient(epoch), WIDTH).values)
    for epoch in whole.having("epoch_gradient"):
        made = tvgrad.sketch(whole.epoch_gradient(epoch), WIDTH)
        assert torch.allclose(sketched.gradient_sketch(epoch, "epoch_gradient").values, made.values, rtol=0, atol=1e-6)
    size = {run: sum(entry.nbytes for point in run.points for entry in point.files.values()) for run in runs}
    assert size[sketched] < 0.7 * size[whole]


def test_two_runs_and_a_run_with_whole_gradients(
    runs: tuple[Run, Run], wide: Recipe, traced: Callable[..., Run], tmp_path: Path
) -> None:
    whole, sketched = runs
    other = traced(tmp_path / "other", wide, lr=0.05, keep_gradients=SKETCH)
    found = tables(whole, sketched, other).tables["sketches"]
    pairs = found[found["quantity"] == "cos_gradients"]
    assert len(pairs) == 3 * 4 * 4
    exact = tables(whole, traced(tmp_path / "exact", wide, lr=0.05)).tables["cross_task"]
    for row in pairs[pairs["run"].str.contains("whole") & pairs["other"].str.contains("other")].to_dict("records"):
        truth = exact[(exact["epoch"] == row["epoch"]) & (exact["group"] == row["group"])]["cos_gradients"].item()
        assert row["low"] - 1e-6 <= truth <= row["high"] + 1e-6, row
    assert other.info["keep_gradients"] == SKETCH
    same = pairs[pairs["other"].str.contains("sketched") & pairs["run"].str.contains("whole")]
    assert (same["estimate"] > 1 - 1e-6).all()
    third = traced(tmp_path / "third", wide, keep_gradients="sketch:1024")
    found = tables(sketched, third).tables["sketches"]
    assert not (found["quantity"] == "cos_gradients").any()  # two projections


def test_verify_says_what_it_can(
    wide: Recipe, traced: Callable[..., Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, sketched = traced(tmp_path / "whole", wide), traced(tmp_path / "run", wide, keep_gradients=SKETCH)
    assert not sketched.problems()
    (row,) = verdict_rows(sketched)
    assert (row.holds, row.gradient_holds) == ("does not apply", "unknown")
    assert (
        row.reason == "of the gradient that the step consumed only a sketch was kept: trace with --keep-gradients all"
    )
    assert row.cause.startswith("of the full-batch gradient at the pretrained weights a sketch was kept: by estimate ")
    assert "only a sketch was kept" in headline([row])
    found = sketched_deviation(sketched, 0.2)  # twice the rate: the task vector is half as long
    assert found is not None
    assert found[0].low <= 0.5 <= found[0].high
    assert found[1].high > 1 - 1e-9
    assert verdict_rows(whole)[0].holds == "exact"
    main(["verify", str(sketched.root)])
    assert "a sketch was kept" in capsys.readouterr().out
    page = tmp_path / "report"
    main(["report", str(sketched.root), "--out", str(page), "--format", "html"])
    assert "Estimates from sketches of gradients" in (page / "report.html").read_text(encoding="utf-8")


def test_what_needs_whole_gradients_says_so(wide: Recipe, traced: Callable[..., Run], tmp_path: Path) -> None:
    run = traced(tmp_path / "run", wide, keep_gradients=SKETCH)
    with pytest.raises(TvgradError, match=r"keeps sketches of its gradients only.*again with --keep-gradients all"):
        run.gradient(0)
    with pytest.raises(TvgradError, match="has no gradient_sketches at epoch 0"):
        traced(tmp_path / "whole", wide).gradient_sketch(0)


def test_a_resume_goes_on_with_sketches(
    wide: Recipe, traced: Callable[..., Run], tmp_path: Path, bits: Callable[[Path], dict[str, bytes]]
) -> None:
    straight = traced(tmp_path / "straight", wide, keep_gradients=SKETCH, epochs=3)
    traced(tmp_path / "run", wide, keep_gradients=SKETCH, epochs=2)
    with pytest.raises(TvgradError, match="another choice of how gradients are kept"):
        traced(tmp_path / "run", wide, epochs=3, resume=True)
    resumed = traced(tmp_path / "run", wide, keep_gradients=SKETCH, epochs=3, resume=True)
    assert resumed.having("gradient_sketch") == [0, 1, 2, 3]
    assert bits(tmp_path / "run") == bits(straight.root)


def test_sketches_stay_where_tensors_are_dropped(wide: Recipe, traced: Callable[..., Run], tmp_path: Path) -> None:
    run = traced(tmp_path / "run", wide, keep_gradients=SKETCH, epochs=4, keep="last:1")
    assert run.epochs == [0, 4]
    assert run.having("gradient_sketch") == [0, 1, 2, 3, 4]
    assert not run.problems()
    found = tables(run).tables
    assert (found["sketches"]["quantity"] == "cos_gradient_first").sum() == 5 * 4
    assert found["norms"]["gradient_norm"].notna().all()


def damaged(run: Run, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> list[str]:
    """The problems of a copy of the run whose first sketch was changed, and whose checksum fits the change."""
    from safetensors.torch import load_file, save_file

    from tvgrad.files.atomic import sha256_of

    shutil.copytree(run.root, folder)
    path = folder / "gradient_sketches" / "epoch-0000.safetensors"
    content = load_file(path)
    change(content)
    save_file(content, path)
    manifest = json.loads((folder / "run.json").read_text())
    entry = manifest["points"][0]["files"]["gradient_sketch"]
    entry["parts"] = [[entry["path"], sha256_of(path), path.stat().st_size]]
    (folder / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedRun):
        Run.open(folder).gradient_sketch(0)
    return Run.open(folder).problems()


def test_damage_is_found(wide: Recipe, traced: Callable[..., Run], tmp_path: Path) -> None:
    run = traced(tmp_path / "run", wide, keep_gradients=SKETCH)
    changes: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
        "contradicts itself (the norm is": lambda held: held["sketch"].mul_(3),
        "contradicts itself (a sum of squares is negative)": lambda held: held["squares"][0].neg_(),
        "holds no sketch of this run's gradients": lambda held: held["projection"].add_(1),
        "holds no sketch of this run's gradients: ": lambda held: held.pop("squares"),
        "holds no sketch of this run's gradients: restore": lambda held: held.update(sketch=held["sketch"].float()),
        "gradients: restore it or": lambda held: held.update(sketch=held["sketch"].repeat(2) / 2**0.5),
        "contradicts itself (the norm of 2.weight is": lambda held: held["tensors"].mul_(3),
        "contradicts itself (the norm of 0.bias is": lambda held: held["entries"][:9].mul_(1.001),
        "gradients: restore it": lambda held: held["split"][0].add_(1),
        "gradients: restore": lambda held: held["split"][1].mul_(2),
        "gradients:": lambda held: held.pop("split"),
        "gradients": lambda held: held.pop("entries"),
        "this run's gradients": lambda held: held.update(entries=held["entries"].half()),
        "run's gradients: restore it": lambda held: held.update(sketch=held["squares"].sum().sqrt().reshape(1)),
    }
    for number, (words, change) in enumerate(changes.items()):
        problems = damaged(run, tmp_path / str(number), change)  # type: ignore[arg-type]
        assert len(problems) == 1
        assert words in problems[0]
    path = run.root / "gradient_sketches" / "epoch-0001.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert "does not have the checksum it was written with" in run.problems()[0]


def test_finite_squares_may_have_an_infinite_sum() -> None:
    assert Sketch(torch.full((256,), 1e200, dtype=torch.float64), 9, {"a": 1e308, "b": 1e308}).norm == math.inf


@pytest.mark.parametrize("text", ["sketch", "sketch:", "sketch:1000", "sketch:128", "none", "sketch:99999999999"])
def test_other_values_are_refused(text: str) -> None:
    with pytest.raises(TvgradError, match=r"is not understood: use all or sketch:65536|is not possible: give a power"):
        KeptGradients(text)
    with pytest.raises(SystemExit) as ended:
        main(["trace", "digits", "--out", "nowhere", "--keep-gradients", text])
    assert ended.value.code == 2


def test_the_cost_counts_sketches(wide: Recipe) -> None:
    costs = [
        trace_cost(prepare(wide, TraceOptions(epochs=3, keep_gradients=one, record=BOTH)), 1.0).disk
        for one in (KeptGradients("all"), KeptGradients(SKETCH))
    ]
    assert costs[1] < 0.6 * costs[0]


@pytest.mark.parametrize(
    "options",
    [
        TraceOptions(epochs=2, keep_gradients=KeptGradients("sketch:256")),
        TraceOptions(epochs=2, keep_gradients=KeptGradients("sketch:512"), dtype="float64"),
        TraceOptions(
            epochs=2,
            keep_gradients=KeptGradients("sketch:256"),
            dtype="bfloat16",
            optimizer="sgd",
            batch_size=6,
            record=BOTH,
        ),
    ],
)
def test_the_cost_tells_the_bytes_of_sketches_exactly(wide: Recipe, options: TraceOptions, tmp_path: Path) -> None:
    prepared = prepare(wide, options)
    told = trace_cost(prepared, 1.0).disk
    trace(prepared, tmp_path / "run")
    files = [path for path in (tmp_path / "run").rglob("*.safetensors") if path.parent.name != "state"]
    assert any(path.parent.name == "gradient_sketches" for path in files)
    assert told == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize("scale", [1e-161, 1e-175, 1e160])
def test_gradients_whose_squares_leave_float64_are_no_damage(
    wide: Recipe, traced: Callable[..., Run], tmp_path: Path, scale: float
) -> None:
    plain = wide.loss
    assert plain is not None
    wide.loss = lambda output, target: plain(output, target) * scale
    run = traced(tmp_path / "run", wide, keep_gradients=SKETCH, dtype="float64", lr=0.1 / scale)
    assert not run.problems()
    found = tables(run).tables["sketches"]
    cosines = found[found["quantity"] != "gradient_norm"]
    assert len(cosines) > 0
    assert cosines["estimate"].notna().all()


SCRIPT = """
import sys, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
x = torch.randn(40, 8)
data = TensorDataset(x, x.sum(1).long() % 2)
model = nn.Sequential(nn.Linear(8, 90), nn.Tanh(), nn.Linear(90, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(2):
    for a, b in DataLoader(data, batch_size=10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(a), b).backward()
        optimizer.step()
"""


def test_a_script_keeps_sketches_too(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    script = warm(str(tmp_path / "script.py"))
    for out, more in ("whole", []), ("run", ["--keep-gradients", "sketch:256"]):
        words = ["trace", "--out", str(tmp_path / out), "--gradients", "0", *more, "--", *script]
        done = run_command(warm_tvgrad(*words), starts=4)
        assert done.returncode == 0, done.stderr
    whole, run = Run.open(tmp_path / "whole"), Run.open(tmp_path / "run")
    assert run.having("epoch_gradient_sketch") == [1, 2]
    assert run.having("gradient_sketch") == [0]
    assert not run.having("epoch_gradient")
    assert not run.having("gradient")
    assert not run.problems()
    made = tvgrad.sketch(whole.gradient(0), 256)
    assert run.gradient_sketch(0).norm == pytest.approx(made.norm, rel=1e-6)
    cosine = made.cosine(run.gradient_sketch(0))
    assert cosine.value == pytest.approx(1, abs=1e-9)
    assert not math.isnan(tables(run).tables["norms"]["epoch_gradient_norm"][0])
