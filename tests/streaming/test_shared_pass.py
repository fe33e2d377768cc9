"""Reports by several processes: the bits of one, whoever has which groups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from tvgrad.cli.main import main

import tvgrad
from tests.problem.test_ranks import ended, launched
from tvgrad.report.tables import run_tables
from tvgrad.streaming.shared_pass import SharedPass

if TYPE_CHECKING:
    from tvgrad.problem.crew import Crew

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo"),
]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 700), nn.Tanh(), nn.Linear(700, 300), nn.Tanh(), nn.Linear(300, 5))
    data = torch.randn(32, 40), torch.randint(5, (32,))
    optimizer, loss = torch.optim.SGD(net.parameters(), lr=0.1), nn.CrossEntropyLoss()
    objective = tvgrad.Objective(net, loss, data, chunk_size=32)
    with tvgrad.Recorder(tmp_path / "run", net, optimizer, objective) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            loss(net(data[0]), data[1]).backward()
            optimizer.step()
            recorder.end_epoch()
    return tmp_path / "run"


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_report_of_several_processes_has_the_bits_of_one(
    recorded: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = recorded.parent
    monkeypatch.chdir(folder)
    for name in ("alone", "together"):
        monkeypatch.setenv("TVGRAD_CACHE", str(folder / f"cache-{name}"))
        if name == "alone":
            main(["report", "run", "--out", name, "--format", "csv"])
            continue
        words = ("-m", "tvgrad", "report", "run", "--out", name, "--format", "csv")
        (first, *others) = ended(launched(count, *words, folder=folder))
        assert first[0] == 0, first[2]
        assert "files in together" in first[1]
        assert [one[:2] for one in others] == [(0, "")] * (count - 1)
    tables = sorted(path.name for path in (folder / "alone").glob("*.csv"))
    assert "directions.csv" in tables
    for table in tables:
        assert (folder / "alone" / table).read_bytes() == (folder / "together" / table).read_bytes(), table


def test_what_one_process_finds_all_end_with(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(recorded.parent)
    path = recorded / "weights" / "epoch-0002.safetensors"
    content = bytearray(path.read_bytes())
    content[-40] ^= 1  # the file of the second of two processes, or of the first: each has half of them
    path.write_bytes(bytes(content))
    (first, other) = ended(launched(2, "-m", "tvgrad", "report", "run", folder=recorded.parent))
    assert (first[0], other[0]) == (2, 0)
    assert first[2].startswith("Error: run/weights/epoch-0002.safetensors does not have the checksum")
    assert "Traceback" not in first[2] + other[2]


class Told:
    """The first of two processes, whose second one works when its share is asked for."""

    def __init__(self, rank: int) -> None:
        self.rank, self.count, self.shares = rank, 2, list[set[str]]()

    def tell(self, message: Any) -> Any:
        self.message = message
        return message

    def gathered(self, own: Any) -> list[Any]:
        if isinstance(own, dict):
            return [own, {}]
        other = SharedPass(cast("Crew", Told(1)))._own_share(*self.message[1:])
        self.shares = [set(own.sums), set(other.sums)]
        return [own, other]


def test_each_process_has_groups_of_its_own(recorded: Path) -> None:
    crew = Told(0)
    totals = dict[str, int]()
    over = SharedPass(cast("Crew", crew))
    found = run_tables([tvgrad.Run.open(recorded)], progress=lambda _, total: totals.update(own=total), over=over)
    alone = run_tables([tvgrad.Run.open(recorded)], progress=lambda _, total: totals.update(whole=total))
    assert 0 < totals["own"] < totals["whole"], "it reads its own groups alone"
    first, second = crew.shares
    assert first
    assert second
    assert not first & second
    assert first | second == set(alone.gram.groups) == set(found.gram.groups)
    assert np.array_equal(found.gram.matrix, alone.gram.matrix, equal_nan=True)
    assert found.gram.residuals == alone.gram.residuals
