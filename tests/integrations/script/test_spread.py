"""Scripts whose parameters are spread over processes (FSDP2): each writes a part of one run, which is read as any."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data.distributed import DistributedSampler
from tvgrad.cli.main import main

from tests.integrations.script.script_runs import ONE_THREAD, SCRIPTS, TRACE, run
from tvgrad import Run
from tvgrad.errors import TvgradError
from tvgrad.integrations.script.continuation import Continuation
from tvgrad.integrations.script.spread_recording import spread_model
from tvgrad.record import spread_model as spread
from tvgrad.record.spread_writer import SpreadWriter
from tvgrad.report.tables import run_tables
from tvgrad.sketching.sketches import sketch
from tvgrad.store.kept_gradients import ALL_GRADIENTS

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo"),
]


def command(count: int, folder: Path, epochs: int = 2) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    return [*launcher, str(SCRIPTS / "fully_sharded.py"), str(folder), str(epochs)]


def trained_by_one(count: int, start: dict[str, torch.Tensor], epochs: int) -> list[dict[str, torch.Tensor]]:
    """The same training in this process, with whole parameters: the sums of its clipped gradients, epoch by epoch."""
    torch.manual_seed(0)
    inputs = torch.randn(48, 9, dtype=torch.float64)
    labels = inputs.sum(1).gt(0).long()
    shares = [DistributedSampler(inputs, num_replicas=count, rank=rank, seed=1) for rank in range(count)]
    net = nn.Sequential(nn.Linear(9, 17), nn.LayerNorm(17), nn.Linear(17, 17), nn.Tanh(), nn.Linear(17, 3)).double()
    net.load_state_dict(start)
    net[2].weight.requires_grad_(False)
    moving = {name: one for name, one in net.named_parameters() if one.requires_grad}
    optimizer = torch.optim.AdamW(moving.values(), lr=0.01)
    sums = []
    for epoch in range(epochs):
        total = {name: torch.zeros_like(one) for name, one in moving.items()}
        for share in shares:
            share.set_epoch(epoch)
        orders = [torch.tensor(list(share)).split(8 // count) for share in shares]
        for batches in zip(*orders, strict=True):
            optimizer.zero_grad()
            losses = [nn.functional.cross_entropy(net(inputs[batch]), labels[batch]) for batch in batches]
            torch.stack(losses).mean().backward()
            nn.utils.clip_grad_norm_(moving.values(), 0.2)
            for name, one in moving.items():
                assert one.grad is not None
                total[name] += one.grad
            optimizer.step()
        sums.append(total)
    return sums


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_process_writes_its_part_of_one_run(
    tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, out = tmp_path / "plain", tmp_path / "run"
    plain.mkdir()
    watched = run([*TRACE, "--out", str(out), "--", *command(count, plain)])
    assert watched.returncode == 0, watched.stderr
    assert watched.stdout == "trained\n"
    said = [line for line in watched.stderr.splitlines() if line.startswith("tvgrad")]
    assert len(said) == 1, watched.stderr
    assert "3 points, the last at epoch 2" in said[0]

    record = Run.open(out)
    assert record.epochs == [0, 1, 2]
    assert not record.problems()
    assert record.manifest.finished
    assert record.info["processes"] == count
    for epoch in record.epochs:
        truth = torch.load(plain / f"epoch{epoch}.pt", weights_only=True)
        whole = record.complete(epoch)
        assert set(whole) == set(truth)
        assert all(torch.equal(truth[name], tensor) for name, tensor in whole.items())
        parts = [path for path, _, _ in record.point(epoch).files["weights"].parts]
        assert len(parts) == count + 1
    for sums, epoch in zip(trained_by_one(count, record.complete(0), 2), (1, 2), strict=True):
        found = record.epoch_gradient(epoch)
        assert set(found) == set(sums)
        for name, tensor in found.items():
            assert torch.allclose(tensor, sums[name], rtol=1e-10, atol=1e-13)
    steps = record.steps()
    assert (steps["clip_factor"] < 1).any()
    assert steps["gradient_norm_before_clipping"].notna().all()

    tables = run_tables([record]).tables
    assert tables["norms"]["epoch_gradient_norm"].notna().any()
    main(["export", str(out), "--epoch", "2", "--out", str(tmp_path / "exported")])
    merge = ["merge", str(out), "--epoch", "2", "--method", "mean", "--alpha", "1"]
    main([*merge, "--out", str(tmp_path / "merged.safetensors")])
    from safetensors.torch import load_file

    merged = load_file(tmp_path / "merged.safetensors")
    assert all(torch.allclose(merged[name], tensor) for name, tensor in record.weights(2).items())
    capsys.readouterr()

    missing = next(path for path, _, _ in record.point(1).files["weights"].parts if "-00002-of-" in path)
    (out / missing).unlink()
    assert Run.open(out).problems() == [f"{missing} is missing"]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_sketches_and_norms_are_those_of_whole_gradients(
    tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    (tmp_path / "plain").mkdir()
    kept = ["--keep-gradients", "sketch:256", "--record", "epoch-gradients,gradient-norms"]
    watched = run([*TRACE, "--out", str(out), *kept, "--", *command(count, tmp_path / "plain")])
    assert watched.returncode == 0, watched.stderr
    assert "3 points, the last at epoch 2" in watched.stderr
    record = Run.open(out)
    assert not record.problems()
    for sums, epoch in zip(trained_by_one(count, record.complete(0), 2), (1, 2), strict=True):
        assert "epoch_gradient" not in record.point(epoch).files
        found, truth = record.gradient_sketch(epoch, "epoch_gradient"), sketch(sums, 256)
        assert found.entries == truth.entries > 256
        assert float((found.values - truth.values).norm()) <= 1e-10 * float(truth.values.norm())
        assert found.squares == pytest.approx(truth.squares, rel=1e-10)
        assert found.split is not None  # of parameters of few entries, which are kept as they are
        for name, tensor in sums.items():
            assert torch.allclose(found.split.values[name], tensor.reshape(-1), rtol=1e-10, atol=1e-13)
    steps = record.steps()
    clipped = steps["gradient_norm_before_clipping"] * steps["clip_factor"].fillna(1.0)
    assert steps["gradient_norm"].to_numpy() == pytest.approx(clipped.to_numpy(), rel=1e-5)  # torch adds 1e-6
    main(["verify", str(out)])
    main(["report", str(out), "--format", "csv", "--out", str(tmp_path / "tables")])
    capsys.readouterr()
    rows = pd.read_csv(tmp_path / "tables" / "sketches.csv")
    assert {"all", "0", "1"} <= set(rows["group"]), rows


WHOLE = """
import torch
from torch import nn
torch.manual_seed(0)
inputs = torch.randn(48, 9, dtype=torch.float64)
labels = inputs.sum(1).gt(0).long()
net = nn.Sequential(nn.Linear(9, 17), nn.LayerNorm(17), nn.Linear(17, 17), nn.Tanh(), nn.Linear(17, 3)).double()
net[2].weight.requires_grad_(False)
optimizer = torch.optim.AdamW([one for one in net.parameters() if one.requires_grad], lr=0.01)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=20)
for a, b in loader:
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(a), b).backward()
    optimizer.step()
"""


@pytest.mark.slow
def test_gradients_of_spread_parameters_are_measured_by_a_script_of_whole_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole.py"
    (tmp_path / "plain").mkdir()
    traced = run([*TRACE, "--out", str(out), "--", *command(2, tmp_path / "plain")])
    assert traced.returncode == 0, traced.stderr
    main(["verify", str(out)])
    assert "`tvgrad measure RUN --at 0 -- COMMAND` measures it" in capsys.readouterr().out
    whole.write_text(WHOLE)
    main(["measure", str(out), "--at", "0,2", "--", sys.executable, str(whole)])
    record = Run.open(out)
    assert [kept["kind"] for kept in record.info["measured_gradients"].values()] == ["exact full batch"] * 2
    scope: dict[str, Any] = {}
    exec(WHOLE, scope)
    for epoch in (0, 2):
        scope["net"].load_state_dict(record.complete(epoch))
        value = nn.functional.cross_entropy(scope["net"](scope["inputs"]), scope["labels"])
        names = [name for name, one in scope["net"].named_parameters() if one.requires_grad]
        truth = torch.autograd.grad(value, [dict(scope["net"].named_parameters())[name] for name in names])
        for name, tensor in zip(names, truth, strict=True):
            assert torch.allclose(record.gradient(epoch)[name], tensor, rtol=1e-11, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_leaves_finished_epochs(tmp_path: Path, killed: int) -> None:
    (tmp_path / "slow").touch()
    started = subprocess.Popen(
        [*TRACE, "--out", str(tmp_path / "run"), "--", *command(2, tmp_path, 40)],
        env=ONE_THREAD, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "epoch3.pt").exists():
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(int((tmp_path / f"pid{killed}").read_text()), signal.SIGKILL)
    _, err = started.communicate(timeout=60)
    assert started.returncode not in {0, None}
    assert not [line for line in err.splitlines() if line.startswith("tvgrad") and "Traceback" in line]
    record = Run.open(tmp_path / "run")
    assert record.epochs[:3] == [0, 1, 2]
    assert not record.problems()
    truth = torch.load(tmp_path / "epoch2.pt", weights_only=True)
    assert all(torch.equal(truth[name], tensor) for name, tensor in record.weights(2).items())


def differences(one: Run, other: Run) -> list[float]:
    """The largest difference of weights and of sums of gradients, over the largest entry of each tensor."""
    found = []
    for number in one.epochs:
        for kind in ("weights", "epoch_gradient") if number else ("weights",):
            with one.file(kind, number) as left, other.file(kind, number) as right:
                pairs = [(left.read(name), right.read(name)) for name in left.names]
            found += [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]
    return found


@pytest.mark.slow
def test_a_run_goes_on_with_any_number_of_processes(tmp_path: Path) -> None:
    parts, out, resumed = tmp_path / "parts", tmp_path / "run", [*TRACE, "--resume", "--out", str(tmp_path / "run")]
    parts.mkdir()
    (parts / "slow").touch()
    started = subprocess.Popen(
        [*resumed, "--", *command(2, parts, 40), "checkpoints"],
        env=ONE_THREAD, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not (parts / "epoch2.pt").exists():
        assert started.poll() is None
        time.sleep(0.1)
    time.sleep(0.4)  # in the second in which the script sleeps
    killed = time.monotonic()
    os.kill(int((parts / "pid1").read_text()), signal.SIGKILL)
    _, err = started.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert started.returncode == 1
    assert f"tvgrad: {out}: 3 points, the last at epoch 2\n" in err
    (parts / "slow").unlink()
    for count, epochs in ((4, 3), (1, 4), (2, 5)):
        done = run([*resumed, "--", *command(count, parts, epochs), "checkpoints"])
        assert done.returncode == 0, done.stderr
        assert f"goes on from epoch {epochs - 1}, whose weights the script begins with" in done.stderr
    found = Run.open(out)
    assert found.epochs == [0, 1, 2, 3, 4, 5]
    assert (found.info["resumed_at"], found.info["processes"]) == ([2, 3, 4], 2)
    assert not found.problems()
    assert found.manifest.finished
    whole = tmp_path / "whole"
    whole.mkdir()
    assert run([*TRACE, "--out", str(tmp_path / "alone"), "--", *command(1, whole, 5)]).returncode == 0
    assert max(differences(found, Run.open(tmp_path / "alone"))) < 1e-13

    other = run([*TRACE, "--resume", "--out", str(tmp_path / "alone"), "--", *command(2, whole, 6)])
    assert other.returncode == 2
    assert "the script begins with those of epoch 0: load the checkpoint that was saved there" in other.stderr


LIMIT = """
    save(epoch)
    if epoch == 1 and rank == 1:
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
"""


@pytest.mark.slow
def test_a_process_that_cannot_write_its_part_stops_the_recording_of_all(tmp_path: Path) -> None:
    script = tmp_path / "limited.py"
    text = (SCRIPTS / "fully_sharded.py").read_text()
    script.write_text(text.replace("    save(epoch)\n", LIMIT, 1))
    words = [str(script) if word.endswith("fully_sharded.py") else word for word in command(2, tmp_path, 3)]
    watched = run([*TRACE, "--out", str(tmp_path / "run"), "--", *words])
    assert watched.stdout == "trained\n", watched.stderr
    said = [line for line in watched.stderr.splitlines() if line.startswith("tvgrad")]
    assert "process 1 failed: its part of weights cannot be written" in " ".join(said)
    assert "the script goes on" in " ".join(said)
    record = Run.open(tmp_path / "run")
    assert record.epochs == [0, 1]
    assert not record.problems()


def test_processes_that_are_not_at_one_point_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    found = spread.SpreadModel({"a": DTensor((2,))})  # type: ignore[dict-item]
    others: list[tuple[str, str | None]] = [("epoch-0001", None), ("epoch-0001", None)]
    monkeypatch.setattr(found, "gathered", lambda _: others)
    found.agree("epoch-0001")
    writer = SpreadWriter.__new__(SpreadWriter)
    writer._model = found
    monkeypatch.setattr(found, "gathered", lambda own: [own, [4.0]])
    assert writer.whole_norms([{"gradient_norm": 3.0, "lr": 1.0}]) == [{"gradient_norm": 5.0, "lr": 1.0}]
    with pytest.raises(TvgradError, match="processes took 1 and 2 steps in one epoch"):
        writer.whole_norms([{"gradient_norm": 3.0}, {"gradient_norm": 1.0}])
    monkeypatch.setattr(found, "gathered", lambda _: others)
    with pytest.raises(TvgradError, match="process 0 is at epoch-0001 where process 0 is at epoch-0002"):
        found.agree("epoch-0002")
    others[1] = ("epoch-0001", "no room")
    with pytest.raises(TvgradError, match="process 1 failed: no room"):
        found.agree("epoch-0001")


def test_each_process_keeps_its_share() -> None:
    sizes = {f"layer{number}": 100 + number for number in range(12)} | {"embedding": 1000}
    owner = spread.owners(sizes, 4)
    load = Counter[int]()
    for name, rank in owner.items():
        load[rank] += sizes[name]
    assert max(load.values()) == 1000
    assert max(load[rank] for rank in range(4) if rank != owner["embedding"]) < 500
    assert spread.owners({"only": 5}, 4) == {"only": 0}


class DTensor:
    """Stands for PyTorch's: what is asked before a recording begins is its class's name and its mesh."""

    nbytes = 8

    def __init__(self, shape: tuple[int, ...]) -> None:
        size = 1
        for one in shape:
            size *= one
        self.device_mesh = SimpleNamespace(ndim=len(shape), shape=shape, size=lambda: size)

    def numel(self) -> int:
        return 1


class Share:
    """One of two processes, of which the other answers what is given."""

    rank, count = 0, 2

    def __init__(self, kept: list[str], other: list[Any]) -> None:
        self.kept, self.other = kept, other

    def whole(self, parts: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: parts(name).clone() for name in self.kept}

    def gathered(self, own: Any) -> list[Any]:
        return [own, self.other.pop(0)]

    tried = spread.SpreadModel.tried


def test_each_process_compares_what_it_keeps(traced: Callable[..., Run], tmp_path: Path) -> None:
    record = traced(tmp_path / "run")
    last, (kept, other) = record.epochs[-1], record.parameters

    def found(weights: dict[str, torch.Tensor], *others: Any) -> Continuation:
        share: Any = Share([kept], list(others))
        return Continuation.find(record.root, weights, record.unit, ALL_GRADIENTS, share)

    at_end, before = record.weights(last), record.weights(1)
    assert found(at_end | {other: at_end[other] + 1}, None, True).number == last  # that one is the other's to compare
    with pytest.raises(TvgradError, match="and the script begins with others: load the checkpoint"):
        found(at_end, None, False, None, {1})
    with pytest.raises(TvgradError, match=f"weights of epoch {last}, and the script begins with those of epoch 1: "):
        found(before, None, False, None, {0, 1})
    with pytest.raises(TvgradError, match="process 1 failed: nosuch is no run"):
        found(at_end, "nosuch is no run")


def test_what_is_not_recorded_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    whole, spread_out = torch.zeros(2), DTensor((4,))
    assert spread_model({"a": whole}) is None
    found = spread_model({"a": spread_out})  # type: ignore[dict-item]
    assert found is not None
    assert found.count == 4
    for parameters, said in (
        ({"a": spread_out, "b": whole}, "b is whole in each process and other parameters are spread over several"),
        ({"a": DTensor((2, 2))}, r"a is spread over a mesh of shape \(2, 2\) of 4 processes \(tensor parallelism, or"),
        ({"a": DTensor((2,))}, r"a is spread over a mesh of shape \(2,\) of 4 processes"),
    ):
        with pytest.raises(TvgradError, match=said):
            spread_model(parameters)  # type: ignore[arg-type]
