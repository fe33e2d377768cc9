"""The journal of a long run: the same content at every moment, whatever was cut off, and a cost that does not grow."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tvgrad.errors import DamagedRun, DiskFull
from tvgrad.store import ledger
from tvgrad.store.keep_policy import KeepPolicy
from tvgrad.store.layout import JOURNAL
from tvgrad.store.manifest import Manifest, Parameter
from tvgrad.store.run import Run
from tvgrad.store.writer import RunWriter

MANIFEST = Manifest({"name": "long"}, "epoch", {"w": Parameter((2,), "float32", "w")})


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is long from its third point on."""
    monkeypatch.setattr(ledger, "WHOLE", 2)


def add(writer: RunWriter, number: int, **metrics: float) -> None:
    state = {"rng": torch.zeros(1)}, {"epoch": number, "steps_in_epoch": 0}
    rows = [{"step": number, "lr": 0.1}] if number else []
    content = {"weights": {"w": torch.full((2,), float(number))}}
    keep = KeepPolicy("last:2")
    writer.add(number, number, content, {"loss": 1 / (number + 1), **metrics}, step_rows=rows, state=state, keep=keep)


def table(root: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((root / "metrics.csv").read_text())))


def test_it_reads_as_run_json_alone_would_at_every_moment(tmp_path: Path, short: None) -> None:
    journalled = 0
    writer = RunWriter.create(tmp_path / "run", MANIFEST, {})
    for number in range(30):
        add(writer, number, **({"late": 1.0} if number > 20 else {}))
        if number % 3 == 0:
            writer.amend(number, {}, {"loss": 7.25 + number})
        if number == 17:
            writer.amend(11, {}, {"loss": -1.0})
        writer.extend_info("epoch_endings", [f"ending {number}"])
        writer.extend_info("measured_gradients", {str(number): {"kind": "exact full batch", "deviation": 0.0}})
        writer.update_info(mine=number)
        run = Run.open(tmp_path / "run")
        assert run.manifest.points == writer.manifest.points
        assert run.info == writer.manifest.info == run.info | {"mine": number}
        assert run.info["epoch_endings"] == [f"ending {one}" for one in range(number + 1)]
        assert list(run.info["measured_gradients"]) == [str(one) for one in range(number + 1)]
        assert run.manifest.state is not None
        assert f"{number:04d}" in run.manifest.state.path
        assert run.epochs == sorted({0, max(number - 1, 0), number})
        assert run.problems() == []
        rows = table(tmp_path / "run")
        expected = [7.25 + one if one % 3 == 0 else 1 / (one + 1) for one in range(number + 1)]
        expected[11:12] = [-1.0] if number >= 17 else expected[11:12]
        assert [float(row["loss"]) for row in rows] == expected
        assert [int(row["epoch"]) for row in rows] == list(range(number + 1))
        assert [bool(row.get("late")) for row in rows] == [one > 20 for one in range(number + 1)]
        journalled += (tmp_path / "run" / JOURNAL).exists()
        listed = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*.*")}
        assert listed - {"run.json", "metrics.csv", "writer.lock", JOURNAL} == run.manifest.listed()
    assert journalled > 15
    writer.finish()
    writer.close()
    assert not (tmp_path / "run" / JOURNAL).exists()
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (len(content["points"]), content["journal"], content["finished"]) == (30, None, True)


def journalled(root: Path) -> list[int]:
    """A run whose writer has died while a journal held its last points; how many points run.json has."""
    writer = RunWriter.create(root, MANIFEST, {})
    for number in range(40):
        add(writer, number)
    writer._lock.close()
    assert (root / JOURNAL).exists()
    return [point["number"] for point in json.loads((root / "run.json").read_text())["points"]]


def test_a_journal_cut_at_any_byte_lists_whole_points(tmp_path: Path, short: None) -> None:
    base = journalled(tmp_path / "run")
    whole = (tmp_path / "run" / JOURNAL).read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) > 4
    for size in (*range(0, len(whole), 97), *ends):
        (tmp_path / "run" / JOURNAL).write_bytes(whole[:size])
        done = max(sum(end <= size for end in ends) - 1, 0)
        assert [point.number for point in Run.open(tmp_path / "run").points] == list(range(len(base) + done))
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy)
    (copy / JOURNAL).write_bytes(whole + b"\x00" * 40)  # as a crash of the machine may leave it
    writer = RunWriter.resume(copy)
    add(writer, 40)
    writer.close()
    run = Run.open(copy)
    assert [point.number for point in run.points] == list(range(41))
    assert run.problems() == []


def test_a_journal_of_another_run_json_says_nothing(tmp_path: Path, short: None) -> None:
    base = journalled(tmp_path / "run")
    folded = tmp_path / "folded"
    shutil.copytree(tmp_path / "run", folded)
    left = (folded / JOURNAL).read_bytes()
    writer = RunWriter.resume(folded)
    add(writer, 40)
    writer.close()
    (folded / JOURNAL).write_bytes(left)  # as if the writer had been killed before it removed this
    assert [point.number for point in Run.open(folded).points] == list(range(41))
    lines = left.splitlines(keepends=True)
    (tmp_path / "run" / JOURNAL).write_bytes(b'{"journal": "0123456789abcdef"}\n' + b"".join(lines[1:]))
    assert [point.number for point in Run.open(tmp_path / "run").points] == base
    again = RunWriter.create(folded, MANIFEST, {}, overwrite=True)
    add(again, 0)
    again.close()
    assert sorted(path.name for path in folded.iterdir()) == ["metrics.csv", "run.json", "state", "weights"]


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b"3", b'{"points": [3]}', b'{"info": 1}', b'{"points": [{"number": {}}]}', b'{"extended": []}'],
)
def test_a_journal_of_something_else_is_refused(tmp_path: Path, short: None, line: bytes) -> None:
    journalled(tmp_path / "run")
    with open(tmp_path / "run" / JOURNAL, "ab") as handle:
        handle.write(line + b"\n")
    with pytest.raises(DamagedRun, match=r"run\.json is (not a run's description|damaged) .*restore it") as caught:
        Run.open(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_journal_that_is_a_link_or_a_pipe_is_not_read(tmp_path: Path, short: None) -> None:
    journalled(tmp_path / "run")
    path = tmp_path / "run" / JOURNAL
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedRun, match="reached through a link"):
        Run.open(tmp_path / "run")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedRun, match="it is a pipe"):
        Run.open(tmp_path / "run")


@pytest.mark.parametrize("call", ["write", "fsync", "open"])
def test_a_record_that_cannot_be_written(
    tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The point is not listed, or whole; what comes later is written, and nothing that was listed is lost."""
    plain: Callable[..., Any] = getattr(os, call)
    for number in (13, 17):
        root = tmp_path / f"{call}-{number}"
        writer = RunWriter.create(root, MANIFEST, {})
        for one in range(number):
            add(writer, one)
        journal = str(root / JOURNAL)

        def fails(target: Any, *rest: Any, journal: str = journal) -> Any:
            place = target if isinstance(target, (str, Path)) else os.readlink(f"/proc/self/fd/{target}")
            if str(place) != journal:
                return plain(target, *rest)
            if call == "write":
                plain(target, rest[0][: len(rest[0]) // 2])  # a short write, and then none
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fails)
            try:
                add(writer, number)
            except DiskFull as error:
                assert "finished epochs are whole" in str(error)  # noqa: PT017 - folding needs no journal
        assert [point.number for point in Run.open(root).points][:number] == list(range(number))
        assert Run.open(root).problems() == []
        add(writer, number + 1)
        writer.close()
        assert [point.number for point in Run.open(root).points] == list(range(number + 2))
        assert Run.open(root).problems() == []


@pytest.mark.slow
def test_a_reader_beside_a_writer_never_sees_less_than_before(tmp_path: Path, short: None) -> None:
    writer = RunWriter.create(tmp_path / "run", MANIFEST, {})
    add(writer, 0)
    seen, over = [], threading.Event()

    def read() -> None:
        while not over.is_set():
            numbers = [point.number for point in Run.open(tmp_path / "run").points]
            assert numbers == list(range(len(numbers)))
            seen.append(len(numbers))

    reading = threading.Thread(target=read)
    reading.start()
    for number in range(1, 80):
        add(writer, number)
    over.set()
    reading.join()
    writer.close()
    assert seen == sorted(seen)
    assert len(set(seen)) > 10


def epochs(root: Path, count: int) -> tuple[list[float], list[tuple[int, int, int]]]:
    """Processor seconds of each epoch; and memory, descriptors and threads every 500."""
    writer = RunWriter.create(root, MANIFEST, {})
    seconds, held = [], []
    for number in range(count):
        began = time.process_time()
        add(writer, number)
        writer.extend_info("epoch_endings", ["loader"])
        seconds.append(time.process_time() - began)
        if number % 500 == 499:
            memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
            held.append((memory, len(os.listdir("/proc/self/fd")), threading.active_count()))
    writer.close()
    return seconds, held


@pytest.mark.slow
def test_an_epoch_costs_the_same_however_many_there_were(tmp_path: Path) -> None:
    seconds, held = epochs(tmp_path / "run", 5000)
    early, late = (sum(seconds[first : first + 1000]) / 1000 for first in (100, 4000))
    print(
        f"processor time an epoch: {1000 * early:.2f} ms of 100 to 1100, {1000 * late:.2f} ms of 4000 to 5000; {held}"
    )
    assert late < 1.5 * early
    assert len(Run.open(tmp_path / "run").points) == 5000
    memory, descriptors, threads = zip(*held, strict=True)
    assert memory[-1] - memory[1] < 4000 * 8192  # what an epoch lists stays in memory
    assert len(set(descriptors)) == len(set(threads)) == 1
