"""Fixtures that several test files share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test draws the same numbers, alone or in company."""
    torch.manual_seed(1)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Test tensors are tiny: more threads only wait for each other, for minutes when the machine is shared."""
    torch.set_num_threads(1)
