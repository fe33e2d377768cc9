"""Names, groups and inner products of weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.cases import Counting, Tied, mlp
from tvgrad.errors import TvgradError
from tvgrad.vectors.parameters import (
    cosine,
    frozen_state,
    group_names,
    inner_product,
    norm,
    same_names_and_shapes,
    tied_names,
    trainable_parameters,
    weights_of,
)


def test_trainable_parameters_are_floating_point_and_counted_once() -> None:
    assert list(trainable_parameters(Tied())) == ["inward.weight", "head.weight", "head.bias"]
    assert tied_names(Tied()) == {"outward.weight": "inward.weight"}
    model = mlp()
    model[2].requires_grad_(False)
    model.register_parameter("whole", nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False))
    assert list(trainable_parameters(model)) == ["0.weight", "0.bias", "4.weight", "4.bias"]
    normed = parametrizations.weight_norm(nn.Linear(2, 3))
    assert list(trainable_parameters(normed)) == [
        "bias",
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    ]
    assert set(trainable_parameters(normed)) <= set(normed.state_dict())


def test_models_without_such_parameters() -> None:
    with pytest.raises(TvgradError, match=r"\(ReLU\) has no trainable parameters"):
        trainable_parameters(nn.ReLU())
    model = nn.Linear(2, 2)
    model.register_parameter("phase", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))
    with pytest.raises(TvgradError, match="phase is a complex parameter"):
        trainable_parameters(model)


def test_weights_are_copies() -> None:
    model = mlp()
    weights = weights_of(model)
    with torch.no_grad():
        model[0].bias.add_(1)
    assert not torch.equal(weights["0.bias"], model[0].bias)
    assert not any(tensor.requires_grad for tensor in weights.values())


def test_trainable_and_frozen_make_the_whole_checkpoint() -> None:
    model = nn.ModuleDict({"tied": Tied(), "counting": Counting(), "norm": nn.BatchNorm1d(3)})
    model["norm"].requires_grad_(False)
    frozen, trained = frozen_state(model), trainable_parameters(model)
    assert set(frozen) == {
        "counting.calls",
        "counting.scale",
        *(f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    }
    assert set(frozen) | set(trained) | set(tied_names(model)) == set(model.state_dict())
    assert not set(frozen) & set(trained)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("blocks.3.attn.qkv.weight", "blocks.3"),
        ("encoder.layers.11.mlp.0.bias", "encoder.layers.11"),
        ("head.weight", "head"),
        ("visual.proj", "visual"),
        ("scale", "scale"),
        ("0.weight", "0"),
        ("all.weight", "all (block)"),
        ("0.parametrizations.weight.original1", "0"),
    ],
)
def test_groups_are_the_blocks(name: str, group: str) -> None:
    assert group_names([name]) == {name: group}


def test_groups_by_pattern() -> None:
    names = ["a.q.weight", "a.k.weight", "b.bias", "all"]
    assert group_names(names, r"\.(q|k)\.") == dict(zip(names, ["q", "k", "other", "other"], strict=True))
    assert group_names(names, r"weight|bias|all") == dict(
        zip(names, ["weight", "weight", "bias", "all (block)"], strict=True)
    )
    with pytest.raises(TvgradError, match="is not a regular expression"):
        group_names(names, "(")


def pair(*tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    return {str(index): tensor for index, tensor in enumerate(tensors)}


def test_a_long_float32_vector_has_the_right_norm_and_cosine() -> None:
    """PyTorch's own float32 norm of one long vector is off by 1e-5 and more; equal entries have an exact answer.

    The tolerance is the worst case of a float64 sum of n terms: a hundred times finer than float32 can tell.
    """
    n = 5_000_000
    vector = pair(torch.full((n,), 0.1), torch.full((7,), 3.0))
    entry = float(torch.tensor(0.1))
    exact = math.sqrt(n * entry**2 + 63)
    assert norm(vector) == pytest.approx(exact, rel=n * 2**-53)
    assert inner_product(vector, vector) == pytest.approx(exact**2, rel=n * 2**-53)
    assert cosine(vector, vector) == pytest.approx(1.0, abs=n * 2**-53)
    other = pair(torch.full((n,), -0.1), torch.full((7,), 3.0))
    assert cosine(vector, other) == pytest.approx((63 - n * entry**2) / exact**2, rel=n * 2**-53)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_do_not_round_the_products(dtype: torch.dtype) -> None:
    left, right = torch.randn(999).to(dtype), torch.randn(999).to(dtype)
    exact = math.fsum(a * b for a, b in zip(left.tolist(), right.tolist(), strict=True))
    assert inner_product(pair(left), pair(right)) == pytest.approx(exact, rel=1e-12, abs=1e-12)
    assert norm(pair(left)) == pytest.approx(math.sqrt(math.fsum(a * a for a in left.tolist())), rel=1e-12)


def test_cosines_at_the_edges() -> None:
    zero, one = pair(torch.zeros(3)), pair(torch.ones(3))
    assert math.isnan(cosine(zero, one))
    assert cosine(one, pair(-torch.ones(3))) == -1
    for lost in (math.nan, math.inf):  # of a training that diverged
        assert math.isnan(cosine(one, pair(torch.full((3,), lost))))
    tiny = pair(torch.full((3,), 1e-120, dtype=torch.float64))
    assert cosine(tiny, tiny) == pytest.approx(1.0)
    assert norm({}) == inner_product({}, {}) == 0


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        ({"a": (2,)}, {"a": (2,)}, None),
        ({"a": (2,)}, {}, "'a' is in one"),
        ({}, {"b": (2,)}, "'b' is in one"),
        ({"a": (2,)}, {"a": (2, 1)}, r"'a' has shape (2,) in one and (2, 1) in the other"),
    ],
)
def test_names_and_shapes(left: dict[str, Any], right: dict[str, Any], words: str | None) -> None:
    made = [{name: torch.zeros(shape) for name, shape in side.items()} for side in (left, right)]
    found = same_names_and_shapes(*made)
    assert found is None if words is None else found.startswith(words)


def test_parameters_of_which_a_process_holds_a_part_are_refused() -> None:
    # Classes of these names stand for torch's own, which exist only where processes talk to each other.
    class FullyShardedDataParallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 1)

    class FlatParameter(nn.Parameter):
        pass

    with pytest.raises(TvgradError, match="the model is spread over several processes"):
        trainable_parameters(FullyShardedDataParallel())
    with pytest.raises(TvgradError, match="0 is spread over several processes"):
        trainable_parameters(nn.Sequential(FullyShardedDataParallel()))
    flat = nn.Module()
    flat.weight = FlatParameter(torch.zeros(3))
    with pytest.raises(TvgradError, match="weight is spread over several processes"):
        trainable_parameters(flat)
