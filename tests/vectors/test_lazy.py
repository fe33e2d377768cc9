"""Lazy combinations, and sums in blocks, against plain sums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tvgrad.files.lazy_weights import LazyWeights
from tvgrad.vectors import algebra
from tvgrad.vectors.algebra import add_scaled, combination
from tvgrad.vectors.lazy import LazyCombination
from tvgrad.vectors.parameters import norm


def test_a_lazy_combination_of_files_is_the_combination(tmp_path: Path) -> None:
    vectors = [{"w": torch.randn(3, 4), "v": torch.randn(2).double()} for _ in range(2)]
    for place, vector in enumerate(vectors):
        save_file(vector, tmp_path / f"{place}.safetensors")
    files = [LazyWeights(tmp_path / f"{place}.safetensors") for place in range(2)]
    weights = {"w": 0.5, "v": -2.0}
    lazy, expected = (
        LazyCombination((2.0, files[0]), (weights, files[1])),
        combination((2.0, vectors[0]), (weights, vectors[1])),
    )
    assert len(lazy) == 2
    assert set(lazy) == set(expected)
    assert all(torch.equal(lazy[name], tensor) for name, tensor in expected.items())
    assert norm(lazy) == norm(expected)
    with pytest.raises(KeyError):
        files[0]["missing"]


def test_sums_in_blocks_are_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    start, vector = torch.randn(5, 6).double(), torch.randn(6, 5).T
    total = {"w": start.clone()}
    monkeypatch.setattr(algebra, "BLOCK", 7)
    add_scaled(total, {"w": vector}, -3.0)
    assert torch.equal(total["w"], start.add(vector.double(), alpha=-3.0))
    turned = {"w": start.T.contiguous().T.clone(memory_format=torch.preserve_format)}
    assert not turned["w"].is_contiguous()
    add_scaled(turned, {"w": vector}, -3.0)
    assert torch.equal(turned["w"], total["w"])
