"""Files that are no regular files, or larger than what is read, are refused at once and by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tvgrad.errors import DamagedRun
from tvgrad.fields import MOST_PARTS, parse_json
from tvgrad.files.atomic import sha256_of, write_text_atomically
from tvgrad.files.regular import open_regular, read_bounded, read_json, read_text
from tvgrad.files.tensors import TensorFile

pytestmark = pytest.mark.timeout(20)  # a pipe that is opened waits for ever


def test_a_file_and_a_link_to_it_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("é")
    (tmp_path / "link").symlink_to("file")
    assert read_text(tmp_path / "file", tmp_path) == read_text(tmp_path / "link") == "é"


@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    for read in (open_regular, read_bounded, sha256_of):
        with pytest.raises(OSError, match=rf"it is a {kind} and no regular file"):
            read(path)
    with pytest.raises(DamagedRun, match=rf"x\.safetensors .* it is a {kind} and no regular file"):
        TensorFile(path)


def test_below_a_run_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("theirs")
    (tmp_path / "run" / "sub").mkdir(parents=True)
    (tmp_path / "run" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "sub" / "link").symlink_to(tmp_path / "elsewhere" / "file")
    for relative, words in (("folder/file", "folder in its path is a link"), ("sub/link", "it is a link")):
        with pytest.raises(OSError, match=words):
            read_text(tmp_path / "run" / relative, tmp_path / "run")
    (tmp_path / "by link").symlink_to(tmp_path / "run")  # the run itself may be one
    (tmp_path / "run" / "sub" / "own").write_text("mine")
    assert read_text(tmp_path / "by link" / "sub" / "own", tmp_path / "by link") == "mine"


def test_sizes_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert len(read_bounded(tmp_path / "file", most=100)) == 100
    with pytest.raises(OSError, match="more than the 99 bytes"):
        read_bounded(tmp_path / "file", most=99)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" + "0," * MOST_PARTS + "0]", "more than 4,000,000 parts"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "9" * 5000 + "]", "a number of 5000 digits"),
        (r'["\ud800"]', "half a character"),
        ("[1,", "Expecting value"),
    ],
)
def test_json_is_bounded(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_json_that_programs_write_is_read(tmp_path: Path) -> None:
    content = {"emoji": "\U0001f600", "numbers": [1, -2.5, 2**63, 1e300], "empty": None}
    (tmp_path / "file").write_text(json.dumps(content))
    assert read_json(tmp_path / "file") == content


def test_headers_of_huge_numbers(tmp_path: Path) -> None:
    for shape, words in (([10**15] * 65, "65 dimensions"), ([10**300], "301 digits"), ([10**19] * 60, "does not fit")):
        table = {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}
        header = json.dumps(table).encode()
        (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(DamagedRun, match=words):
            TensorFile(tmp_path / "x.safetensors")


def test_nothing_is_written_through_a_link_that_waits(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    for name in (f".mine.{os.getpid()}.tmp", "mine"):
        (tmp_path / name).symlink_to("theirs")
    write_text_atomically(tmp_path / "mine", "mine")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "mine").is_symlink()
