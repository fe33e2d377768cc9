"""Outputs, gradients of single samples, Fisher diagonals and input Grams against loops of `autograd.grad`."""

from __future__ import annotations

import copy
import doctest
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from tests.cases import CASES, CLASSES, FEATURES, Case, N, mlp
from tests.problem.test_objective import direction, objective_of, somewhere
from tvgrad.errors import TvgradError, UnsupportedModel
from tvgrad.problem import layer_uses, outputs, sample_gradients
from tvgrad.problem.objective import Objective
from tvgrad.problem.sample_rows import SampleRows

Weights = dict[str, torch.Tensor]
ROUNDING = {torch.float64: 1e-13, torch.float32: 2e-5}

FEW = ("mlp tanh", "tied weights", "class weights", "language model, dict batches", "transformer, checkpointed")
some_cases = pytest.mark.parametrize("case", [c for c in CASES if c.name in FEW], ids=lambda case: case.name)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def loaded(case: Case, at: Weights) -> tuple[Any, dict[str, nn.Parameter]]:
    """The problem in float64 with the weights in question, for oracles."""
    problem = case.build(torch.float64)
    parameters = {name: p for name, p in problem.model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(at[name])
    return problem, parameters


def derived(value: torch.Tensor, parameters: dict[str, nn.Parameter]) -> Weights:
    parts = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(p) if part is None else part
        for (name, p), part in zip(parameters.items(), parts, strict=True)
    }


def rows(objective: Objective, at: Weights | None = None, **options: Any) -> Weights:
    """All samples' gradients, after a look at the indices."""
    chunks = list(objective.sample_gradients(at, **options))
    assert torch.cat([indices for indices, _ in chunks]).tolist() == list(range(len(objective.samples)))
    return {name: torch.cat([part[name] for _, part in chunks]) for name in objective.initial}


def assert_close(found: Weights, truth: Weights, tolerance: float) -> None:
    assert list(found) == list(truth)
    scale = max(float(part.double().norm()) for part in truth.values())
    for name, part in truth.items():
        assert found[name].shape == part.shape
        assert float((found[name].double() - part.double()).norm()) <= tolerance * scale, name


@every_case
def test_each_sample_has_the_gradient_that_it_has_alone(case: Case) -> None:
    objective = objective_of(case.build(), chunk_size=3)
    at = somewhere(objective)
    problem, parameters = loaded(case, at)
    weighed = [derived(piece(problem.model), parameters) for piece in problem.pieces]
    truth = {name: torch.stack([one[name] for one in weighed]) for name in parameters}
    found, mass = rows(objective, at), objective.sample_weights()
    assert float(mass.sum()) == pytest.approx(problem.divisor, rel=1e-12)
    found = {name: part.double() * mass.reshape(-1, *[1] * (part.ndim - 1)) for name, part in found.items()}
    assert_close(found, truth, ROUNDING[case.dtype])
    assert objective.evaluations.sample_gradients == 1
    assert all(p.grad is None for p in objective.model.parameters())


class Pictures(nn.Module):
    """Convolutions of many kinds on 14 x 14 pixels, with the norms that stand between them."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(2, 4, 3, padding=1, stride=1)  # 196 positions: in groups
        self.group = nn.GroupNorm(2, 4)
        self.grouped = nn.Conv2d(4, 4, 3, stride=2, groups=2, dilation=2, padding=2)
        self.same = nn.Conv2d(4, 6, (2, 3), padding="same", bias=False)
        self.batch = nn.BatchNorm2d(6)
        self.narrow = nn.Conv2d(6, 3, 1)
        self.along = nn.Conv1d(3, 2, 3, stride=2, padding=1)
        self.head = nn.Linear(2 * 25, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu_(self.group(self.wide(x)))
        h = torch.tanh(self.batch(self.same(self.grouped(h))))
        return self.head(self.along(self.narrow(h).flatten(2)).flatten(1))


class Tokens(nn.Module):
    """A class token, positions, a scale and an RMS norm; the first layer's output is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4, padding_idx=-2)
        self.first = nn.Parameter(torch.randn(1, 1, 4))
        self.positions = nn.Parameter(torch.randn(6, 4))
        self.scale = nn.Parameter(torch.randn(4))
        self.norm = nn.RMSNorm(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = torch.cat([self.first.expand(len(ids), -1, -1), self.embed(ids)], 1) + self.positions
        h = h.tanh_() * self.scale
        return self.head(self.norm(h)[:, 0] + self.norm(h.flatten(0, 1)).unflatten(0, h.shape[:2]).mean(1))


class PositionsFirst(nn.Module):
    """Layers see (features, samples, 1): where a chunk has as many samples as features, shapes cannot tell."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(1, 2)
        self.head = nn.Linear(2 * FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.lift(x.T.unsqueeze(-1)))
        return self.head(h.transpose(0, 1).flatten(1))


class Deciding(nn.Module):
    """Takes another way where the data says so: vmap cannot run it; its weight is used as no layer uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.einsum("nf,fc->nc", x, self.weight)
        return torch.cat([row * 2 if float(row.detach().sum()) > 0 else row for row in h.split(1)])


def pictures() -> tuple[nn.Module, torch.Tensor]:
    model = Pictures().double().eval()
    model.batch.running_mean.uniform_(-1, 1)
    return model, torch.randn(N, 2, 14, 14).double()


MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, torch.Tensor]], set[str]]] = {
    "convolutions and norms": (pictures, set()),
    "tokens": (lambda: (Tokens().double(), torch.randint(0, 6, (N, 5))), set()),
    "positions first": (
        lambda: (PositionsFirst().double(), torch.randn(N, FEATURES).double()),
        {"lift.weight", "lift.bias", "head.weight", "head.bias"},
    ),
    "no vmap": (lambda: (Deciding().double(), torch.randn(N, FEATURES).double()), {"weight"}),
}
"""Model and inputs, and the parameters whose gradients layers cannot give."""


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [FEATURES, 2, N])
def test_layers_of_all_kinds(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    make, apart = MODELS[name]
    torch.manual_seed(4)
    model, x = make()
    y = torch.arange(N) % CLASSES
    slow: set[str] = set()
    others = SampleRows._others

    def watched(self: Any, *args: Any) -> Weights:
        slow.update(args[-1])
        return others(self, *args)

    monkeypatch.setattr(SampleRows, "_others", watched)
    found = rows(Objective(model, nn.CrossEntropyLoss(), (x, y), chunk_size=size))
    parameters = dict(model.named_parameters())
    each = [derived(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), parameters) for i in range(N)]
    assert_close(found, {name: torch.stack([one[name] for one in each]) for name in parameters}, 1e-13)
    assert slow == apart  # the fast way is taken wherever it is right


def test_many_and_few_positions_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    model, x = pictures()
    objective = Objective(model, nn.CrossEntropyLoss(), (x, torch.arange(N) % CLASSES), chunk_size=4)
    found = []
    for least in (0, 10**9):
        monkeypatch.setattr(layer_uses, "MANY_POSITIONS", least)
        found.append(rows(objective))
    assert_close(*found, 1e-13)


def test_a_chunk_of_gradients_keeps_to_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = CASES[0].build()
    objective = objective_of(problem, chunk_size=N)
    size = sum(tensor.numel() for tensor in objective.initial.values()) * 8
    assert [len(indices) for indices, _ in objective.sample_gradients()] == [N]
    monkeypatch.setattr(sample_gradients, "MOST_BYTES", 3 * size)
    assert [len(indices) for indices, _ in objective.sample_gradients()] == [3, 3, 1]
    assert [len(indices) for indices, _ in objective.sample_gradients(chunk_size=5)] == [5, 2]


@some_cases
def test_outputs_and_their_derivative(case: Case) -> None:
    problem = case.build()
    objective = objective_of(problem, chunk_size=3)
    at = somewhere(objective)
    vector = direction(at)
    truth, parameters = loaded(case, at)
    run = truth.options.get("forward", lambda net, batch: net(batch[0]))
    batch = Objective(truth.model, truth.loss, truth.data, **truth.options).samples.batch(0, N)
    plain = run(truth.model, batch)
    found = objective.outputs(at)
    assert found.dtype == case.dtype
    assert torch.allclose(found.double(), plain, rtol=ROUNDING[case.dtype] * 10, atol=ROUNDING[case.dtype] * 10)
    # each output's gradient times the direction, one output at a time
    slopes = [
        sum((part * vector[name].double()).sum() for name, part in derived(one, parameters).items())
        for one in plain.flatten()
    ]
    along = objective.jvp(vector, at).double()
    assert torch.allclose(along, torch.stack(slopes).reshape(plain.shape), rtol=0, atol=ROUNDING[case.dtype] * 1e3)
    assert (objective.evaluations.values, objective.evaluations.jvps) == (1, 1)


def test_the_derivative_is_a_limit_of_differences() -> None:
    objective = objective_of(CASES[0].build(), chunk_size=3)
    vector, errors = direction(objective.initial), []
    for step in (1e-2, 1e-3):
        ends = [
            objective.outputs({name: t + sign * step * vector[name] for name, t in objective.initial.items()})
            for sign in (1, -1)
        ]
        errors.append(float(((ends[0] - ends[1]) / (2 * step) - objective.jvp(vector)).norm()))
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)  # of second order


def of_outputs(loss: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    torch.manual_seed(7)
    model = mlp().double()
    if loss == "cross-entropy":
        return model, nn.CrossEntropyLoss(), torch.arange(N) % CLASSES
    if loss == "mse":
        return model, nn.MSELoss(), torch.randn(N, CLASSES).double()
    return model, nn.BCEWithLogitsLoss(), torch.randint(0, 2, (N, CLASSES)).double()


@pytest.mark.parametrize("loss", ["cross-entropy", "mse", "binary"])
def test_the_exact_fisher_diagonal_is_the_expectation_over_targets(loss: str) -> None:
    model, criterion, y = of_outputs(loss)
    x = torch.randn(N, FEATURES).double()
    parameters = dict(model.named_parameters())
    truth = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for i in range(N):
        output = model(x[i : i + 1])
        if loss == "cross-entropy":  # every class by its probability
            p = output.softmax(1)[0].detach()
            drawn = [(p[c], F.cross_entropy(output, torch.tensor([c]))) for c in range(CLASSES)]
        elif loss == "binary":  # every pattern of answers by its probability
            q, patterns = output.sigmoid()[0].detach(), torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 3)
            drawn = [
                ((a * q + (1 - a) * (1 - q)).prod(), F.binary_cross_entropy_with_logits(output, a[None]))
                for a in patterns
            ]
        else:  # the squared gradient is quadratic in the noise: two points a coordinate are an exact quadrature
            width, units = (CLASSES * CLASSES / 2) ** 0.5, torch.eye(CLASSES).double()
            drawn = [
                (1 / (2 * CLASSES), F.mse_loss(output, output.detach() + sign * width * unit))
                for unit in units
                for sign in (1, -1)
            ]
        for weight, value in drawn:
            for name, part in derived(value, parameters).items():
                truth[name] += weight * part.square() / N
    found = Objective(model, criterion, (x, y), chunk_size=3).fisher_diagonal()
    assert_close(found, {name: part.detach() for name, part in truth.items()}, 1e-13)


@pytest.mark.parametrize("loss", ["cross-entropy", "mse", "binary"])
def test_sampled_fisher_diagonals_are_exact_in_the_mean(loss: str) -> None:
    model, criterion, y = of_outputs(loss)
    # Every sample forty times, with a draw of its own each.
    x = torch.randn(N, FEATURES).double()
    objective = Objective(model, criterion, (x.repeat(40, 1), y.repeat(40, *[1] * (y.ndim - 1))), chunk_size=40 * N)
    exact = objective.fisher_diagonal()
    drawn = [objective.fisher_diagonal(kind="sampled", seed=seed) for seed in range(16)]
    for name, mean in exact.items():
        stacked = torch.stack([one[name] for one in drawn])
        error = stacked.std(0) / len(drawn) ** 0.5
        assert float(((stacked.mean(0) - mean).abs() / (error + 1e-30)).max()) < 5, name
        assert float(error.max()) < 0.2 * float(mean.max())
    again = objective.fisher_diagonal(kind="sampled", seed=3)
    assert all(torch.equal(again[name], drawn[3][name]) for name in again)


@some_cases
def test_the_empirical_fisher_diagonal_is_the_mean_square(case: Case) -> None:
    objective = objective_of(case.build(), chunk_size=3)
    at = somewhere(objective)
    problem, parameters = loaded(case, at)
    mass = objective.sample_weights().tolist()
    truth = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for piece, weight in zip(problem.pieces, mass, strict=True):
        for name, part in derived(piece(problem.model), parameters).items():
            truth[name] += part.square() / max(weight, 1e-300) / problem.divisor
    found = objective.fisher_diagonal(at, kind="empirical")
    assert_close(found, {name: part.detach() for name, part in truth.items()}, 4 * ROUNDING[case.dtype])


def test_gram_matrices_are_of_what_layers_multiply() -> None:
    torch.manual_seed(4)
    model, x = pictures()
    inputs: dict[str, torch.Tensor] = {}
    modules = {name: one for name, one in model.named_modules() if isinstance(one, (nn.Linear, nn.Conv2d, nn.Conv1d))}
    for name, module in modules.items():
        module.register_forward_pre_hook(lambda _, given, name=name: inputs.__setitem__(name, given[0].detach()))
    found = Objective(model, nn.CrossEntropyLoss(), (x, torch.arange(N) % CLASSES), chunk_size=3).gram_inputs()
    assert list(found) == [f"{name}.weight" for name in modules]
    model(x)
    for name, module in modules.items():
        # The mean over samples of the squared output of a random kernel without bias is a quadratic form of the Gram.
        kernel = torch.randn_like(module.weight)
        with torch.no_grad():
            if isinstance(module, nn.Linear):
                squares = F.linear(inputs[name], kernel).square().sum(0)
            else:
                squares = module._conv_forward(inputs[name], kernel, None).square().transpose(0, 1).flatten(1).sum(1)
        gram = found[f"{name}.weight"]
        flat = kernel.flatten(1).unflatten(0, (gram.shape[0] if gram.ndim == 3 else 1, -1))
        forms = torch.einsum("goi,gij,goj->go", flat, gram if gram.ndim == 3 else gram[None], flat).flatten()
        assert torch.allclose(forms, squares / N, rtol=1e-12)


def test_a_layer_used_twice_has_one_gram_matrix() -> None:
    case = next(case for case in CASES if case.name == "tied weights")
    objective = objective_of(case.build(), chunk_size=3)
    x = case.build().data[0]
    hidden = torch.tanh(x @ objective.initial["inward.weight"].T)
    found = objective.gram_inputs()["inward.weight"]
    assert torch.allclose(found, (x.T @ x + hidden.T @ hidden) / N, rtol=1e-12)


class Twice(Dataset):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((FEATURES,), float(index)), index % CLASSES


REFUSED: dict[str, tuple[Callable[[], Any], type[TvgradError], str]] = {
    "an unknown kind": (
        lambda: Objective(mlp().float(), F.cross_entropy, Twice()).fisher_diagonal(kind="true"),  # type: ignore[arg-type]
        TvgradError,
        "no Fisher diagonal called 'true': choose from exact, sampled, empirical",
    ),
    "a loss without a likelihood": (
        lambda: Objective(mlp().float(), nn.MultiMarginLoss(), Twice()).fisher_diagonal(),
        UnsupportedModel,
        "MultiMarginLoss says no distribution of targets .* kind='empirical' takes any loss",
    ),
    "smoothed labels": (
        lambda: Objective(mlp().float(), nn.CrossEntropyLoss(label_smoothing=0.1), Twice()).fisher_diagonal(),
        UnsupportedModel,
        "CrossEntropyLoss says no distribution",
    ),
    "something allowed": (
        lambda: Objective(mlp().float(), F.cross_entropy, Twice(), allow=("dropout",)).sample_gradients(),
        UnsupportedModel,
        "single samples have no gradient of their own where dropout is allowed",
    ),
    "a forward that is the loss": (
        lambda: objective_of(next(c for c in CASES if c.name.endswith(".loss")).build()).outputs(),
        UnsupportedModel,
        "output is a LanguageOutput: pass a forward",
    ),
    "an output without rows": (
        lambda: Objective(
            mlp().float(), None, Twice(), forward=lambda net, batch: F.cross_entropy(net(batch[0]), batch[1])
        ).jvp(dict(mlp().named_parameters())),
        UnsupportedModel,
        r"output has shape \(\) for 7 samples",
    ),
    "another model's vector": (
        lambda: Objective(mlp().float(), F.cross_entropy, Twice()).jvp({"weight": torch.zeros(2)}),
        TvgradError,
        "do not fit the model",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_sentence(name: str) -> None:
    run, error, words = REFUSED[name]
    with pytest.raises(error, match=words) as raised:
        run()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [outputs.Outputs, sample_gradients.SampleGradients])
def test_examples(kind: type) -> None:
    """Those of `Objective` itself run with the public names."""
    tests = [test for test in doctest.DocTestFinder().find(kind, kind.__name__, globs={}) if test.examples]
    said: list[str] = []
    for test in tests:
        doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert tests
    assert said == []


@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_squares_of_linear_layers_make_no_tensor_for_every_sample(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks after the first are as large as those of a gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, CLASSES)).double()
    x, y = torch.randn(64, 5).double(), torch.randint(CLASSES, (64,))
    objective = Objective(model, nn.CrossEntropyLoss(), (x, y), chunk_size=32)
    monkeypatch.setattr(sample_gradients, "MOST_BYTES", 8 * 8 * sum(p.numel() for p in model.parameters()))
    sizes = []
    made = SampleRows.squares

    def noted(self: SampleRows, chunk: Any, mass: torch.Tensor, *rest: Any) -> Weights:
        sizes.append(len(mass))
        found = made(self, chunk, mass, *rest)
        assert self.compact
        return found

    monkeypatch.setattr(SampleRows, "squares", noted)
    found = objective.fisher_diagonal(kind=kind)
    assert sizes == [8, 32, 24]
    truth = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row, label in zip(x, y, strict=True):
        log_p = model(row).log_softmax(0)
        for c in range(CLASSES) if kind == "exact" else [int(label)]:
            weight = float(log_p[c].detach().exp()) if kind == "exact" else 1.0
            for name, part in derived(log_p[c], dict(model.named_parameters())).items():
                truth[name] += weight * part.square() / 64
    assert_close(found, truth, 1e-12)


@pytest.mark.parametrize("loss", [nn.MSELoss, nn.BCEWithLogitsLoss, nn.CrossEntropyLoss])
def test_a_sum_over_outputs_is_another_likelihood(loss: Callable[..., nn.Module]) -> None:
    """Of one sample a sum is taken for a mean by every other check, and the diagonal was that of the mean."""
    target = torch.full((1, 3), 0.5, dtype=torch.float64)
    one = Objective(nn.Linear(2, 3).double(), loss(reduction="sum"), (torch.ones(1, 2).double(), target))
    with pytest.raises(TvgradError, match=r"says no distribution of targets .* \(reduction='mean'\)"):
        one.fisher_diagonal()


def test_squares_of_half_precision_are_kept_in_more() -> None:
    generator = torch.Generator().manual_seed(0)
    model, x = nn.Linear(5, 3).half(), (1e-4 * torch.randn(8, 5, generator=generator)).half()
    data = x, torch.arange(8) % 3
    found = Objective(model, nn.CrossEntropyLoss(), data).fisher_diagonal()["weight"]
    wide = copy.deepcopy(model).double()
    truth = Objective(wide, nn.CrossEntropyLoss(), (x.double(), data[1])).fisher_diagonal()["weight"]
    assert found.dtype == torch.float32
    assert float((found - truth).norm() / truth.norm()) < 5e-3
