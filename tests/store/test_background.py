"""Writing in a thread: what is listed, in which order, and where errors come out."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from tvgrad import Recorder, Run, TvgradError
from tvgrad.errors import DiskFull
from tvgrad.files.writing import Stream
from tvgrad.store.background import BackgroundWriter, may_be_a_writers, writers_at_rest
from tvgrad.store.manifest import Manifest, Parameter
from tvgrad.store.writer import RunWriter


def opened(directory: Path) -> BackgroundWriter:
    manifest = Manifest({"name": "test"}, "epoch", {"w": Parameter((3,), "float32", "w")})
    return BackgroundWriter(lambda: RunWriter.create(directory, manifest, {}))


def test_points_are_written_in_order_from_reused_buffers(tmp_path: Path) -> None:
    writer = opened(tmp_path / "run")
    live = torch.zeros(3)
    pointers = set()
    for number in range(4):
        live.fill_(number)
        copied = writer.copied("weights", {"w": live})
        pointers.add(copied["w"].data_ptr())
        writer.add(number, number, {"weights": copied}, {})
    live.fill_(-1)
    writer.close()
    run = Run.open(tmp_path / "run")
    assert [run.weights(number)["w"].tolist() for number in run.epochs] == [[float(n)] * 3 for n in range(4)]
    assert len(pointers) == 1


def test_the_caller_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    write = RunWriter.add

    def slow(self: RunWriter, *args: object, **kwargs: object) -> None:
        assert go_on.wait(20)
        write(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(RunWriter, "add", slow)
    writer = opened(tmp_path / "run")
    writer.add(0, 0, {"weights": writer.copied("weights", {"w": torch.ones(3)})}, {})
    assert not (tmp_path / "run" / "weights").exists()
    go_on.set()
    writer.close()
    assert Run.open(tmp_path / "run").epochs == [0]


def test_what_makes_tensors_makes_them_in_the_thread(tmp_path: Path) -> None:
    threads = []

    def made(name: str) -> list[torch.Tensor]:
        threads.append(threading.current_thread())
        return [torch.ones(2), torch.zeros(1)]

    stream = Stream({"w": ((3,), torch.float32)}, made)
    writer = opened(tmp_path / "run")
    writer.add(0, 0, {"weights": writer.copied("weights", {"w": torch.zeros(3)}), "epoch_gradient": stream}, {})
    writer.close()
    assert Run.open(tmp_path / "run").epoch_gradient(0)["w"].tolist() == [1, 1, 0]
    assert threads
    assert threads[0] is not threading.main_thread()


def test_what_closes_files_by_number_waits_for_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it works its files may be any number's, another file's number is nobody's, and a fork has no thread."""
    begun, go_on, inside, order = threading.Event(), threading.Event(), [], []

    def slow(self: RunWriter, *args: object, **kwargs: object) -> None:
        with open(self.root / "held", "wb") as held, open(tmp_path / "other", "wb") as other:
            inside.extend([may_be_a_writers(held.fileno()), held.fileno(), other.fileno()])
            begun.set()
            assert go_on.wait(20)
        order.append("written")

    monkeypatch.setattr(RunWriter, "add", slow)
    writer = opened(tmp_path / "run")
    writer.wait()
    assert not may_be_a_writers(1_000)
    writer.add(0, 0, {"weights": {"w": torch.ones(3)}}, {})
    assert begun.wait(20)
    own, held, other = inside
    assert (own, may_be_a_writers(held), may_be_a_writers(other), may_be_a_writers(1_000)) == (False, True, False, True)
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: -1)
        assert not may_be_a_writers(held)
        with writers_at_rest():
            order.append("of a fork")
    threading.Timer(0.2, go_on.set).start()
    with writers_at_rest():
        writer.add(1, 1, {"weights": {"w": torch.ones(3)}}, {})
        time.sleep(0.1)
        order.append("at rest")
    writer.close()
    assert order == ["of a fork", "written", "at rest", "written"]


def test_an_error_in_the_thread_comes_out_at_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = opened(tmp_path / "run")
    writer.add(0, 0, {"weights": writer.copied("weights", {"w": torch.zeros(3)})}, {})
    writer.wait()

    def full(*_: object, **__: object) -> None:
        raise DiskFull("no room")

    monkeypatch.setattr(RunWriter, "add", full)
    writer.add(1, 1, {"weights": writer.copied("weights", {"w": torch.ones(3)})}, {})
    with pytest.raises(DiskFull):
        writer.copied("weights", {"w": torch.ones(3)})
    with pytest.raises(DiskFull):
        writer.update_info(more=1)
    writer.close()  # told already
    assert Run.open(tmp_path / "run").epochs == [0]


def test_a_directory_in_use_comes_out_too(tmp_path: Path) -> None:
    opened(tmp_path / "run").close()
    writer = opened(tmp_path / "run")
    with pytest.raises(TvgradError, match="already holds a run"):
        writer.wait()


def test_closing_without_a_look_raises_what_went_wrong(tmp_path: Path) -> None:
    opened(tmp_path / "run").close()
    with pytest.raises(TvgradError, match="already holds a run"):
        opened(tmp_path / "run").close()


def test_a_recorder_records_the_same_in_the_background(tmp_path: Path) -> None:
    records = []
    for background in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        directory = tmp_path / str(background)
        with Recorder(directory, model, optimizer, background=background) as recorder:
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.ones(5, 4)).square().mean().backward()
                optimizer.step()
                recorder.end_epoch()
        records.append(Run.open(directory))
    plain, threaded = records
    assert not threaded.problems()
    assert threaded.manifest.finished
    for epoch in plain.epochs:
        assert all(torch.equal(threaded.weights(epoch)[n], t) for n, t in plain.weights(epoch).items())
        if epoch:
            assert all(
                torch.equal(threaded.epoch_gradient(epoch)[n], t) for n, t in plain.epoch_gradient(epoch).items()
            )
