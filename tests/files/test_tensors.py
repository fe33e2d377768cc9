"""Tensor files: what is written is read back, and no damage goes unnoticed or raises anything but DamagedRun."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
import signal
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tvgrad.errors import DamagedRun, DiskFull
from tvgrad.files import writing
from tvgrad.files.tensors import DTYPES, TensorFile, shard_paths
from tvgrad.files.writing import write_checked_tensors, write_tensors


def sample(dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.bool:
        return torch.tensor([[True, False, True]])
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(2, 3, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    return torch.arange(6).reshape(2, 3).to(dtype)


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Bit for bit: NaN and minus zero too."""
    alike = left.dtype == right.dtype and left.shape == right.shape
    return (
        alike and left.contiguous().flatten().view(torch.uint8).tolist() == right.flatten().view(torch.uint8).tolist()
    )


def content() -> dict[str, torch.Tensor]:
    base = torch.randn(4, 6)
    made = {str(dtype): sample(dtype) for dtype in DTYPES.values()}
    return made | {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "also empty": torch.zeros(2, 0, dtype=torch.int64),
        "odd values": torch.tensor([float("nan"), -0.0, float("inf"), 5e-324], dtype=torch.float64),
        "transposed": base.T,
        "slice": base[1:3],
        "the whole": base,
        "learnt": torch.nn.Parameter(base[0]),
        'näme "with" \\ signs': torch.ones(1),
    }


@pytest.mark.parametrize("limit", [10**9, 100, 1])
def test_round_trip(tmp_path: Path, limit: int) -> None:
    tensors = content()
    opened = write_tensors(tensors, tmp_path / "weights.safetensors", limit)
    with TensorFile(opened) as file:
        read = file.read_all()
        assert file.names == sorted(tensors)
        assert sum(place.nbytes for place in file.places.values()) == sum(tensor.nbytes for tensor in tensors.values())
    assert all(same(tensors[name].detach(), read[name]) for name in tensors)
    shards = shard_paths(opened)
    assert (len(shards) > 1) == (limit < 10**9) == opened.name.endswith(".safetensors.index.json")
    by_library = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert all(same(tensors[name].detach(), by_library[name]) for name in tensors)
    for shard in shards:
        sizes = [tensor.nbytes for tensor in load_file(shard).values()]
        assert sum(sizes) <= limit or len([size for size in sizes if size]) == 1
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "metadata", [None, {}, {"format": "pt"}, {'na"me\n\t\x01': "wörds \\ \u2028 \U0001f600 \x7f"}], ids=range(4)
)
@pytest.mark.parametrize("names", ["", "all", *sorted(content())])
def test_bytes_are_those_of_the_library(tmp_path: Path, names: str, metadata: dict[str, str] | None) -> None:
    """Of every dtype, empty and scalar tensors, odd names and words: all in one file, and each alone."""
    tensors = {name: tensor.detach() for name, tensor in content().items() if names in ("all", name)}
    if names == "all":
        odd = (
            "",
            "a b",
            "/",
            "\n\r\t\b\f\x1f\x7f",
            "\u2028\u00e9",
            "\U0001f600",
            "A",
            "a",
            "a.10",
            "a.9",
            "x" * 10_000,
        )
        tensors |= {name: torch.full((place,), 2.0, dtype=torch.float16) for place, name in enumerate(odd)}
    path = write_tensors(tensors, tmp_path / "own.safetensors", metadata=metadata)
    plain = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    save_file(plain, tmp_path / "library.safetensors", metadata)
    if metadata == {} and not tensors:  # the library's file is no JSON there: {},"__metadata__":{}}
        assert TensorFile(path).read_all() == {}
        return
    assert path.read_bytes() == (tmp_path / "library.safetensors").read_bytes()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    drawn=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 3), max_size=3)),
        max_size=5,
    )
)
def test_bytes_of_any_tensors(tmp_path: Path, drawn: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    tensors = {name: torch.ones(shape).to(dtype) for name, (dtype, shape) in drawn.items()}
    save_file(tensors, tmp_path / "library.safetensors")
    own = write_tensors(tensors, tmp_path / "own.safetensors")
    assert own.read_bytes() == (tmp_path / "library.safetensors").read_bytes()


def test_no_tensors(tmp_path: Path) -> None:
    assert TensorFile(write_tensors({}, tmp_path / "none.safetensors")).read_all() == {}


@pytest.mark.parametrize("limit", [10**9, 30])
def test_files_have_the_usual_mode(tmp_path: Path, limit: int) -> None:
    (tmp_path / "plain").write_text("")
    usual = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    opened = write_tensors({"a": torch.zeros(9), "b": torch.zeros(9)}, tmp_path / "x.safetensors", limit)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (opened, *shard_paths(opened))} == {usual}


def test_blocks(tmp_path: Path) -> None:
    whole = torch.arange(100, dtype=torch.float64).reshape(4, 25)
    with TensorFile(write_tensors({"a": whole, "b": whole + 1}, tmp_path / "x.safetensors")) as file:
        for start, size in [(0, 100), (0, 1), (99, 1), (30, 41), (100, 0), (5, 0)]:
            out = torch.full((size,), -1.0, dtype=torch.float64)
            assert file.read_into("a", start, out) is out
            assert torch.equal(out, whole.flatten()[start : start + size])
        for start, out in [(99, torch.zeros(2).double()), (-1, torch.zeros(2).double()), (0, torch.zeros(2))]:
            with pytest.raises(ValueError, match="do not fit 'a'"):
                file.read_into("a", start, out)
        with pytest.raises(DamagedRun, match="has no tensor 'c'"):
            file.read("c")
        file.close()
        assert torch.equal(file.read("b"), whole + 1)


# Damage


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: Any, end: Any, shape: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


DAMAGE = {
    "empty file": b"",
    "seven bytes": b"1234567",
    "no header": raw({}, length=10),
    "huge header": raw({}, length=2**64 - 1),
    "garbage": raw(b"\xff\xfe garbage"),
    "no table": raw([1, 2]),
    "deeply nested": raw(b"[" * 100_000),
    "deeply nested table": raw(b'{"a":' * 100_000),
    "huge number": raw(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', b"1234"),
    "no entry": raw({"a": 3}),
    "missing key": raw({"a": {"dtype": "F32", "shape": [1]}}, b"1234"),
    "three offsets": raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, b"1234"),
    "unknown dtype": raw({"a": entry(0, 4, [1], "F33")}, b"1234"),
    "dtype is a list": raw({"a": entry(0, 4, [1], [])}, b"1234"),
    "negative offset": raw({"a": entry(-4, 0, [1])}, b"1234"),
    "negative shape": raw({"a": entry(0, 16, [-1, -4])}, bytes(16)),
    "float offsets": raw({"a": entry(0.0, 4.0, [1])}, b"1234"),
    "boolean offset": raw({"a": entry(False, 4, [1])}, b"1234"),
    "shape of text": raw({"a": entry(0, 4, "1")}, b"1234"),
    "shape does not fit": raw({"a": entry(0, 4, [2])}, b"1234"),
    "truncated data": raw({"a": entry(0, 8, [2])}, b"1234"),
    "bytes left over": raw({"a": entry(0, 4, [1])}, b"12345678"),
    "overlapping": raw({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
    "same place": raw({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, bytes(4)),
    "overlap that makes up for a gap": raw({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, bytes(8)),
    "gap": raw({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)),
    "name twice": raw(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"1234",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(DAMAGE[kind])
    with pytest.raises(DamagedRun, match="not a whole safetensors file") as caught:
        TensorFile(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_table_may_come_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    table = {"__metadata__": {"a": "b"}, "late": entry(4, 8, [1]), "early": entry(0, 4, []), "none": entry(4, 4, [0])}
    path.write_bytes(raw(table, torch.tensor([1.0, 2.0]).numpy().tobytes()))
    read = TensorFile(path).read_all()
    assert (read["early"].item(), read["late"].item(), read["none"].numel()) == (1.0, 2.0, 0)


def test_missing_files_folders_and_links(tmp_path: Path) -> None:
    with pytest.raises(DamagedRun, match="is missing"):
        TensorFile(tmp_path / "none.safetensors")
    with pytest.raises(DamagedRun, match="not a whole"):
        TensorFile(tmp_path)
    path = write_tensors({"a": torch.zeros(9)}, tmp_path / "x.safetensors")
    file = TensorFile(path)
    path.unlink()
    with pytest.raises(DamagedRun, match="cannot be read"):
        file.read("a")


def test_a_file_cut_after_it_was_opened(tmp_path: Path) -> None:
    path = write_tensors({"a": torch.zeros(900)}, tmp_path / "x.safetensors")
    file = TensorFile(path)
    os.truncate(path, 1000)
    with pytest.raises(DamagedRun, match="ends inside tensor 'a'"):
        file.read("a")


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_change_of_bytes_raises_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(5.0), "bb": torch.ones(2, 2, dtype=torch.int64), "c": torch.tensor(True)}, path)
    whole = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3))):
        where = data.draw(st.integers(0, header - 1))
        if where < len(whole):
            whole[where] = data.draw(st.integers(0, 255) | st.sampled_from(list(b'0123456789-"[]{}:,.eFIU')))
    path.write_bytes(whole)
    with suppress(DamagedRun), TensorFile(path) as file:
        read = file.read_all()
        # What is accepted has a place for every byte.
        assert sum(tensor.nbytes for tensor in read.values()) == len(whole) - 8 - int.from_bytes(whole[:8], "little")


@given(
    header=st.binary(max_size=200), length=st.integers(0, 2**64 - 1) | st.integers(0, 210), rest=st.binary(max_size=20)
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_raise_anything_else(tmp_path: Path, header: bytes, length: int, rest: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw(header, rest, length))
    with pytest.raises(DamagedRun):
        TensorFile(path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 99)
    | st.floats()
    | st.sampled_from(["F32", "a", "x.safetensors", ".."]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "dtype", "shape", "data_offsets", "weight_map"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(table=JSON)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_table_raises_anything_else(tmp_path: Path, table: Any) -> None:
    for name, text in [("x.safetensors", raw(table)), ("y.safetensors.index.json", json.dumps(table).encode())]:
        (tmp_path / name).write_bytes(text)
        with suppress(DamagedRun):
            TensorFile(tmp_path / name)


def sharded(folder: Path) -> Path:
    return write_tensors({name: torch.zeros(10) for name in "abc"}, folder / "x.safetensors", 40)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: index.write_text("{"), "no index of a sharded"),
        (lambda index: index.write_bytes(b"\xff\xfe"), "no index of a sharded"),
        (lambda index: index.write_text("[" * 100_000), "no index of a sharded"),
        (lambda index: index.write_text('{"weight_map": [1]}'), "no index of a sharded"),
        (lambda index: index.write_text('{"weight_map": {}}'), "names no shards"),
        (lambda index: index.write_text('{"weight_map": {"a": "../x.safetensors"}}'), "outside its own folder"),
        (lambda index: index.write_text('{"weight_map": {"a": "/etc/passwd"}}'), "outside its own folder"),
        (lambda index: index.write_text('{"weight_map": {"a": ".."}}'), "outside its own folder"),
        (lambda index: index.write_text('{"weight_map": {"a": 3}}'), "outside its own folder"),
        (lambda index: index.write_text('{"weight_map": {"a": "a\\u0000b"}}'), "null"),
        (lambda index: index.unlink(), "no index of a sharded"),
        (lambda index: shard_paths(index)[1].unlink(), "is missing"),
        (lambda index: shard_paths(index)[1].write_bytes(shard_paths(index)[0].read_bytes()), "stands in two shards"),
        (lambda index: index.write_text(index.read_text().replace('"b"', '"bad"')), "'bad' is not in"),
    ],
)
def test_damaged_shards(tmp_path: Path, change: Any, words: str) -> None:
    index = sharded(tmp_path)
    change(index)
    with pytest.raises(DamagedRun, match=words):
        TensorFile(index)


# A full disk


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses files over 2000 bytes, as it does where a disk or a quota is full."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"no room on the disk for .*x\.safetensors") as caught:
        write_tensors({"a": torch.zeros(1000)}, tmp_path / "x.safetensors")
    assert caught.value.__cause__ is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_in_the_last_shard_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(DiskFull):
        write_tensors({"a": torch.zeros(10), "b": torch.zeros(1000)}, tmp_path / "x.safetensors", 40)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, step: str) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors({"a": torch.zeros(3)}, path)
    old = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    if step == "write":
        monkeypatch.setattr(writing, "_save_stream", full)
    else:
        monkeypatch.setattr(os, step, full)
    remedy = {errno.EDQUOT: " of your own", errno.EFBIG: ": raise the size that a file may have (`ulimit -f`)"}
    with pytest.raises(DiskFull, match=rf"{re.escape(remedy.get(code, 'free some space'))} and type the command again"):
        write_tensors({"a": torch.ones(5)}, path)
    assert path.read_bytes() == old
    assert [one.name for one in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("limit", [10**6, 40])
def test_checksums_are_those_of_the_files(tmp_path: Path, limit: int) -> None:
    content = {"a": torch.zeros(10), "b": torch.ones(10)}
    opened, checksums = write_checked_tensors(content, tmp_path / "x.safetensors", limit)
    assert opened.name == ("x.safetensors" if limit > 40 else "x.safetensors.index.json")
    found = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert checksums == found
    assert len(found) == (1 if limit > 40 else 3)
