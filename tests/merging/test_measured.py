"""Methods that take measurements: each equals its definition, written out; files of measurements."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import tvgrad
from tvgrad import TvgradError
from tvgrad.files.atomic import sha256_of
from tvgrad.files.writing import write_tensors
from tvgrad.merging import (
    Measurements,
    exact_gradient_matching,
    fisher,
    gradient_matching,
    load_measurements,
    measure,
    measured_meta_gpt,
    measured_trust_region,
    regmean,
    task_arithmetic,
)
from tvgrad.merging.gradient_matching import GradientMatching

N, CLASSES = 6, 3
NAMES = ("a", "b", "c")
Weights = dict[str, torch.Tensor]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 2, groups=2)
        self.narrow = nn.Linear(16, 3)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.narrow(torch.tanh(self.conv(x)).flatten(1))))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().double()


@pytest.fixture(scope="module")
def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(N + 2 * t, 2, 3, 3, generator=generator).double(), torch.arange(N + 2 * t) % CLASSES)
        for t in range(len(NAMES))
    ]


@pytest.fixture(scope="module")
def objectives(model: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]]) -> list[tvgrad.Objective]:
    return [tvgrad.Objective(model, nn.CrossEntropyLoss(), part, chunk_size=4) for part in data]


@pytest.fixture(scope="module")
def vectors(model: nn.Module) -> list[Weights]:
    generator = torch.Generator().manual_seed(2)
    return [
        {name: 0.1 * torch.randn(p.shape, generator=generator).double() for name, p in model.named_parameters()}
        for _ in NAMES
    ]


@pytest.fixture(scope="module")
def tuned(model: nn.Module, vectors: list[Weights]) -> list[Weights]:
    return [{name: p.detach() + one[name] for name, p in model.named_parameters()} for one in vectors]


@pytest.fixture(scope="module")
def measured(objectives: list[tvgrad.Objective], tuned: list[Weights]) -> Measurements:
    return measure(NAMES, objectives, tuned)


@pytest.fixture(scope="module")
def diagonals(model: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]], tuned: list[Weights]) -> list[Weights]:
    """The mean over samples and classes of squared gradients of log p, one `autograd.grad` each."""
    found = []
    for (x, _), weights in zip(data, tuned, strict=True):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
        total = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        for i in range(len(x)):
            log_p = torch.func.functional_call(model, leaves, (x[i : i + 1],)).log_softmax(1)[0]
            for c in range(CLASSES):
                parts = torch.autograd.grad(log_p[c], list(leaves.values()), retain_graph=True)
                for name, part in zip(leaves, parts, strict=True):
                    total[name] += log_p[c].exp().detach() * part.square() / len(x)
        found.append(total)
    return found


def close(found: Weights, truth: Weights, tolerance: float = 1e-10) -> bool:
    return all(float((found[name] - truth[name]).abs().max()) <= tolerance for name in truth)


def test_fisher_is_the_mean_weighed_by_information(
    model: nn.Module, vectors: list[Weights], measured: Measurements, diagonals: list[Weights]
) -> None:
    truth = {
        name: sum(f[name] * v[name] for f, v in zip(diagonals, vectors, strict=True)) / sum(f[name] for f in diagonals)
        for name in vectors[0]
    }
    assert close(fisher(vectors, measured), truth)
    # and as the weighted mean of weights, by its own definition
    base = {name: p.detach() for name, p in model.named_parameters()}
    assert close(fisher(vectors, measured, base=base), {name: base[name] + part for name, part in truth.items()})


def test_without_any_information_fisher_is_the_mean(vectors: list[Weights], objectives: list[tvgrad.Objective]) -> None:
    nothing = {f"fisher.{t}.{name}": torch.zeros_like(p) for t in range(3) for name, p in vectors[0].items()}
    places = {key: tuple(part.shape) for key, part in nothing.items()}
    made = Measurements(NAMES, ("exact",) * 3, "tuned", {}, None, None, places, nothing.__getitem__)
    truth = {name: torch.stack([v[name] for v in vectors]).mean(0) for name in vectors[0]}
    assert close(fisher(vectors, made), truth, 1e-15)
    assert close(gradient_matching(vectors, made), truth, 1e-15)
    assert close(regmean(vectors, made), truth, 1e-15)


@pytest.mark.parametrize("prior", [0.0, 0.1, 3.0])
def test_gradient_matching_solves_its_equation(
    prior: float, vectors: list[Weights], measured: Measurements, diagonals: list[Weights]
) -> None:
    """Its stationarity: `(H_0 + sum H_s) m = sum (H_0 + H_t) tau_t`, coordinate by coordinate."""
    found = gradient_matching(vectors, measured, prior=prior)
    for name, merged in found.items():
        h0 = prior * torch.stack([f[name] for f in diagonals]).mean()
        left = (h0 + sum(f[name] for f in diagonals)) * merged
        right = sum((h0 + f[name]) * v[name] for f, v in zip(diagonals, vectors, strict=True))
        assert float((left - right).abs().max()) < 1e-12


def test_a_large_prior_is_task_arithmetic_and_none_is_fisher(vectors: list[Weights], measured: Measurements) -> None:
    assert close(gradient_matching(vectors, measured, prior=1e12), task_arithmetic(vectors), 1e-9)
    assert close(gradient_matching(vectors, measured, prior=0.0), fisher(vectors, measured), 1e-14)
    for prior in (-1.0, float("nan"), True):
        with pytest.raises(TvgradError, match="prior must be a finite number of at least 0"):
            GradientMatching(measured, prior)


def test_regmean_is_least_squares_on_the_tasks_outputs(
    model: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]], tuned: list[Weights], vectors: list[Weights]
) -> None:
    """With all of the Gram matrices kept, scipy-free: stacked inputs and outputs, solved by `lstsq`."""
    big = [(x.repeat(5, 1, 1, 1) + 0.3 * torch.randn(5 * len(x), 2, 3, 3).double(), y.repeat(5)) for x, y in data]
    objectives = [tvgrad.Objective(model, nn.CrossEntropyLoss(), part, chunk_size=16) for part in big]
    found = regmean(vectors, measure(NAMES, objectives, tuned), kept=1.0)
    rows: list[torch.Tensor] = []
    for (x, _), weights in zip(big, tuned, strict=True):
        hidden = torch.tanh(F.conv2d(x, weights["conv.weight"], weights["conv.bias"], groups=2)).flatten(1)
        rows.append(hidden / len(x) ** 0.5)
    goals = [h @ v["narrow.weight"].T for h, v in zip(rows, vectors, strict=True)]
    truth = torch.linalg.lstsq(torch.cat(rows), torch.cat(goals)).solution.T
    assert float((found["narrow.weight"] - truth).abs().max()) < 1e-9
    for group in range(2):  # of the convolution, each group on its own channel's patches
        patches = [F.unfold(x[:, group : group + 1], 2).transpose(1, 2).flatten(0, 1) / len(x) ** 0.5 for x, _ in big]
        kernels = [v["conv.weight"][2 * group : 2 * group + 2].flatten(1) for v in vectors]
        goals = [p @ k.T for p, k in zip(patches, kernels, strict=True)]
        truth = torch.linalg.lstsq(torch.cat(patches), torch.cat(goals)).solution.T
        assert float((found["conv.weight"][2 * group : 2 * group + 2].flatten(1) - truth).abs().max()) < 1e-9
    assert close({"b": found["head.bias"]}, {"b": torch.stack([v["head.bias"] for v in vectors]).mean(0)})


def test_damped_regmean_is_the_published_formula(vectors: list[Weights], measured: Measurements) -> None:
    grams = measured.grams("head.weight")
    assert grams is not None
    damped = [0.9 * g + 0.1 * g.diag().diag() for g in grams]
    right = sum(g @ v["head.weight"].T for g, v in zip(damped, vectors, strict=True))
    truth = torch.linalg.solve(sum(damped), right).T
    assert float((regmean(vectors, measured)["head.weight"] - truth).abs().max()) < 1e-11
    for kept in (0.0, 1.5):
        with pytest.raises(TvgradError, match="share of off-diagonal entries"):
            regmean(vectors, measured, kept=kept)


def test_what_a_file_holds_is_what_was_measured(
    measured: Measurements, objectives: list[tvgrad.Objective], vectors: list[Weights], tmp_path: Path
) -> None:
    plan = tvgrad.plan(objectives, task_vectors=vectors, pairs=True)
    made = measure(NAMES, objectives, slopes=plan.slopes, pairs=plan.pairs)
    made.save(tmp_path / "m.safetensors")
    read = load_measurements(tmp_path / "m.safetensors")
    assert (read.tasks, read.fisher, read.at, dict(read.norms)) == (NAMES, ("exact",) * 3, "pretrained", made.norms)
    assert read.places == made.places
    assert all(torch.equal(read.read(key), made.read(key)) for key in made.places)
    assert close(fisher(vectors, read), fisher(vectors, made), 0)
    chosen = read.of(("c", "a"))
    assert torch.equal(chosen.diagonals("head.bias"), read.diagonals("head.bias")[[2, 0]])
    assert chosen.pairs is not None
    assert chosen.slopes is not None
    assert plan.pairs is not None
    assert chosen.pairs[0, 1, 0] == plan.pairs[2, 0, 2]
    assert chosen.slopes[0, 1] == plan.slopes[2, 0]


def test_meta_gpt_measures_the_curvature_along_each_vector(
    model: nn.Module,
    data: list[tuple[torch.Tensor, torch.Tensor]],
    objectives: list[tvgrad.Objective],
    vectors: list[Weights],
) -> None:
    # Of the head alone, in which the loss is convex.
    vectors = [{n: v if n.startswith("head") else torch.zeros_like(v) for n, v in one.items()} for one in vectors]
    plan = tvgrad.plan(objectives, task_vectors=vectors, pairs=True)
    made = measure(NAMES, objectives, slopes=plan.slopes, pairs=plan.pairs)
    start = {name: p.detach() for name, p in model.named_parameters()}
    curvatures = []
    for (x, y), vector in zip(data, vectors, strict=True):

        def along(a: torch.Tensor, x: torch.Tensor = x, y: torch.Tensor = y, v: Weights = vector) -> torch.Tensor:
            moved = {name: start[name] + a * v[name] for name in start}
            return F.cross_entropy(torch.func.functional_call(model, moved, (x,)), y)

        second = torch.func.grad(torch.func.grad(along))(torch.zeros((), dtype=torch.float64))
        curvatures.append(float(second) / sum(float(part.square().sum()) for part in vector.values()))
    assert min(curvatures) > 0
    found = measured_meta_gpt(vectors, made)
    for name, part in found.items():
        truth = sum(h * v[name] for h, v in zip(curvatures, vectors, strict=True)) / sum(curvatures)
        assert float((part - truth).abs().max()) < 1e-9


def test_meta_gpt_refuses_negative_curvature_and_no_plan(vectors: list[Weights], measured: Measurements) -> None:
    with pytest.raises(TvgradError, match="hold no plan"):
        measured_meta_gpt(vectors, measured)
    earlier = {key: shape for key, shape in measured.places.items() if not key.startswith("magnitude")}
    with pytest.raises(TvgradError, match=r"no magnitudes of gradients of 'conv.weight': measure again"):
        measured_trust_region(vectors, dataclasses.replace(measured, places=earlier))
    with pytest.raises(TvgradError, match="'b' is curved downwards along its own vector"):
        measured_meta_gpt(
            vectors, dataclasses.replace(measured, pairs=np.array([1.0, -1.0, 1.0])[:, None, None] * np.ones((3, 3, 3)))
        )


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_trust_region_leaves_out_what_hurts_other_tasks(
    share: float,
    model: nn.Module,
    data: list[tuple[torch.Tensor, torch.Tensor]],
    vectors: list[Weights],
    measured: Measurements,
) -> None:
    """Magnitudes are of single samples, at the pretrained weights though the rest is measured at the tuned ones."""
    start = {name: p.detach() for name, p in model.named_parameters()}
    magnitudes: list[Weights] = []
    for x, y in data:
        rows = []
        for i in range(len(x)):
            leaves = {name: part.clone().requires_grad_() for name, part in start.items()}
            loss = F.cross_entropy(torch.func.functional_call(model, leaves, (x[i : i + 1],)), y[i : i + 1])
            rows.append(torch.autograd.grad(loss, list(leaves.values())))
        columns = zip(*rows, strict=True)
        magnitudes.append({name: torch.stack(parts).abs().mean(0) for name, parts in zip(start, columns, strict=True)})
    found = measured_trust_region(vectors, measured, share=share)
    for name, part in found.items():
        conflict = sum(
            magnitudes[i][name] * vectors[j][name].abs() for i in range(3) for j in range(3) if i != j
        ).flatten()
        left_out = conflict.argsort(descending=True)[: int(share * len(conflict))]
        truth = sum(one[name] for one in vectors).flatten()
        truth[left_out] = 0.0
        assert float((part.flatten() - truth).abs().max()) < 1e-15


def test_magnitudes_count_samples_as_the_loss_does() -> None:
    model = nn.Linear(2, 2, bias=False).double()
    x, y = torch.randn(3, 2).double(), torch.tensor([0, 1, 1])
    mean = tvgrad.Objective(model, nn.CrossEntropyLoss(), (x, y), chunk_size=2).gradient_magnitudes()["weight"]
    weighed = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]).double())

    def count(batch: tuple[torch.Tensor, torch.Tensor]) -> float:
        return float(torch.tensor([1.0, 3.0])[batch[1]].sum())

    found = tvgrad.Objective(model, weighed, (x, y), count=count, chunk_size=2).gradient_magnitudes()["weight"]
    each = []
    for i in range(3):
        (part,) = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), [model.weight])
        each.append(part.abs())
    assert float((mean - torch.stack(each).mean(0)).abs().max()) < 1e-15
    assert float((found - (each[0] + 3 * each[1] + 3 * each[2]) / 7).abs().max()) < 1e-15


def planned(slope: float, curvature: float) -> Measurements:
    return Measurements(
        ("a",), ("exact",), "tuned", {}, np.full((1, 1), slope), np.full((1, 1, 1), curvature), {}, {}.get
    )


def test_a_coefficient_that_there_is_not(measured: Measurements) -> None:
    assert planned(-2.0, 4.0).coefficient() == 0.5
    for made, said in (
        (measured, "hold no plan"),
        (planned(-1.0, -3.0), r"curvature along the merge is not positive \(-3\)"),
        (planned(1.0, 3.0), "the coefficient would be negative"),
    ):
        with pytest.raises(TvgradError, match=said) as raised:
            made.coefficient()
        assert "\n" not in str(raised.value)


def test_measurements_of_something_else_are_refused(
    measured: Measurements, vectors: list[Weights], model: nn.Module, tmp_path: Path
) -> None:
    later = [vectors[0], vectors[1] | {"head.bias": 1.001 * vectors[1]["head.bias"]}, vectors[2]]
    model_base = {name: p.detach() for name, p in model.named_parameters()}
    other = [one | {"more": torch.ones(2)} for one in vectors]
    cut = [one | {"head.bias": torch.ones(5)} for one in vectors]
    base = {name: torch.ones_like(part) for name, part in vectors[0].items()}
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: fisher(other, measured), "of another model: they have no 'more'"),
        (lambda: regmean(cut, measured), r"'head.bias' has shape \(3,\) in them and \(5,\) here"),
        (lambda: fisher(vectors[:2], measured), "3 tasks were measured and 2 are merged"),
        (lambda: fisher(vectors, measured, base=base), "from other pretrained weights"),
        (lambda: fisher(later, measured), "after another epoch or training than task vector 2: task 'b' moved"),
        (lambda: fisher(later, measured, base=model_base), "moved 'head.bias' by"),
        (lambda: measured.of(["a", "z"]), "task 'z' was not measured: these measurements are of a, b, c"),
    ]
    for run, said in cases:
        with pytest.raises(TvgradError, match=said) as raised:
            run()
        assert "\n" not in str(raised.value)
    swapped = [vectors[1], vectors[0], vectors[2]]  # and the order of the tasks matters
    fisher(swapped, measured.of(["b", "a", "c"]))
    with pytest.raises(TvgradError, match="after another epoch or training"):
        fisher(swapped, measured)
    rounded = [{name: part.float() for name, part in one.items()} for one in vectors]  # stored in single precision
    fisher(rounded, measured)
    with pytest.raises(TvgradError, match="is no folder: choose another --save"):
        measured.save(tmp_path / "none" / "m.safetensors")
    measured.save(tmp_path / "m.safetensors")
    with pytest.raises(TvgradError, match="after another epoch or training"):
        fisher(later, load_measurements(tmp_path / "m.safetensors"))
    beside = tmp_path / "m.json"
    said = json.loads(beside.read_text())
    for moved, wrong in (([{}], "3 tasks and what 1 moved"), ([{"head.bias": -1.0}, {}, {}], "a norm of -1")):
        beside.write_text(json.dumps(said | {"moved": moved}))
        with pytest.raises(TvgradError, match=wrong):
            load_measurements(tmp_path / "m.safetensors")
    del said["moved"]  # as older files are, which are not checked for it
    beside.write_text(json.dumps(said))
    fisher(later, load_measurements(tmp_path / "m.safetensors"))


def test_damaged_files_are_refused(measured: Measurements, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    measured.save(path)
    beside = path.with_suffix(".json")
    whole = beside.read_text()
    for text, said in (
        ("{", "no file of measurements"),
        (json.dumps(json.loads(whole) | {"at": "somewhere"}), "no file of measurements"),
        (json.dumps(json.loads(whole) | {"sha256": "0"}), "do not belong together"),
        (json.dumps(json.loads(whole) | {"tasks": ["a"]}), "names 1 tasks and 3 kinds"),
    ):
        beside.write_text(text)
        with pytest.raises(TvgradError, match=said):
            load_measurements(path)
    beside.unlink()
    with pytest.raises(TvgradError, match=r"m\.json is missing"):
        load_measurements(path)
    for wrong in (tmp_path / "m.json", tmp_path / "m"):
        with pytest.raises(TvgradError, match=r"does not end in .safetensors"):
            measured.save(wrong)


def hashed(path: Path, tensors: dict[str, torch.Tensor], said: dict[str, Any]) -> Path:
    save_file(tensors, path)
    path.with_suffix(".json").write_text(json.dumps(said | {"sha256": sha256_of(path)}))
    return path


def test_files_that_hold_what_no_measurement_is_are_refused(
    measured: Measurements, vectors: list[Weights], tmp_path: Path
) -> None:
    """Each with a checksum that is right: NaNs made means of merges, other shapes and names ended in tracebacks."""
    path = tmp_path / "m.safetensors"
    plan = dataclasses.replace(measured, slopes=-np.ones((3, 3)), pairs=np.ones((3, 3, 3)), planned=0.5)
    plan.save(path)
    whole, said = load_file(path), json.loads(path.with_suffix(".json").read_text())
    nan = torch.full_like(whole["fisher.0.narrow.weight"], float("nan"))
    square, line = torch.eye(2).double(), torch.ones(2).double()
    both = {f"gram.{task}.narrow.weight": square.clone() for task in range(3)}
    cases: list[tuple[dict[str, torch.Tensor], dict[str, Any], Callable[..., Any], str]] = [
        ({"fisher.0.narrow.weight": nan}, {}, fisher, "a NaN, an infinity or a number below 0 where Fisher diagonals"),
        ({"fisher.0.narrow.weight": -nan.isnan().double()}, {}, gradient_matching, "or a number below 0 where Fisher"),
        ({"magnitude.1.narrow.weight": nan}, {}, measured_trust_region, "number below 0 where magnitudes of gradients"),
        ({"gram.1.narrow.weight": torch.full((16, 16), torch.inf)}, {}, regmean, "an infinity where Gram matrices"),
        ({"fisher.2.narrow.weight": line}, {}, fisher, r"'fisher.2.narrow.weight' has shape \(2,\)"),
        ({"magnitude.2.narrow.weight": line}, {}, regmean, r"'magnitude.2.narrow.weight' has shape \(2,\)"),
        (both, {}, regmean, r"'gram.0.narrow.weight' has shape \(2, 2\), which does not belong to \(3, 16\)"),
        ({"abc": line}, {}, fisher, "holds a tensor 'abc' that is no measurement of its 3 tasks"),
        ({"fisher.3.narrow.weight": line}, {}, fisher, "holds a tensor 'fisher.3.narrow.weight'"),
        ({"fisher.x.w": line}, {}, fisher, "holds a tensor 'fisher.x.w'"),
        ({"plan.pairs": square}, {}, measured_meta_gpt, "'plan.pairs' that is none of 3 tasks"),
        ({"plan.slopes": torch.full((3, 3), torch.nan)}, {}, fisher, "'plan.slopes' that is none of 3 tasks, or not"),
        ({"plan.coefficient": line}, {}, fisher, "'plan.coefficient' that is none"),
        ({}, {"tasks": ["a", "a", "b"]}, fisher, "two tasks called 'a'"),
        ({}, {"norms": {"conv.weight": None}}, fisher, "a norm of nan for 'conv.weight'"),
    ]
    for tensors, words, method, sentence in cases:
        wrong = hashed(tmp_path / "wrong.safetensors", whole | tensors, said | words)
        with pytest.raises(TvgradError, match=sentence) as raised:
            method(vectors, load_measurements(wrong))
        assert "\n" not in str(raised.value)
    del whole["gram.0.narrow.weight"]
    with pytest.raises(TvgradError, match=r"have no 'gram.0.narrow.weight'"):  # and not the mean of the layer
        regmean(vectors, load_measurements(hashed(tmp_path / "wrong.safetensors", whole, said)))


def test_the_plans_coefficient_is_that_of_all_its_tasks(measured: Measurements, tmp_path: Path) -> None:
    made = dataclasses.replace(measured, slopes=-np.ones((3, 3)), pairs=np.ones((3, 3, 3)), planned=0.25)
    made.save(tmp_path / "m.safetensors")
    read = load_measurements(tmp_path / "m.safetensors")
    assert read.coefficient() == read.of(["c", "a", "b"]).coefficient() == 0.25
    assert read.of(["c", "a"]).planned is None
    assert read.of(["c", "a"]).coefficient() == 0.5  # 4 of 9 slopes, over 8 of 27 curvatures
    with pytest.raises(TvgradError, match="no coefficient that the plan tried lowers"):
        dataclasses.replace(made, planned=0.0).coefficient()
    up = dataclasses.replace(made, slopes=np.ones((3, 3)), planned=0.0)
    with pytest.raises(TvgradError, match="the coefficient would be negative"):
        up.coefficient()


def test_measurements_are_one_file_however_large(
    measured: Measurements, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_tensors, "__defaults__", (1000,))  # of the largest file that others write
    measured.save(tmp_path / "m.safetensors")
    assert load_measurements(tmp_path / "m.safetensors").places == measured.places


def test_what_is_not_finite_is_not_kept() -> None:
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    data = torch.tensor([[1e20]]), torch.tensor([0])
    with pytest.raises(
        TvgradError, match="Fisher diagonals of 'weight' of task 'a' are not finite: measure in float64"
    ):
        measure(["a"], [tvgrad.Objective(model, nn.CrossEntropyLoss(), data)])


def test_a_loss_without_a_likelihood_is_measured_empirically(model: nn.Module) -> None:
    x, y = torch.randn(4, 2, 3, 3).double(), torch.arange(4) % CLASSES
    made = measure(["a"], [tvgrad.Objective(model, nn.MultiMarginLoss(), (x, y))])
    assert made.fisher == ("empirical",)


def test_names_and_options_that_are_none(
    objectives: list[tvgrad.Objective], measured: Measurements, vectors: list[Weights]
) -> None:
    for other in ("m.safetensors", None, {"a": 1}):
        with pytest.raises(TvgradError, match="is no measurements: pass those of"):
            fisher(vectors, other)  # type: ignore[arg-type]
    with pytest.raises(TvgradError, match="a str is no objective"):
        exact_gradient_matching(vectors, ["a", "b", "c"])  # type: ignore[list-item]
    with pytest.raises(TvgradError, match="two tasks are called 'a', and measurements are found by the names"):
        measure(["a", "b", "a"], objectives)
    for wrong in ("a", True, -1.0, float("nan"), None):
        with pytest.raises(TvgradError, match="the prior must be a finite number of at least 0"):
            GradientMatching(measured, wrong)  # type: ignore[arg-type]
