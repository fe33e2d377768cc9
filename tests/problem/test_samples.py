"""Samples: every sample once, in order, however the data comes."""

from __future__ import annotations

import warnings
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from tests.cases import Noisy, Rows
from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import Recipe
from tvgrad.problem.samples import FINGERPRINT_SAMPLES, Samples, map_tensors, tensors_in
from tvgrad.vectors.algebra import difference
from tvgrad.vectors.parameters import norm

X, Y = torch.arange(20.0).reshape(10, 2), torch.arange(10)
PAIRS = list(zip(X, Y, strict=True))


def pair_collate(rows: list[Any]) -> Any:
    return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])


FORMS: dict[str, Callable[[], Samples]] = {
    "tensors": lambda: Samples((X, Y)),
    "list of two arrays": lambda: Samples([X.numpy(), Y.numpy()]),
    "TensorDataset": lambda: Samples(TensorDataset(X, Y)),
    "TensorDataset with collate": lambda: Samples(TensorDataset(X, Y), collate=pair_collate),
    "dataset": lambda: Samples(Rows(PAIRS)),
    "list of pairs": lambda: Samples(PAIRS),
    "Subset": lambda: Samples(Subset(TensorDataset(X, Y), range(10))),
    "loader": lambda: Samples(DataLoader(TensorDataset(X, Y), batch_size=4)),
    "loader with collate": lambda: Samples(DataLoader(Rows(PAIRS), batch_size=3, collate_fn=pair_collate)),
    "subset of twice the data": lambda: Samples((torch.cat([X, X]), torch.cat([Y, Y]))).subset(range(10, 20)),
}


@pytest.mark.parametrize("form", FORMS)
@given(size=st.integers(1, 14))
@settings(max_examples=8, deadline=None)
def test_chunks_hold_every_sample_once_in_order(form: str, size: int) -> None:
    samples = FORMS[form]()
    chunks = list(samples.chunks(size))
    assert torch.equal(torch.cat([chunk[0] for chunk in chunks]), X)
    assert torch.equal(torch.cat([chunk[1] for chunk in chunks]), Y)
    assert [len(chunk[0]) for chunk in chunks] == [min(size, 10 - start) for start in range(0, 10, size)]
    assert len(samples) == 10


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_subsets_of_subsets(form: str, data: st.DataObject) -> None:
    first = data.draw(st.lists(st.integers(0, 9), min_size=1))
    second = data.draw(st.lists(st.integers(0, len(first) - 1), min_size=1))
    samples = FORMS[form]()
    view = samples.subset(first).subset(torch.tensor(second))
    wanted = [first[index] for index in second]
    assert torch.equal(view.batch(0, len(view))[1], Y[wanted])
    assert torch.equal(torch.cat([chunk[0] for chunk in view.chunks(2)]), X[wanted])
    assert len(samples) == 10


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([10], "positions run from 0 to 9"),
        ([-1], "positions run from 0 to 9"),
        (torch.ones(10, dtype=torch.bool), "not by a tensor of torch.bool"),
        ([0.5], "whole numbers"),
        ([[0, 1]], r"shape \(1, 2\)"),
        ([], "the data is empty"),
    ],
)
def test_positions_that_are_none(indices: Any, words: str) -> None:
    with pytest.raises(TvgradError, match=words):
        Samples((X, Y)).subset(indices)


def test_a_dtype_is_for_floating_point_data_alone() -> None:
    for form in FORMS.values():
        inputs, targets = form().with_dtype(torch.bfloat16).with_dtype(None).batch(0, 3)
        assert (inputs.dtype, targets.dtype) == (torch.bfloat16, torch.int64)


def test_fingerprints_tell_data_apart() -> None:
    same = {Samples((X, Y)).fingerprint(), Samples(TensorDataset(X, Y)).fingerprint(), Samples((X, Y)).fingerprint()}
    assert len(same) == 1
    others = [(X + 1, Y), (X, Y.flip(0)), (X[:9], Y[:9]), (X.double(), Y), (X.reshape(10, 1, 2), Y)]
    prints = {Samples(other).fingerprint() for other in others}
    assert len(prints) == 5
    assert not prints & same
    assert same.pop().startswith("sha256:all:")
    assert Samples((X, Y)).subset(range(9)).fingerprint() == Samples((X[:9], Y[:9])).fingerprint()


@pytest.mark.parametrize("n", [1, 255, 256, 257, 511, 512, 1000])
def test_a_fingerprint_reads_a_limited_number_of_samples(n: int) -> None:
    read: list[int] = []

    class Counted(Rows):
        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return torch.tensor([float(index)]), 0

    text = Samples(Counted([0] * n)).fingerprint()
    assert len(read) <= FINGERPRINT_SAMPLES
    assert read == sorted(set(read))
    assert text.startswith("sha256:all:") == (n <= FINGERPRINT_SAMPLES) == (len(read) == n)


def test_tensors_of_nested_batches() -> None:
    Pair = namedtuple("Pair", ["a", "b"])  # noqa: PYI024
    batch = {"x": [torch.ones(1), (torch.zeros(2), "words")], "y": Pair(torch.ones(3), None), "n": 4}
    doubled = map_tensors(batch, lambda tensor: tensor * 2)
    assert [len(t) for t in tensors_in(batch)] == [1, 2, 3]
    assert isinstance(doubled["y"], Pair)
    assert doubled["x"][0].item() == 2
    assert doubled["x"][1][1] == "words"
    assert doubled["n"] == 4
    assert batch["x"][0].item() == 1


def test_a_callable_object_may_collate() -> None:
    """One that compares equal to nothing and has no hash."""

    class Collate:
        __hash__ = None

        def __call__(self, rows: list[Any]) -> Any:
            return pair_collate(rows)

    assert len(Samples(TensorDataset(X, Y), collate=Collate()).batch(0, 3)[0]) == 3


def test_strings_and_numbers_are_no_data() -> None:
    for nothing in ("data", 3, None, {"x": X}, np.float64(1.0)):
        with pytest.raises(TvgradError, match=r"data is a|has no length"):
            Samples(nothing)


def test_random_data_is_read_as_it_is() -> None:
    assert len(Samples(Noisy("torch")).batch(0, 4)[0]) == 4


def test_a_batch_is_moved_to_the_device_asked_for_and_cast_where_it_is_floating_point() -> None:
    samples = Samples((torch.ones(4, 2), torch.arange(4)), dtype=torch.float64)
    inputs, targets = samples.batch(1, 3, torch.device("meta"))
    assert (inputs.device.type, inputs.dtype, inputs.shape) == ("meta", torch.float64, (2, 2))
    assert (targets.device.type, targets.dtype) == ("meta", torch.int64)


def test_frames_and_series_of_pandas_are_data() -> None:
    frame = pd.DataFrame(X.numpy(), columns=["a", "b"], index=range(5, 15))
    samples = Samples((frame, pd.Series(Y.numpy(), index=range(5, 15))))
    assert len(samples) == 10
    assert all(torch.equal(one, other) for one, other in zip(samples.batch(2, 7), (X[2:7], Y[2:7]), strict=True))
    with pytest.raises(TvgradError, match="a Series with values that are not all numbers is no tensor"):
        Samples((frame, pd.Series(list("abcdefghij"))))
    with pytest.raises(TvgradError, match="data is a DataFrame alone"):
        Samples(frame)


def test_a_list_of_batches_is_refused_in_one_sentence() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=4)
    with pytest.raises(TvgradError, match=r"the data is a list of batches, .* pass \(inputs, targets\)"):
        Samples(list(loader))
    equal = list(DataLoader(TensorDataset(X, Y), batch_size=5))
    with pytest.raises(TvgradError, match="the data is a list of batches"):
        Objective(nn.Linear(2, 10), nn.CrossEntropyLoss(), equal)
    tagged = [(torch.randn(7, 2), torch.randn(7, 1)) for _ in range(4)]  # sequences with a label for each step
    assert Objective(nn.Linear(2, 1), nn.MSELoss(), tagged).gradient()


def test_float64_arrays_are_cast_to_the_models_dtype_and_this_is_said() -> None:
    model, data = nn.Linear(2, 10), (X.double().numpy(), Y.numpy())
    with pytest.warns(UserWarning, match="the data is float64 and the model float32: the data is cast to float32"):
        objective = Objective(model, nn.CrossEntropyLoss(), data)
    plain = Objective(model, nn.CrossEntropyLoss(), (X, Y)).gradient()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in objective.gradient().items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Objective(nn.Linear(2, 10).double(), nn.CrossEntropyLoss(), data)  # nothing to cast


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_in_narrow_integers_are_classes(dtype: torch.dtype) -> None:
    model = nn.Linear(2, 10)
    narrow = Objective(model, nn.CrossEntropyLoss(), (X, Y.to(dtype))).gradient()
    wide = Objective(model, nn.CrossEntropyLoss(), (X, Y)).gradient()
    assert all(torch.equal(tensor, wide[name]) for name, tensor in narrow.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_class_weights_follow_the_dtype(dtype: torch.dtype) -> None:
    weights = torch.arange(1.0, 11.0)
    recipe = Recipe(
        nn.Linear(2, 10), nn.CrossEntropyLoss(weight=weights), (X, Y), count=lambda batch: weights[batch[1]].sum()
    )
    gradient = recipe.objective(dtype).gradient()
    exact = recipe.objective(torch.float64).gradient()
    assert norm(difference(gradient, exact)) <= 16 * torch.finfo(dtype).eps * norm(exact)
    assert recipe.loss.weight.dtype == torch.float32  # type: ignore[union-attr] - the user's own stays as it is


def test_data_is_rounded_to_a_format_before_it_is_widened() -> None:
    x = torch.randn(10, 2)
    rounded = Samples((x, Y)).as_rounded_to(torch.bfloat16).with_dtype(torch.float64)
    assert torch.equal(rounded.batch(0, 10)[0], x.bfloat16().double())
    assert torch.equal(rounded.subset([3]).batch(0, 1)[0], x[3:4].bfloat16().double())
