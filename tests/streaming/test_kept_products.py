"""Kept products: the same bits as without, nothing read twice, and nothing believed that is not proven."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tvgrad.errors import DamagedRun
from tvgrad.files import checksums
from tvgrad.files.tensors import TensorFile
from tvgrad.files.writing import write_tensors
from tvgrad.problem.recipe import Recipe
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.report.tables import run_tables
from tvgrad.report.wanted_products import Extent, kept_products
from tvgrad.store.run import Run
from tvgrad.streaming import products_file
from tvgrad.streaming.gram import gram_of
from tvgrad.streaming.kept_products import KeptProducts
from tvgrad.streaming.rows import SMALL_GROUP, Vector

EPOCHS = 5
SHAPES = {"a": (SMALL_GROUP + 1500,), "b.weight": (30, 20), "b.bias": (7,)}


class Model(torch.nn.Module):
    """Parameters of the shapes above: one group that is multiplied in float32, and one in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.randn(SHAPES["a"]))
        self.b = torch.nn.Linear(30, 20)


def bend(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """A loss for each sample, of all parameters, whose gradient turns from epoch to epoch."""
    sizes = enumerate(model.parameters(), 1)
    return batch[0] * torch.stack([(place * weights**2 + weights**3).mean() for place, weights in sizes]).sum()


def record(root: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    data = torch.ones(4), torch.zeros(4)
    recipe = Recipe(Model(), lambda output, _: output.mean(), data, forward=bend, name="bend", lr=0.02, epochs=EPOCHS)
    trace(prepare(recipe, TraceOptions(record=("gradients", "epoch-gradients"), optimizer="sgd", batch_size=2)), root)
    return root


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recorded") / "run", 1)


@pytest.fixture
def root(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of five epochs whose files count as unchanged for long, and of which nothing is known."""
    monkeypatch.setattr(checksums, "SETTLED_AFTER", -(10**12))
    shutil.copytree(recorded, tmp_path / "run")
    forget()
    return tmp_path / "run"


def shortened(root: Path, epochs: int) -> Run:
    """The run as it was after fewer epochs: its files are where they were."""
    content: dict[str, Any] = json.loads((root / "run.json").read_text())
    full = root / "full.json"
    if not full.exists():
        full.write_text(json.dumps(content))
    content = json.loads(full.read_text())
    content["points"] = content["points"][: epochs + 1]
    (root / "run.json").write_text(json.dumps(content))
    return Run.open(root)


def forget() -> None:
    """What another process would know of files."""
    checksums._known.clear()
    checksums._settled.clear()


def same(left: dict[str, pd.DataFrame], right: dict[str, pd.DataFrame]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        pd.testing.assert_frame_equal(left[name], right[name], check_exact=True)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The tensor files of which numbers are read, once for each block."""
    found: list[Path] = []
    plain = TensorFile.read_into

    def noting(self: TensorFile, name: str, start: int, out: torch.Tensor) -> torch.Tensor:
        found.append(self.path)
        return plain(self, name, start, out)

    monkeypatch.setattr(TensorFile, "read_into", noting)
    return found


def keep(run: Run, folder: Path) -> KeptProducts:
    return KeptProducts(folder, [digest for _, digest, _ in run.point(0).files["weights"].parts], least_bytes=0)


def the_file(folder: Path) -> Path:
    """The file of products: those of the first step's numbers are smaller."""
    return max(folder.iterdir(), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    "extent", ["tables", pytest.param("figures", marks=pytest.mark.slow), pytest.param("all", marks=pytest.mark.slow)]
)
def test_an_epoch_more_has_the_same_bits_and_reads_what_is_new(
    root: Path, tmp_path: Path, read: list[Path], extent: Extent
) -> None:
    plain = run_tables([shortened(root, 5)])
    folder = tmp_path / "kept"
    for epochs in (3, 4, 5, 5):
        forget()
        read.clear()
        run = shortened(root, epochs)
        made = run_tables([run], extent=extent, kept=keep(run, folder))
    same(made.tables, plain.tables)
    known = ~np.isnan(made.gram.matrix)
    assert (made.gram.matrix[known] == plain.gram.matrix[known]).all()
    assert known.all() == (extent == "all")
    assert not read  # the last report had nothing new
    forget()
    the_file(folder).unlink()
    run_tables([shortened(root, 4)], extent=extent, kept=keep(run, folder))
    forget()
    read.clear()
    run_tables([shortened(root, 5)], extent=extent, kept=keep(run, folder))
    kinds = {f"{path.parent.name[0]}{int(path.stem[-4:])}" for path in read}
    new = {"w0", "w1", "w3", "w4", "w5", "g0", "g5", "e1", "e5"}
    assert kinds == new if extent == "tables" else kinds > new


def test_two_runs_share_what_they_are_compared_by(root: Path, tmp_path: Path) -> None:
    runs = [shortened(root, 5), Run.open(record(tmp_path / "other", 2))]
    plain = run_tables(runs)
    for _ in range(2):
        forget()
        same(run_tables(runs, extent="figures", kept=keep(runs[0], tmp_path / "kept")).tables, plain.tables)
    assert not run_tables(runs, extent="figures", kept=keep(runs[0], tmp_path / "kept")).tables["cross_task"].empty


@pytest.mark.parametrize("place", ["weights/epoch-0002", "gradients/epoch-0000"])
def test_a_flipped_bit_is_found_where_nothing_is_read(root: Path, tmp_path: Path, place: str) -> None:
    run = shortened(root, 5)
    run_tables([run], kept=keep(run, tmp_path / "kept"))
    flip(root / f"{place}.safetensors")
    forget()
    run = shortened(root, 5)
    with pytest.raises(DamagedRun, match=rf"{place}\.safetensors does not have the checksum"):
        run_tables([run], kept=keep(run, tmp_path / "kept"))


def flip(path: Path) -> None:
    """Change a bit of a file as if nothing had been written."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("place", ["weights/epoch-0000", "weights/epoch-0001", "gradients/epoch-0000"])
def test_numbers_of_a_first_step_whose_file_has_changed_are_not_given(
    root: Path, tmp_path: Path, read: list[Path], place: str
) -> None:
    def numbers(of: list[float]) -> list[float]:
        run = shortened(root, 5)
        kept = keep(run, tmp_path / "kept")
        kinds = (("weights", 0), ("weights", 1), ("gradient", 0))
        with contextlib.ExitStack() as opened:
            files = [opened.enter_context(run.file(kind, number)) for kind, number in kinds]
            return kept.numbers(files, ["about"], lambda: of)

    assert numbers([1.5, 2.5]) == [1.5, 2.5]
    forget()
    assert numbers([]) == [1.5, 2.5]  # what is kept, not what would be computed
    flip(root / f"{place}.safetensors")
    forget()
    with pytest.raises(DamagedRun, match=rf"{place}\.safetensors does not have the checksum"):
        numbers([])
    assert not read


def test_a_run_that_claims_the_files_of_another_is_found(root: Path, tmp_path: Path) -> None:
    """What run.json of a stranger says of checksums is no proof that its files have them."""
    run = shortened(root, 5)
    run_tables([run], kept=keep(run, tmp_path / "kept"))
    other = record(tmp_path / "other", 2)
    shutil.copy(root / "run.json", other / "run.json")
    forget()
    claims = Run.open(other)
    with pytest.raises(DamagedRun, match="does not have the checksum"):
        run_tables([claims], kept=keep(claims, tmp_path / "kept"))


def test_a_file_that_was_written_a_moment_ago_is_compared_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "SETTLED_AFTER", 10**15)  # of all files here
    run = shortened(root, 5)
    run_tables([run], kept=keep(run, tmp_path / "kept"))
    assert json.loads(body(the_file(tmp_path / "kept")))["states"] == {}


def body(path: Path) -> str:
    content = path.read_bytes()[products_file.START :]
    return content[8 : 8 + int.from_bytes(content[:8], "little")].decode()


def forged(content: bytes, change: str, to: str) -> bytes:
    """A file whose description was changed, and whose checksum fits."""
    inside = content[products_file.START :]
    length = int.from_bytes(inside[:8], "little")
    about = inside[8 : 8 + length].decode().replace(change, to).encode()
    inside = len(about).to_bytes(8, "little") + about + inside[8 + length :]
    return products_file.FORMAT + hashlib.sha256(inside).hexdigest().encode() + b"\n" + inside


def test_what_is_damaged_or_does_not_fit_is_computed_anew(root: Path, tmp_path: Path, read: list[Path]) -> None:
    run = shortened(root, 3)
    folder = tmp_path / "kept"
    expected = run_tables([run], kept=keep(run, folder)).tables
    path = the_file(folder)
    good = path.read_bytes()
    middle = len(good) // 2
    bad = [
        b"",
        good[:-8],
        good + bytes(8),
        good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        good[:middle],
        b"x" + good[1:],
        forged(good, '"groups":["a"', '"groups":["c"'),
        forged(good, '"pairs":[[', '"pairs":[[9999'),
        forged(good, '"pairs":[[', '"pairs":[["0",0],['),
        forged(good, '"layout":"', '"layout":"0'),
        forged(good, "{", "["),
    ]
    about = json.loads(body(path))
    assert products_file.read_products(path, about["layout"], about["groups"]) is not None
    for content in bad:
        path.write_bytes(content)
        assert products_file.read_products(path, about["layout"], about["groups"]) is None
    for anew in (True, False):
        forget()
        read.clear()
        run = Run.open(root)
        same(run_tables([run], kept=keep(run, folder)).tables, expected)
        assert bool(read) == anew


def test_what_another_could_have_written_is_not_believed(root: Path, tmp_path: Path) -> None:
    run = shortened(root, 3)
    folder = tmp_path / "kept"
    expected = run_tables([run], kept=keep(run, folder)).tables
    path = the_file(folder)
    numbers = bytearray(path.read_bytes())
    numbers[-200:] = bytes(200)
    wrong = forged(bytes(numbers), "x", "x")
    path.write_bytes(wrong)
    forget()
    with pytest.raises(AssertionError):  # believed, for it is the user's own
        same(run_tables([run], kept=keep(run, folder)).tables, expected)
    for make in (lambda: path.chmod(0o666), lambda: folder.chmod(0o777), lambda: link(path)):
        path.write_bytes(wrong)
        make()
        forget()
        same(run_tables([run], kept=keep(run, folder)).tables, expected)
        folder.chmod(0o700)
        path.unlink()


def link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def test_where_nothing_can_be_kept_every_report_is_a_whole_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shortened(root, 3)
    expected = run_tables([run]).tables
    (tmp_path / "file").write_text("no folder")
    same(run_tables([run], kept=keep(run, tmp_path / "file" / "kept")).tables, expected)
    monkeypatch.setattr(products_file, "MOST_BYTES", 100)
    same(run_tables([run], kept=keep(run, tmp_path / "kept")).tables, expected)
    assert not (tmp_path / "kept").exists()


def test_files_are_bounded_and_the_oldest_go(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kept"
    run = shortened(root, 3)
    run_tables([run], extent="tables", kept=keep(run, folder))
    least = the_file(folder).stat().st_size
    assert the_file(folder).stat().st_mode & 0o777 == 0o600
    run_tables([run], extent="all", kept=keep(run, folder))
    assert the_file(folder).stat().st_size > least
    # Of what is too large, the products that were wanted last are kept.
    monkeypatch.setattr(products_file, "MOST_BYTES", least + 2000)
    forget()
    run = shortened(root, 4)
    run_tables([run], extent="tables", kept=keep(run, folder))
    assert the_file(folder).stat().st_size <= least + 2000
    monkeypatch.setattr(products_file, "MOST_IN_FOLDER", 2 * least)
    for number in range(4):
        run_tables([run], extent="tables", kept=KeptProducts(folder, [str(number)], least_bytes=0))
    assert 0 < sum(path.stat().st_size for path in folder.iterdir()) <= 2 * least + 4000


def test_small_runs_are_not_kept(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVGRAD_CACHE", str(tmp_path / "cache"))
    run = shortened(root, 3)
    run_tables([run], kept=kept_products([run]))
    assert not (tmp_path / "cache").exists()


def test_float8_files_are_multiplied_block_by_block(tmp_path: Path) -> None:
    vectors, expected = [], []
    for number, dtype in enumerate((torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float32)):
        tensors = {name: torch.randn(shape).to(dtype) for name, shape in SHAPES.items()}
        file = TensorFile(write_tensors(tensors, tmp_path / f"{number}.safetensors"))
        vectors.append(Vector(str(number), file))
        expected.append(torch.cat([tensors[name].float().double().flatten() for name in file.places]).numpy())
    truth = np.stack(expected) @ np.stack(expected).T
    found = gram_of(vectors, {name: name[0] for name in SHAPES})
    scale = np.sqrt(np.outer(truth.diagonal(), truth.diagonal()))
    assert (np.abs(found.matrix - truth) <= 1e-7 * scale).all()
