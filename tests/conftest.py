"""Fixtures that several test files share, and the time that a test may take."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

import tvgrad

# `tvgrad.cli` and `tvgrad.analyses` are the folders of this checkout, whether the package is installed from it or not.
tvgrad.__path__.append(str(Path(__file__).parents[1]))

SECONDS, SLOW_SECONDS = 120, 1800


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, unless `-m` says something of the tests for a GPU, and what the environment says of a terminal.

    Tests speak of the CPU's kernels to the bit.
    """
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # what is printed must not hang on the terminal, or the parallel workers, in which the tests are started
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        os.environ.pop(name, None)


# No test is timed: on a busy machine, or the first time that hypothesis builds its tables, drawing examples is slow.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No test waits for ever: pytest-timeout, where it is installed, ends it after this time."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            slow = item.get_closest_marker("slow") is not None
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS if slow else SECONDS))


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test draws the same numbers, alone or in company."""
    torch.manual_seed(1)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Test tensors are tiny: more threads only wait for each other, for minutes when the machine is shared."""
    torch.set_num_threads(1)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT interrupts the test and the processes that it starts, also in a background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
