"""Objectives of models that fully_shard has spread: the numbers of whole ones, and the model as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import tvgrad
from tests.problem.test_ranks import MODELS, ended, launched, script

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo"),
]

HELPERS = """
import copy
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

def apart(found, truth):
    whole = {name: one.full_tensor() if hasattr(one, "full_tensor") else one for name, one in found.items()}
    assert list(whole) == list(truth)
    return max(float((whole[name] - one).norm() / one.norm().clamp(min=1e-300)) for name, one in truth.items())

def spread(model, **options):
    found = copy.deepcopy(model)
    for module in found.modules():
        if isinstance(module, (nn.Linear, nn.TransformerEncoderLayer)) and module is not found:
            if not any(hasattr(one, "_get_fsdp_state") for one in module.modules()):
                fully_shard(module, **options)
    fully_shard(found, **options)
    return found

def parts(model):
    return {name: one.detach().to_local().clone() for name, one in model.named_parameters()}
"""
NUMBERS = """
for name, (model, loss, (x, y), options) in CASES.items():
    if name == "vit" and count > 2:
        continue
    model, x = model.double(), x.double() if x.is_floating_point() else x
    model_spread = fully_shard(copy.deepcopy(model)) if name == "gpt" else spread(model)
    before = parts(model_spread)
    for chunk in (2,) if name == "vit" else (2, 100):
        whole = tvgrad.Objective(model, loss, (x, y), chunk_size=chunk, **options)
        at = {n: one + 0.1 for n, one in whole.initial.items()}
        vectors = [whole.gradient(), {n: torch.ones_like(p) for n, p in whole.initial.items()}]
        value, gradient = whole.value_and_gradient(at)
        products = whole.hvps(vectors, at)
        for way, kind, bound in (("gathered", "exact", 1e-12), ("differences", "estimate", 1e-6)):
            objective = tvgrad.SpreadObjective(
                model_spread, loss, (x, y), chunk_size=chunk, products=way, **options)
            assert objective.products_are == kind
            found, spread_gradient = objective.value_and_gradient(at)
            assert abs(found - value) < 1e-12 * abs(value) > 0
            assert abs(objective.value() - whole.value()) < 1e-12
            assert apart(spread_gradient, gradient) < 1e-12, (name, chunk)
            assert all(type(one).__name__ == "DTensor" for one in spread_gradient.values())
            off = max(apart(one, truth) for one, truth in zip(objective.hvps(vectors, at), products))
            assert off < bound, (name, chunk, way, off)
            assert (off > 1e-14) or way == "gathered", "differences are no second derivatives"
            again = objective.hvp({n: one for n, one in spread_gradient.items()}, at)
            assert apart(again, whole.hvp(gradient, at)) < bound
    for n, one in parts(model_spread).items():
        assert torch.equal(one, before[n]) and model_spread.get_parameter(n).grad is None
    with tvgrad.gathered(model_spread) as here:
        inside = tvgrad.Objective(here, loss, (x, y), chunk_size=2, group=group, **options)
        assert apart(inside.hvp(vectors[0], at), products[0]) < 1e-12
    try:
        inside.gradient()
        raise AssertionError("given weights would be replaced by the model's own")
    except tvgrad.TvgradError as error:
        assert "tvgrad.SpreadObjective" in str(error)
from tvgrad.vectors.parameters import cosine, inner_product, norm
assert abs(norm(spread_gradient) - norm(gradient)) < 1e-12 * norm(gradient)
assert abs(cosine(spread_gradient, again) - cosine(gradient, whole.hvp(gradient, at))) < 1e-6
assert abs(inner_product(spread_gradient, spread_gradient) - norm(gradient) ** 2) < 1e-12 * norm(gradient) ** 2
print(f"done {rank}", flush=True)
"""


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_spread_models_have_the_numbers_of_whole_ones(tmp_path: Path, count: int) -> None:
    processes = launched(count, str(script(tmp_path, MODELS + HELPERS + NUMBERS)), folder=tmp_path)
    for rank, (code, out, err) in enumerate(ended(processes)):
        assert code == 0, err
        assert out == f"done {rank}\n"


TRAININGS = """
class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)
    def forward(self, x):
        inner = lambda t: torch.tanh(self.second(torch.tanh(self.first(t))))
        return self.last(torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=False)) * self.scale[0]

torch.manual_seed(0)
x, y, loss = torch.randn(29, 8).double(), torch.randint(2, (29,)), nn.CrossEntropyLoss()
model = Deep().double()
whole = tvgrad.Objective(model, loss, (x, y), chunk_size=4)

def trained(measure, prepare=lambda found: None, **options):
    found = spread(model, **options)
    prepare(found)
    optimizer = torch.optim.AdamW(found.parameters(), lr=0.01)
    for step in range(3):
        loss(found(x[rank::count]), y[rank::count]).backward()
        if measure and step == 1:
            objective = tvgrad.SpreadObjective(found, loss, (x, y), chunk_size=4)
            assert apart(objective.gradient(whole.initial), whole.gradient()) < 1e-13
            assert apart(objective.hvp(whole.initial, whole.initial), whole.hvp(whole.initial)) < 1e-12
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            found(x[:2])
    return parts(spread(model)) | {n: one.to_local().clone() for n, one in found.state_dict().items()}

for options in ({}, {"reshard_after_forward": False}):
    left, right = trained(False, **options), trained(True, **options)
    assert all(torch.equal(one, right[n]) for n, one in left.items()), "measuring changes nothing"

def factors(found):
    for module in found.modules():
        if hasattr(module, "set_gradient_divide_factor"):
            module.set_gradient_divide_factor(5.0)
trained(True, factors)

def refused(prepare, products="auto", **options):
    found = spread(model, **options)
    prepare(found)
    try:
        tvgrad.SpreadObjective(found, loss, (x, y), chunk_size=4, products=products).gradient()
    except tvgrad.TvgradError as error:
        print(error, flush=True)

def unsent(found):
    found.set_requires_gradient_sync(False)
    loss(found(x), y).backward()

def broken(found):
    if rank == 1:
        with torch.no_grad():
            found.first.weight.to_local().fill_(float("nan"))

refused(lambda found: None, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
refused(unsent)
refused(lambda found: found.last.weight.register_post_accumulate_grad_hook(lambda one: None))
refused(broken)
def elsewhere(found):
    at = {n: one.full_tensor() + rank for n, one in found.named_parameters() if n != "scale"}
    for ask in (lambda o: o.gradient(at), lambda o: o.hvp(at)):
        try:
            ask(tvgrad.SpreadObjective(found, loss, (x, y), chunk_size=4))
        except tvgrad.TvgradError as error:
            print(error, flush=True)
elsewhere(spread(model))
wanted, x = x, x + rank
refused(lambda found: None)
x = wanted
loss = nn.CrossEntropyLoss(label_smoothing=0.1 * rank)
refused(lambda found: None)
loss = nn.CrossEntropyLoss()
refused(lambda found: None, ("gathered", "differences")[rank])
refused(lambda found: None, mp_policy=MixedPrecisionPolicy(output_dtype=torch.float32))
loss = lambda output, target: nn.functional.cross_entropy(output, target, reduction="sum")
refused(lambda found: None)
"""
REFUSALS = (
    "fully_shard has a policy of mixed precision (param_dtype is bfloat16), and",
    "gradients are being accumulated that no process has sent yet (set_requires_gradient_sync(False)): compute",
    "something is done with the gradient of last.weight as soon as there is one",
    "first.weight of the pretrained weights is not finite (nan)",
    "the processes have different weights: give whole tensors that are the same in all of them, or DTensors",
    "the processes have different vectors: give whole tensors that are the same in all of them, or DTensors",
    "process 1 has another data set than process 0",
    "process 1 has another loss of the first samples than process 0",
    "the processes have different products=['gathered', 'differences']: give the same in all of them",
    "fully_shard has a policy of mixed precision (output_dtype is float32), and",
    "the gradient of a batch is not the mean of the gradients of its parts weighted by samples",
)


def test_measuring_changes_no_training_and_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    processes = launched(2, str(script(tmp_path, HELPERS + TRAININGS)), folder=tmp_path)
    for rank, (code, out, err) in enumerate(ended(processes)):
        assert code == 0, err
        for line, beginning in zip(out.splitlines(), REFUSALS, strict=True):
            first = "process 1 failed: " if beginning.startswith("first.weight") and rank == 0 else ""
            assert line.startswith(first + beginning)


ALONE = """
torch.manual_seed(0)
x, y = torch.randn(9, 8).double(), torch.randint(2, (9,))

class Failing(nn.Linear):
    broken = False
    def forward(self, x):
        if self.broken and rank == 1:
            raise ValueError("of one process")
        return super().forward(x)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = Failing(8, 8), nn.Linear(8, 2)
    def forward(self, x):
        return self.last(self.first(x).tanh())

found = spread(Net().double())
objective = tvgrad.SpreadObjective(found, nn.CrossEntropyLoss(), (x, y), chunk_size=2)
Failing.broken = True
try:
    objective.gradient()
except (tvgrad.TvgradError, ValueError) as error:
    print(type(error).__name__, error, flush=True)
"""


def test_a_process_that_fails_alone_is_told_of(tmp_path: Path) -> None:
    first, second = ended(launched(2, str(script(tmp_path, HELPERS + ALONE)), folder=tmp_path))
    assert second[1] == "ValueError of one process\n"
    assert first[1].startswith("LostRank the connection to another process is lost (")
    assert (first[0], second[0]) == (0, 0)


def test_whole_models_are_sent_elsewhere() -> None:
    model, data = nn.Linear(2, 2), (torch.randn(4, 2), torch.randint(2, (4,)))
    with pytest.raises(tvgrad.TvgradError, match=r"fully_shard has not spread this model: use tvgrad\.Objective"):
        tvgrad.SpreadObjective(model, nn.CrossEntropyLoss(), data)
    with pytest.raises(tvgrad.TvgradError, match="products='exact': choose from auto, gathered, differences"):
        tvgrad.SpreadObjective(model, nn.CrossEntropyLoss(), data, products="exact")  # type: ignore[arg-type]
