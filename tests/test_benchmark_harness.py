"""The benchmark harness: verdicts, ratios and the table. The benchmarks themselves are run by `make bench`."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent / "benchmarks"


@pytest.fixture(scope="module")
def timing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("timing_of_benchmarks", FOLDER / "timing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


def test_verdicts(timing: ModuleType) -> None:
    most = timing.Figure("a", "b", [1.0, 3.0, 2.0], 2.0)
    assert (most.median, most.met) == (2.0, True)
    assert most.row == ("a", "b", "2", "1", "3", "at most 2", "met")
    assert timing.Figure("a", "b", [3.0], 2.0).row[-1] == "missed by 50%"
    least = timing.Figure("a", "b", [15.0], 20, least=True)
    assert least.row[-2:] == ("at least 20", "missed by 25%")
    assert timing.Figure("a", "b", [25.0], 20, least=True).met is True
    none = timing.Figure("a", "b", [123.456])
    assert none.met is None
    assert none.row == ("a", "b", "123", "123", "123", "", "")


def test_table(timing: ModuleType) -> None:
    lines = timing.figures_table([timing.Figure("a", "b", [1.0], 2.0)]).splitlines()
    assert len(lines) == 3
    assert len({line.count("|") for line in lines}) == 1


def test_ratios_are_taken_round_by_round(timing: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock on which the second competitor takes twice the time of the first, on a machine that gets slower.
    steps = itertools.chain.from_iterable((0, 1 + n, 0, 2 * (1 + n)) for n in itertools.count())
    now = itertools.accumulate(steps)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(now)))
    called: list[str] = []
    competitors = {"one": lambda: called.append("one"), "two": lambda: called.append("two")}
    found = timing.paired(competitors, rounds=4, warmup=0)
    assert called == ["one", "two"] * 4
    assert [timed.ratios for timed in found] == [[1.0] * 4, [2.0] * 4]
    assert timing.ratios(found, "one", "two") == [0.5] * 4
    assert timing.ratios(found, "one", "a peer that is not installed") is None


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.benchmarks", *words]
    return subprocess.run(command, cwd=FOLDER.parents[1], capture_output=True, text=True, check=False)


def test_an_unknown_benchmark_is_refused_in_a_sentence() -> None:
    done = run("gradients")
    assert done.returncode == 2
    assert "there is no benchmark 'gradients': choose among derivatives" in done.stderr
    assert run("recording", "--rounds", "0").returncode == 2


@pytest.mark.slow
def test_every_benchmark_runs_and_writes_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    done = run("--quick", "--docs", str(page))
    assert done.returncode == 0, done.stderr
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")][2:]
    for what in ("gradient", "Hessian-vector", "stall", "report pass", "spectral", "certificate", "script", "merge"):
        assert any(what in row.split("|")[1] for row in rows), what
    assert "the figures mean nothing" in page.read_text()
