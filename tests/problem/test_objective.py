"""Loss, gradient and Hessian-vector products against oracles that share no code with them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import eigsh
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.cases import (
    CASES,
    CLASSES,
    FEATURES,
    REFUSED,
    Attention,
    Case,
    Counting,
    MustFail,
    N,
    Problem,
    mlp,
    objective_parts,
)
from tvgrad.errors import TvgradError, UnsupportedModel
from tvgrad.numerics.device import resolve_device
from tvgrad.numerics.precision import full_precision
from tvgrad.problem.chunk_size import fastest_chunk_size
from tvgrad.problem.evaluations import Evaluations
from tvgrad.problem.objective import Objective

Weights = dict[str, torch.Tensor]

# Sums of a few hundred products of order one: some hundred half ulps, whatever the order of summation.
ROUNDING = {torch.float64: 1e-13, torch.float32: 2e-5}

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def objective_of(problem: Problem, **options: Any) -> Objective:
    return Objective(problem.model, problem.loss, problem.data, **(problem.options | options))


def direction(like: Mapping[str, torch.Tensor], seed: int = 3) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for name, t in like.items()
    }


def flat(vector: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([vector[name].double().flatten() for name in sorted(vector)])


def relative(found: Mapping[str, torch.Tensor], truth: Mapping[str, torch.Tensor]) -> float:
    assert set(found) == set(truth)
    difference = torch.linalg.vector_norm(flat(found) - flat(truth))
    return float(difference / torch.linalg.vector_norm(flat(truth)))


class Truth:
    """A plain loop over single samples, in float64, on a copy of the model that holds the weights in question."""

    def __init__(self, case: Case, at: Mapping[str, torch.Tensor]) -> None:
        problem = case.build(torch.float64)
        self.pieces, self.divisor, self.model = problem.pieces, problem.divisor, problem.model
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.move(at)

    def move(self, at: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(at[name])

    def value(self) -> float:
        return sum(float(piece(self.model).detach()) for piece in self.pieces) / self.divisor

    def gradient(self) -> Weights:
        sums = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        for piece in self.pieces:
            parts = torch.autograd.grad(piece(self.model), list(self.parameters.values()), allow_unused=True)
            for total, part in zip(sums.values(), parts, strict=True):
                total += 0 if part is None else part
        return {name: total / self.divisor for name, total in sums.items()}

    def hvp(self, vector: Mapping[str, torch.Tensor]) -> Weights:
        """Double backward through the scalar <gradient, vector>."""
        points = list(self.parameters.values())
        sums = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        with sdpa_kernel(SDPBackend.MATH):
            for piece in self.pieces:
                first = torch.autograd.grad(piece(self.model), points, create_graph=True, allow_unused=True)
                terms = [
                    (g * vector[n].double()).sum() for g, n in zip(first, self.parameters, strict=True) if g is not None
                ]
                second = torch.autograd.grad(sum(terms), points, allow_unused=True)
                for total, part in zip(sums.values(), second, strict=True):
                    total += 0 if part is None else part
        return {name: total / self.divisor for name, total in sums.items()}


def somewhere(objective: Objective) -> Weights:
    """Weights away from those of the model, so that using the model's own shows."""
    return {
        name: t + 0.1 * d
        for (name, t), d in zip(objective.initial.items(), direction(objective.initial, 8).values(), strict=True)
    }


@every_case
def test_agrees_with_a_loop_over_single_samples(case: Case) -> None:
    objective = objective_of(case.build(), chunk_size=3)
    tolerance = ROUNDING[case.dtype]
    for at in (None, somewhere(objective)):
        truth = Truth(case, at or objective.initial)
        vector = direction(objective.initial)
        value, gradient = objective.value_and_gradient(at)
        assert abs(objective.value(at) - truth.value()) <= tolerance * truth.value()
        assert abs(value - truth.value()) <= tolerance * truth.value()
        assert relative(gradient, truth.gradient()) <= tolerance
        if case.oracle_hvp:
            assert relative(objective.hvp(vector, at), truth.hvp(vector)) <= tolerance
        assert all(tensor.dtype == case.dtype for tensor in gradient.values())


def falls_with_the_square(error: Callable[[float], float], step: float, scale: float) -> None:
    """A central difference's error falls four times when the step is halved, or is rounding (divided by the step)."""
    coarse, fine = error(step), error(step / 2)
    if max(coarse, fine) > 1e-12 * scale / step:
        assert 3.5 < coarse / fine < 4.5, (coarse, fine)
    assert fine < 1e-2 * scale


@pytest.mark.parametrize("case", [c for c in CASES if c.dtype == torch.float64], ids=lambda case: case.name)
def test_agrees_with_finite_differences(case: Case) -> None:
    objective = objective_of(case.build(), chunk_size=N + 1)
    at = somewhere(objective)
    vector = {name: tensor / torch.linalg.vector_norm(flat(direction(at))) for name, tensor in direction(at).items()}
    truth = Truth(case, at)

    def moved(step: float) -> Weights:
        return {name: tensor + step * vector[name] for name, tensor in at.items()}

    def both(what: Callable[[], Any], step: float) -> tuple[Any, Any]:
        truth.move(moved(step))
        ahead = what()
        truth.move(moved(-step))
        return ahead, what()

    slope = float(flat(objective.gradient(at)) @ flat(vector))
    product = flat(objective.hvp(vector, at))

    def slope_error(step: float) -> float:
        ahead, behind = both(truth.value, step)
        return abs((ahead - behind) / (2 * step) - slope)

    def product_error(step: float) -> float:
        ahead, behind = both(truth.gradient, step)
        return float(torch.linalg.vector_norm((flat(ahead) - flat(behind)) / (2 * step) - product))

    falls_with_the_square(slope_error, case.step, 1.0)
    falls_with_the_square(product_error, case.step, float(torch.linalg.vector_norm(product)))


def functional_loss(objective: Objective, theta: Weights) -> torch.Tensor:
    """The mean loss at given weights for torch.func, in one chunk; buffers go in as copies."""
    state = {name: buffer.clone() for name, buffer in objective.batch_loss.named_buffers()}
    state |= {f"model.{name}": tensor for name, tensor in theta.items()}
    batch = objective.samples.batch(0, len(objective.samples))
    return torch.func.functional_call(objective.batch_loss, state, (batch,))


def forward_over_reverse(objective: Objective, vector: Weights, at: Weights) -> Weights:
    """A Hessian-vector product by forward over reverse differentiation: it shares no graph with the objective's."""
    with full_precision(objective.device, second_order=True):
        slope = torch.func.grad(lambda theta: functional_loss(objective, theta))
        product: Weights = torch.func.jvp(slope, (dict(at),), (dict(vector),))[1]
    return product


@every_case
def test_engines_agree(case: Case) -> None:
    """Double backward against forward over reverse, and autograd against torch.func."""
    objective = objective_of(case.build(), chunk_size=3)
    at = somewhere(objective)
    vector = direction(at)
    if not case.forward_mode:
        return
    assert relative(forward_over_reverse(objective, vector, at), objective.hvp(vector, at)) <= ROUNDING[case.dtype]
    value, plain = objective.value_and_gradient(at)
    functional, other = torch.func.grad_and_value(lambda theta: functional_loss(objective, theta))(dict(at))
    assert relative(plain, functional) <= ROUNDING[case.dtype]
    assert value == pytest.approx(float(other), rel=ROUNDING[case.dtype], abs=0)
    assert all(list(one) == list(at) for one in (plain, functional))


@every_case
def test_cutting_the_data_changes_nothing_but_rounding(case: Case) -> None:
    problem = case.build()
    whole = objective_of(problem, chunk_size=N)
    at = somewhere(whole)
    vector = direction(at)
    value, gradient = whole.value_and_gradient(at)
    product = whole.hvp(vector, at)
    for size in (1, 3, N + 5, None):
        cut = objective_of(problem, chunk_size=size)
        assert abs(cut.value(at) - value) <= ROUNDING[case.dtype] * value
        assert relative(cut.gradient(at), gradient) <= ROUNDING[case.dtype]
        assert relative(cut.hvp(vector, at), product) <= ROUNDING[case.dtype]


@every_case
def test_several_products_are_the_separate_ones(case: Case) -> None:
    objective = objective_of(case.build(), chunk_size=3)
    vectors = [direction(objective.initial, seed) for seed in range(3)]
    before = objective.evaluations.hvps
    together = objective.hvps(vectors)
    assert objective.evaluations.hvps == before + 3
    for vector, product in zip(vectors, together, strict=True):
        assert relative(product, objective.hvp(vector)) <= ROUNDING[case.dtype] / 10
    assert objective.hvps([]) == []


@contextmanager
def nothing_changes(model: nn.Module) -> Generator[None]:
    """Weights, buffers, flags, gradients, modes, generators and settings are the same afterwards."""

    def state() -> list[Any]:
        tensors = [*model.parameters(), *model.buffers()]
        return [
            [id(t) for t in tensors],
            [t.requires_grad for t in tensors],
            [id(t.grad) for t in model.parameters()],
            [m.training for m in model.modules()],
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            random.getstate(),
            str(np.random.get_state()),  # noqa: NPY002
            torch.get_default_dtype(),
        ]

    contents = [t.detach().clone() for t in [*model.parameters(), *model.buffers()]]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    generator = torch.get_rng_state()
    before = state()
    yield  # noqa: RUF075 - an error inside is the test's own, and goes through
    assert state() == before
    assert torch.equal(torch.get_rng_state(), generator)
    for old, new in zip(contents, [*model.parameters(), *model.buffers()], strict=True):
        assert torch.equal(old, new)
    for old, parameter in zip(gradients, model.parameters(), strict=True):
        assert old is None if parameter.grad is None else torch.equal(old, parameter.grad)


@every_case
@pytest.mark.parametrize("around", [nullcontext, torch.no_grad, torch.inference_mode], ids=["", "no_grad", "inference"])
def test_nothing_of_the_user_is_touched(case: Case, around: Callable[[], Any]) -> None:
    problem = case.build()
    first = next(p for p in problem.model.parameters() if p.requires_grad)
    first.grad = torch.full_like(first, 7.0)
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    try:
        with around(), torch.autocast("cpu", dtype=torch.bfloat16):
            with nothing_changes(problem.model):
                objective = objective_of(problem, chunk_size=3)
            at = somewhere(objective)
            vector = direction(at)
            for call in (
                lambda: objective.value(at),
                lambda: objective.gradient(at),
                lambda: objective.hvps([vector, at], at),
                lambda: objective.hessian_operator(at) @ np.ones(sum(tensor.numel() for tensor in at.values())),
                lambda: objective_of(problem).gradient(at),
                lambda: objective.subset([1, 0]).value_and_gradient(),
            ):
                with nothing_changes(problem.model):
                    call()
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", ["mlp tanh, float32", "transformer, float32"])
def test_autocast_and_reduced_precision_do_not_reach_recorded_numbers(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    plain = objective_of(case.build(), chunk_size=3)
    vector = direction(plain.initial)
    expected = [plain.gradient(), plain.hvp(vector)]
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            inside = objective_of(case.build(), chunk_size=3)  # bfloat16 would fail the check of the mean
            found = [inside.gradient(), inside.hvp(vector)]
            assert inside.value() == plain.value()
    finally:
        torch.set_float32_matmul_precision("highest")
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="PyTorch before 2.9 has one set of settings")
def test_newer_precision_settings_are_put_aside_and_restored() -> None:
    """A process that has set both the older and the newer settings cannot even ask for the older ones."""
    seen = []

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision))
        seen.append((torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.rnn.fp32_precision))
        return F.cross_entropy(output, target)

    get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    keys = [("generic", "all"), *[(b, o) for b in ("cuda", "mkldnn") for o in ("all", "matmul", "conv", "rnn")]]
    at_first = {key: get(*key) for key in keys}
    try:
        put("cuda", "matmul", "tf32")
        put("generic", "all", "tf32")
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        before = {key: get(*key) for key in keys}
        Objective(**objective_parts(loss=loss)).gradient()
        assert set(seen) == {("ieee", "ieee")}
        assert {key: get(*key) for key in keys} == before
        put("generic", "all", "none")  # what was inherited is inherited still, not set
        assert get("mkldnn", "conv") == at_first["mkldnn", "conv"]
    finally:
        for key, value in at_first.items():
            put(*key, value)
    assert torch.get_float32_matmul_precision() == "highest"


def test_layer_norm_products_are_right_where_jvp_of_jacrev_is_not() -> None:
    """`jvp(jacrev(f))` is off by a quarter for LayerNorm weights; every block is compared on its own."""
    case = next(case for case in CASES if case.name == "transformer, scaled_dot_product_attention")
    objective = objective_of(case.build(), chunk_size=3)
    vector = direction(objective.initial)
    truth = Truth(case, objective.initial).hvp(vector)
    for product in (objective.hvp(vector), forward_over_reverse(objective, vector, objective.initial)):
        for name in ("before.weight", "before.bias", "after.weight", "after.bias"):
            assert torch.allclose(product[name], truth[name], rtol=1e-10, atol=1e-13)


def test_weight_norm_products_are_right_where_double_backward_is_not() -> None:
    """The second derivative of PyTorch's fused weight norm is wrong; its formula is used instead, for every dim."""
    x, y = torch.randn(N, FEATURES, dtype=torch.float64), torch.arange(N) % CLASSES
    for dim in (0, 1, -1):
        layer = nn.Linear(FEATURES, CLASSES).double()
        model = nn.Sequential(nn.utils.parametrizations.weight_norm(layer, dim=dim), nn.Tanh())
        objective = Objective(model, F.cross_entropy, (x, y), chunk_size=3)
        vector, at, step = direction(objective.initial), objective.initial, 1e-5
        ahead, behind = ({n: at[n] + s * vector[n] for n in at} for s in (step, -step))
        difference = (flat(objective.gradient(ahead)) - flat(objective.gradient(behind))) / (2 * step)
        # The difference's own error: h^2 of the third derivative, and rounding over h.
        assert torch.allclose(flat(objective.hvp(vector)), difference, rtol=1e-6, atol=1e-8)
        assert torch.allclose(flat(forward_over_reverse(objective, vector, at)), difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_hessian_operator_is_the_dense_hessian(dtype: torch.dtype) -> None:
    """Columns against torch.func.hessian over flat weights, one at a time and together."""
    x, y = torch.randn(N, FEATURES, dtype=dtype), torch.arange(N) % CLASSES
    model = nn.Sequential(nn.Linear(FEATURES, 3), nn.Tanh(), nn.Linear(3, CLASSES)).to(dtype)
    objective = Objective(model, F.cross_entropy, (x, y), chunk_size=3)
    at = somewhere(objective)
    names = list(at)
    shapes, sizes = [at[name].shape for name in names], [at[name].numel() for name in names]

    def loss(theta: torch.Tensor) -> torch.Tensor:
        parts = [part.reshape(shape) for part, shape in zip(theta.split(sizes), shapes, strict=True)]
        return functional_loss(objective, dict(zip(names, parts, strict=True)))

    dense = torch.func.hessian(loss)(torch.cat([at[name].flatten() for name in names])).double().numpy()
    operator = objective.hessian_operator(at)
    size = sum(sizes)
    assert (operator.shape, operator.dtype) == ((size, size), np.float64)
    for matrix in (
        operator @ np.eye(size),
        np.stack([operator.matvec(row) for row in np.eye(size)]),
        operator.T @ np.eye(size),
    ):
        np.testing.assert_allclose(matrix, dense, rtol=0, atol=ROUNDING[dtype] * np.abs(dense).max())
    assert operator.matvec(np.ones((size, 1))).shape == (size, 1)
    largest = eigsh(operator, k=2, which="LA", return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(largest), np.linalg.eigvalsh(dense)[-2:], rtol=1e2 * ROUNDING[dtype])


def test_the_hessian_operator_keeps_its_weights_and_refuses_what_is_not_finite() -> None:
    objective = Objective(**objective_parts(), chunk_size=3)
    at = {name: tensor.clone() for name, tensor in objective.initial.items()}
    operator = objective.hessian_operator(at)
    ones = np.ones(operator.shape[0])
    before = operator @ ones
    for tensor in at.values():
        tensor.add_(1.0)
    np.testing.assert_array_equal(operator @ ones, before)
    with pytest.raises(TvgradError, match="the Hessian is not finite"):
        operator @ np.full_like(ones, np.inf)


def test_unequal_batches_weigh_by_their_samples() -> None:
    """Means of chunks of 3, 3 and 1 samples, averaged with equal weights, are another number."""
    problem = CASES[0].build()
    objective = objective_of(problem, chunk_size=3)
    chunks = [objective.subset(range(start, min(start + 3, N))) for start in range(0, N, 3)]
    means = [chunk.gradient() for chunk in chunks]
    equal = {name: sum(mean[name] for mean in means) / 3 for name in objective.initial}
    weighed = {name: sum(m[name] * len(c.samples) for m, c in zip(means, chunks, strict=True)) / N for name in equal}
    assert relative(objective.gradient(), weighed) <= ROUNDING[torch.float64]
    assert relative(equal, weighed) > 1e-2


def test_reentrant_checkpointing_is_refused_with_the_remedy() -> None:
    objective = Objective(**objective_parts(Attention(direct=True, checkpointed=True)), chunk_size=3)
    for call in (objective.gradient, lambda: objective.hvp(objective.initial)):
        with pytest.raises(UnsupportedModel, match=r"use_reentrant=True.*use_reentrant=False"):
            call()


def test_checkpointed_model_is_differentiated_at_the_weights_given() -> None:
    """Activations are recomputed during the backward pass: with the model's own weights, were they back by then."""
    plain = Attention(direct=True)
    saving = Attention(direct=True, checkpointed=False)
    saving.load_state_dict(plain.state_dict())
    x, y = torch.randn(N, FEATURES), torch.arange(N) % CLASSES
    one, other = (Objective(model, F.cross_entropy, (x, y), chunk_size=3) for model in (plain, saving))
    at = somewhere(one)
    for call in (lambda o: o.gradient(at), lambda o: o.hvp(at, at)):
        assert relative(call(other), call(one)) < 1e-6


class NoSecond(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * ctx.saved_tensors[0].cos()


class Flash(nn.Module):
    """Insists on a kernel without second derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Attention(direct=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return self.inner(x)


class OnceDifferentiable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return NoSecond.apply(self.head(x))


@pytest.mark.parametrize("model", [Flash, OnceDifferentiable])
def test_missing_second_derivatives_are_named(model: type[nn.Module]) -> None:
    objective = Objective(**objective_parts(model()), chunk_size=3)
    objective.gradient()
    with pytest.raises(UnsupportedModel, match=r"lacks the derivative that is needed .*plain implementation"):
        objective.hvp(objective.initial)


@pytest.mark.parametrize("wanted", REFUSED, ids=lambda wanted: wanted.name)
def test_refused_with_cause_and_remedy(wanted: MustFail) -> None:
    parts = wanted.make()
    generators = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    with pytest.raises(TvgradError, match=wanted.cause) as caught:
        Objective(**parts)
    assert type(caught.value) is wanted.error
    caught.match(wanted.remedy)
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (random.getstate(), str(np.random.get_state())) == generators[1:]  # noqa: NPY002


def test_evaluations_count_passes_over_the_data() -> None:
    objective = Objective(**objective_parts(), chunk_size=2)
    assert objective.evaluations == Evaluations()
    objective.value()
    objective.gradient()
    objective.value_and_gradient()
    objective.hvp(objective.initial)
    objective.hvps([objective.initial] * 4)
    objective.subset([1, 2]).gradient()
    assert objective.evaluations == Evaluations(values=1, gradients=3, hvps=5)
    before = objective.evaluations.copy()
    objective.hessian_operator() @ np.zeros((sum(tensor.numel() for tensor in objective.initial.values()), 2))
    assert objective.evaluations - before == Evaluations(hvps=2)
    assert before + (objective.evaluations - before) == objective.evaluations


def test_subset_is_the_objective_of_those_samples() -> None:
    parts = objective_parts()
    x, y = parts["data"]
    objective = Objective(**parts, chunk_size=2)
    picked = [5, 0, 3]
    other = Objective(parts["model"], F.cross_entropy, (x[picked], y[picked]), chunk_size=2)
    view = objective.subset(picked)
    assert all(torch.equal(view.gradient()[name], g) for name, g in other.gradient().items())
    assert len(objective.samples) == N


def test_chunk_size_is_measured_once_and_shared_with_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        "tvgrad.problem.objective.fastest_chunk_size", lambda *given: calls.append(1) or fastest_chunk_size(*given)
    )
    objective = Objective(**objective_parts())
    for index in range(4):
        objective.subset([index]).gradient()
    assert len(calls) == 1
    objective.use_chunk_size(None)
    assert objective.chunk_size == 7
    objective.use_chunk_size(2)
    assert objective.chunk_size == 2


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_measuring_stops_where_memory_ends(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    x, y = torch.randn(400, FEATURES), torch.arange(400) % CLASSES
    objective = Objective(**objective_parts(data=(x, y)))
    plain = Objective._chunk_gradient

    def limited(self: Objective, weights: Weights, chunk: Any) -> tuple[Weights, torch.Tensor]:
        if len(chunk[1]) > 16:
            raise error
        return plain(self, weights, chunk)

    monkeypatch.setattr(Objective, "_chunk_gradient", limited)
    assert objective.chunk_size == 16

    def broken(self: Objective, weights: Weights, chunk: Any) -> tuple[Weights, torch.Tensor]:
        raise RuntimeError("something else")

    monkeypatch.setattr(Objective, "_chunk_gradient", broken)
    with pytest.raises(RuntimeError, match="something else"):
        Objective(**objective_parts()).value()


def test_weights_that_do_not_fit_are_refused() -> None:
    objective = Objective(**objective_parts())
    short = {name: t for name, t in objective.initial.items() if name != "0.bias"}
    with pytest.raises(TvgradError, match=r"'0.bias' is in one and not in the other"):
        objective.gradient(short)
    with pytest.raises(TvgradError, match=r"'0.bias' has shape \(6,\) in one and \(2,\)"):
        objective.hvp(objective.initial | {"0.bias": torch.zeros(2)})


def test_initial_weights_are_those_at_construction() -> None:
    model = mlp().float()
    objective = Objective(**objective_parts(model))
    before = objective.value()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert objective.value() == before
    assert objective.value(dict(model.named_parameters())) != before


def test_allowed_dropout_is_one_fixed_draw() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 40), nn.Dropout(0.5), nn.Linear(40, CLASSES))
    objective = Objective(**objective_parts(model), chunk_size=3, allow=["dropout"])
    with nothing_changes(model):
        first = objective.value_and_gradient()
    torch.rand(3)
    again = objective.value_and_gradient()
    assert first[0] == again[0] == pytest.approx(objective.value())
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])
    assert objective.allowed == ("dropout",)


def test_allowed_batch_statistics_leave_the_buffers_alone() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.Linear(6, CLASSES))
    objective = Objective(**objective_parts(model), chunk_size=N, allow=["batchnorm"])
    with nothing_changes(model):
        objective.gradient()
        objective.hvp(objective.initial)
        objective.value()


def test_a_buffer_counted_in_eval_mode_stays() -> None:
    model = Counting().float().eval()
    Objective(**objective_parts(model), chunk_size=3).gradient()
    assert model.calls == 0


def test_a_chunk_that_weighs_nothing_is_left_out_and_a_data_set_that_does_is_refused() -> None:
    case = next(case for case in CASES if case.name == "language model, dict batches")
    problem = case.build()
    objective = objective_of(problem, chunk_size=1)
    assert np.isfinite(objective.value())
    part = objective.subset([3])  # a mini-batch of which nothing counts: PyTorch's loss is a NaN, its gradient 0
    assert np.isnan(part.value())
    for vector in (part.gradient(), part.hvp(objective.initial)):
        assert vector.keys() == objective.initial.keys()
        assert all(not tensor.any() for tensor in vector.values())
    with pytest.raises(TvgradError, match=r"count.batch. is 0 for 1 samples from all over the data"):
        Objective(problem.model, problem.loss, objective.samples.subset([3]), **problem.options, chunk_size=1)


def test_resolve_device() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto", mlp()).type in {"cpu", "cuda"}


def test_a_loss_linear_in_the_weights_has_no_curvature() -> None:
    parts = objective_parts(nn.Linear(FEATURES, CLASSES), loss=lambda out, y: out.mean())
    objective = Objective(**parts, chunk_size=3)
    assert all(not product.any() for product in objective.hvp(objective.initial).values())
    assert not any(product.any() for one in objective.hvps([objective.initial] * 2) for product in one.values())


def test_a_gradient_that_shares_memory_is_not_written_to() -> None:
    """The gradient of a sum is one number, expanded."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.ones(4, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.value

    objective = Objective(**objective_parts(Constant(), loss=lambda out, y: out.sum()), chunk_size=3)
    assert objective.gradient()["value"].tolist() == [1, 1, 1, 1]


def test_model_is_not_copied_on_its_own_device() -> None:
    model = mlp().float()
    assert Objective(**objective_parts(model), device="cpu").model is model
    assert copy.deepcopy(model) is not model


class Small(nn.Module):
    """Runs out of memory where more than so many samples are evaluated with gradients of gradients, or at all."""

    products = gradients = 10**6

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3).double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        most = self.products if torch.backends.cuda.math_sdp_enabled() and not flash_enabled() else self.gradients
        if len(inputs) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.inner(inputs).tanh()


def flash_enabled() -> bool:
    """Products run under the kernel with second derivatives alone."""
    return bool(torch.backends.cuda.flash_sdp_enabled())


def test_products_take_smaller_chunks_where_the_memory_does_not_suffice() -> None:
    torch.manual_seed(0)
    model, data = Small(), (torch.randn(29, 4).double(), torch.randint(3, (29,)))
    objective = Objective(model, nn.CrossEntropyLoss(), data, chunk_size=29)
    vector = objective.gradient()
    whole = objective.hvp(vector)
    model.products = 8
    sizes = []
    model.register_forward_hook(lambda module, given, output: sizes.append(len(given[0])))
    less = objective.hvp(vector)
    assert sizes == [7, 7, 7, 7, 1]
    assert all(torch.allclose(less[name], one, rtol=1e-13, atol=1e-16) for name, one in whole.items())
    sizes.clear()
    objective.hvp(vector)
    assert sizes == [7, 7, 7, 7, 1], "what does not fit is not tried again"
    assert objective.chunk_size == 29, "gradients keep their size"
    model.products = 0
    with pytest.raises(TvgradError, match="not even one sample at a time fits the memory"):
        objective.hvp(vector)
    model.gradients = 28
    with pytest.raises(TvgradError, match="29 samples at a time do not fit the memory"):
        objective.gradient()
