"""What a writer leaves on the disk: whole points whatever happens, and nobody else's files touched."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tvgrad
from tvgrad.errors import DamagedRun, DiskFull, TvgradError
from tvgrad.files import atomic, writing
from tvgrad.store.keep_policy import KeepPolicy
from tvgrad.store.manifest import Manifest, Parameter
from tvgrad.store.run import Run
from tvgrad.store.space import require_space
from tvgrad.store.writer import RunWriter

Bits = Callable[[Path], dict[str, bytes]]
WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5), "c": torch.zeros(4)}
PARAMETERS = {name: Parameter(tuple(tensor.shape), "float32", name) for name, tensor in WEIGHTS.items()}
STATIC = {"head": torch.full((3,), 2.0), "scale": torch.ones(2)}


def manifest(unit: str = "epoch") -> Manifest:
    return Manifest({"name": "hand"}, unit, PARAMETERS)


def shifted(by: float) -> dict[str, torch.Tensor]:
    return {name: tensor + by for name, tensor in WEIGHTS.items()}


class Crash(BaseException):
    """The process dies here: nothing of Python's own cleaning may be relied on."""


# --- crashes -----------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {
    "optimizer": "momentum",
    "batch_size": 8,
    "record": ("gradients", "epoch-gradients", "batches"),
    "keep": "last:1",
    "epochs": 2,
}


def crashing(number: int, after: bool, kind: BaseException) -> Callable[..., None]:
    """An `os.replace` that fails at the call of that number, before or after it has renamed."""
    calls = iter(range(1, 10_000))
    plain = os.replace

    def replace(source: Any, target: Any) -> None:
        if next(calls) != number:
            plain(source, target)
            return
        if after:
            plain(source, target)
        raise kind

    return replace


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_rename_leaves_whole_points_and_a_run_to_go_on_with(
    tmp_path: Path, traced: Callable[..., Run], bits: Bits, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    traced(tmp_path / "whole", **OPTIONS)
    expected = bits(tmp_path / "whole")
    points = set()
    for number in range(1, 100):
        root = tmp_path / f"crash-{number}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crashing(number, after, Crash()))
            try:
                traced(root, **OPTIONS)
                break  # fewer renames than that: all have been tried
            except Crash:
                pass
        if (root / "run.json").exists():
            run = Run.open(root)
            points.add(len(run.points))
            assert run.problems() in ([], ["no epoch was finished"])
        traced(root, **OPTIONS, resume=True)
        assert Run.open(root).problems() == []
        assert bits(root) == expected
    assert number > 20
    assert points == {0, 1, 2, 3}


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_full_disk_at_any_instant(
    tmp_path: Path, traced: Callable[..., Run], bits: Bits, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    traced(tmp_path / "whole", **OPTIONS)
    expected = bits(tmp_path / "whole")
    plain = getattr(os, call)
    sentences = set()
    for number in range(1, 200, 3):
        root = tmp_path / f"full-{number}"
        calls = iter(range(1, 10_000))

        def full(*given: Any, calls: Iterator[int] = calls, number: int = number) -> Any:
            if next(calls) >= number:
                raise OSError(errno.ENOSPC, "No space left on device")
            return plain(*given)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            try:
                traced(root, **OPTIONS)
                break
            except DiskFull as error:
                sentences.add(str(error).partition(" for ")[0] + " ... " + str(error).partition("; ")[2])
        assert not list(root.rglob("*.tmp"))
        if (root / "run.json").exists():
            assert Run.open(root).problems() in ([], ["no epoch was finished"])
        traced(root, **OPTIONS, resume=True)
        assert bits(root) == expected
    assert number > 10
    remedy = "free some space and go on with --resume: finished epochs are whole"
    assert sentences == {f"no room on the disk ... {remedy}"}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no room on the disk for"),
        (OSError(errno.EFBIG, "File too large"), "no room on the disk for"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no room on the disk for"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
    ],
)
def test_errors_of_the_disk_are_one_sentence(
    tmp_path: Path, traced: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    plain = writing._save_stream

    def fail(*given: Any) -> None:
        if "epoch-0002" in given[-1].name:
            raise error
        plain(*given)

    monkeypatch.setattr(writing, "_save_stream", fail)
    with pytest.raises(DiskFull, match=words) as caught:
        traced(tmp_path / "run")
    assert "\n" not in str(caught.value)
    run = Run.open(tmp_path / "run")
    assert (run.epochs, run.problems(), run.manifest.finished) == ([0, 1], [], False)
    assert not (tmp_path / "run" / "writer.lock").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") is not None and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(place)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("no permission to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(
    tmp_path: Path,
    small_disk: Path,
    make_recipe: Callable[..., tvgrad.Recipe],
    traced: Callable[..., Run],
    bits: Bits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wide() -> tvgrad.Recipe:
        torch.manual_seed(5)
        return make_recipe(torch.nn.Sequential(torch.nn.Linear(5, 1000), torch.nn.Tanh(), torch.nn.Linear(1000, 3)))

    options = {"optimizer": "adam", "batch_size": 8, "epochs": 8}
    traced(tmp_path / "whole", wide(), **options)
    with pytest.raises(TvgradError, match=r"needs about .* and .* has room for"):
        traced(small_disk / "run", wide(), **options)
    assert not (small_disk / "run").exists()
    monkeypatch.setattr("tvgrad.record.training_loop.require_space", lambda *_: None)
    with pytest.raises(DiskFull, match=r"no room on the disk for .*/run/"):
        traced(small_disk / "run", wide(), **options)
    run = Run.open(small_disk / "run")
    assert run.problems() == []
    assert 1 < len(run.epochs) < 9
    with pytest.raises(DiskFull, match="no room on the disk"):
        traced(small_disk / "run", wide(), **options, resume=True)
    assert Run.open(small_disk / "run").problems() == []
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    traced(small_disk / "run", wide(), **options, resume=True)
    assert bits(small_disk / "run") == bits(tmp_path / "whole")


# --- what is in the way, and what must stay ----------------------------------------------------------------------


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    RunWriter.create(tmp_path, manifest(), {}).close()
    with pytest.raises(TvgradError, match="already holds a run: choose another --out, go on with it by --resume, "):
        RunWriter.create(tmp_path, manifest(), {})


@pytest.mark.parametrize(
    "name", ["thesis.tex", "weights/best.safetensors", "static.txt", "results/mine.json", "state/x", "metrics.csv"]
)
def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    """Folders called weights, state or results are anybody's."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(TvgradError, match="holds other files"):
        RunWriter.create(tmp_path, manifest(), STATIC)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [name]


def test_a_directory_that_is_or_lies_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(TvgradError, match="file is a file: choose another --out"):
            RunWriter.create(place, manifest(), {})


def test_a_directory_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(TvgradError, match="cannot be made a run directory: Permission denied"):
        RunWriter.create(tmp_path / "run", manifest(), {})


def test_what_a_run_killed_at_birth_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "writer.lock").write_text("{}")
    (tmp_path / "static.safetensors").write_bytes(b"half")
    (tmp_path / ".run.json.123.tmp").write_text("{")
    writer = RunWriter.create(tmp_path, manifest(), STATIC)
    writer.add(0, 0, {"weights": WEIGHTS}, {})
    writer.close()
    assert Run.open(tmp_path).problems() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics.csv",
        "run.json",
        "static.safetensors",
        "weights",
    ]


def test_the_sweep_takes_what_the_writer_left_and_nothing_else(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, manifest(), STATIC)
    writer.add(0, 0, {"weights": WEIGHTS}, {})
    writer.close()
    left = ["weights/epoch-0001.safetensors", "weights/.epoch-0002.safetensors.5.tmp", "steps/epoch-0001.csv"]
    left += ["weights/.tmpA1b2C3", ".tmpA1b2C3"]
    theirs = ["weights/notes.txt", "static-notes.txt", "README.md", "results/bounds.json", "plots/epoch-0001.csv"]
    for name in left + theirs:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    RunWriter.resume(tmp_path).close()
    assert not any((tmp_path / name).exists() for name in left)
    assert all((tmp_path / name).exists() for name in theirs)
    assert Run.open(tmp_path).problems() == []


@pytest.mark.parametrize("damaged", ["weights/epoch-0000.safetensors", "weights/epoch-0001.safetensors", "static"])
def test_a_damaged_run_is_not_gone_on_with(tmp_path: Path, damaged: str) -> None:
    writer = RunWriter.create(tmp_path, manifest(), STATIC)
    for number in range(2):
        writer.add(number, number, {"weights": shifted(number)}, {})
    writer.close()
    path = tmp_path / (damaged if "/" in damaged else "static.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DamagedRun, match=f"cannot be resumed: {path.relative_to(tmp_path)} does not have the checksum"):
        RunWriter.resume(tmp_path)
    assert not (tmp_path / "writer.lock").exists()


def test_resuming_where_no_run_is_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(TvgradError, match="is not a run directory"):
        RunWriter.resume(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- points ------------------------------------------------------------------------------------------------------


def test_shards_open_verify_and_stream(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, manifest(), STATIC, max_shard_bytes=24)
    for number in range(3):
        content = {"weights": shifted(number), "gradient": shifted(-1)}
        writer.add(number, number, content, {}, keep=KeepPolicy("last:1"))
    writer.close()
    run = Run.open(tmp_path)
    assert run.problems() == []
    names = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert names == sorted(
        f"epoch-000{number}{rest}"
        for number in (0, 2)
        for rest in (".safetensors.index.json", *(f"-0000{k}-of-00003.safetensors" for k in (1, 2, 3)))
    )
    for number in (0, 2):
        weights = run.weights(number)
        assert list(weights) == list(WEIGHTS)
        assert all(torch.equal(weights[name], tensor) for name, tensor in shifted(number).items())
    assert torch.equal(load_file(tmp_path / "weights" / "epoch-0002-00002-of-00003.safetensors")["b"], WEIGHTS["b"] + 2)
    assert torch.equal(run.static()["head"], STATIC["head"])
    # tau_2 = 2 everywhere, so that its square is 4 for each of 15 coordinates
    assert tvgrad.gram([run]).matrix.shape[0] >= 1
    with run.file("weights", 2) as file:
        part = file.read_into("a", 2, torch.empty(3))
    assert part.tolist() == [4.0, 5.0, 6.0]
    shard = tmp_path / "weights" / "epoch-0002-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert len(run.problems()) == 1
    assert run.problems()[0].startswith("weights/epoch-0002-00003-of-00003.safetensors has ")


@pytest.mark.parametrize(
    ("policy", "numbers", "kept"),
    [
        ("all", range(5), [0, 1, 2, 3, 4]),
        ("last:1", range(5), [0, 4]),
        ("last:2", range(5), [0, 3, 4]),
        ("last:9", range(5), [0, 1, 2, 3, 4]),
        ("last:2", [0, 1, 10, 100], [0, 10, 100]),
        ("epochs:0,1,5", range(4), [0, 1, 3]),
        ("epochs:2", range(6), [0, 2, 5]),
        ("last:2", [0], [0]),
    ],
)
def test_keep(policy: str, numbers: Any, kept: list[int]) -> None:
    assert sorted(KeepPolicy(policy).kept(list(numbers))) == kept


@pytest.mark.parametrize("policy", ["", "none", "last", "last:", "last:0", "last:-1", "last:two", "epochs", "epochs:a"])
def test_keep_that_is_not_understood(policy: str) -> None:
    with pytest.raises(TvgradError, match=r"--keep .* is not understood: use all, last:N or epochs:0,1,5"):
        KeepPolicy(policy)


def test_a_dropped_point_keeps_its_metrics(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, manifest(), {})
    for number in range(4):
        tensors = {"weights": shifted(number), "batches": {"order": torch.arange(3)}}
        writer.add(
            number,
            number,
            tensors,
            {"loss": number / 3},
            step_rows=[{"step": number, "lr": 0.1}],
            keep=KeepPolicy("last:1"),
        )
    writer.close()
    run = Run.open(tmp_path)
    assert run.problems() == []
    assert run.epochs == [0, 3]
    assert run.having("batches") == [0, 1, 2, 3]
    assert run.metrics["loss"].tolist() == [0, 1 / 3, 2 / 3, 1]
    with pytest.raises(TvgradError, match="has no weights at epoch 2: it has them at 0, 3"):
        run.weights(2)
    with pytest.raises(TvgradError, match="has no epoch 7: it has 0-3"):
        run.weights(7)
    with pytest.raises(TvgradError, match=r"has no gradients at epoch 0: they were not recorded"):
        run.gradient(0)


def test_finished_is_taken_back_when_the_run_goes_on(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, manifest(), {})
    writer.add(0, 0, {"weights": WEIGHTS}, {})
    writer.finish()
    assert Run.open(tmp_path).manifest.finished
    writer.add(1, 1, {"weights": WEIGHTS}, {})
    assert not Run.open(tmp_path).manifest.finished
    writer.close()


def test_files_are_readable_for_the_group(tmp_path: Path) -> None:
    """The safetensors library alone writes 0600."""
    writer = RunWriter.create(tmp_path, manifest(), STATIC)
    writer.add(0, 0, {"weights": WEIGHTS}, {})
    writer.close()
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~atomic.UMASK}


def test_require_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    require_space(tmp_path / "not" / "there", 2_000_000)
    with pytest.raises(TvgradError, match=r"needs about 3 GB and .* has room for 2 MB:"):
        require_space(tmp_path / "not" / "there", 3_000_000_000)
