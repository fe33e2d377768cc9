"""What the system says of a file that cannot be written becomes one sentence: which file, why, what to do."""

from __future__ import annotations

import ast
import errno
import os
import socket
from pathlib import Path

import pytest

import tvgrad
from tvgrad.errors import DiskFull, TvgradError, Unwritable
from tvgrad.files.atomic import write_text_atomically
from tvgrad.files.writable import make_folder, require_file, require_folder

ROOT = Path(tvgrad.__file__).parents[1]
WRITERS = {
    # what is replaced whole, and what makes folders, with the errors of both in words
    "tvgrad/files/atomic.py", "tvgrad/files/writable.py",
    # the files of a run, whose errors `in_words` tells
    "tvgrad/store/writer.py",
    # written under the temporary name that `write_atomically` gives
    "tvgrad/files/writing.py", "tvgrad/report/figure_files.py", "tvgrad/checkpoints/carried.py",
    "cli/relate.py", "cli/relate_targets.py",
    # errors told where they are caught: the demo's folder, caches, and parts of a run that several processes write
    "cli/demo.py", "tvgrad/recipes/pretraining.py", "tvgrad/report/vega.py", "tvgrad/recipes/smollm2.py",
    "tvgrad/streaming/products_file.py", "tvgrad/record/spread_writer.py",
    # between two processes, in a folder of their own
    "tvgrad/integrations/measuring/explain_passes.py", "tvgrad/integrations/measuring/pass_files.py",
}  # fmt: skip


def test_nothing_is_written_elsewhere() -> None:
    """A write outside of these files would tell its errors as the system does, without a file and a remedy."""
    names = {"write_text", "write_bytes", "savefig", "save_file", "mkdir", "copyfile"}
    found = set()
    for folder in ("tvgrad", "cli", "analyses"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, (ast.Attribute, ast.Name)):
                    continue
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                if name in names:
                    found.add(path.relative_to(ROOT).as_posix())
    assert found <= WRITERS


@pytest.mark.parametrize(
    ("code", "kind", "remedy"),
    [
        (errno.ENOSPC, DiskFull, "no room on the disk for PLACE: free some space and type the command again"),
        (errno.EDQUOT, DiskFull, "no room on the disk for PLACE (Disk quota exceeded): free some space of your own"),
        (errno.EFBIG, DiskFull, r"no room on the disk for PLACE (File too large): raise .* (`ulimit -f`) and type"),
        (errno.EROFS, Unwritable, "PLACE cannot be written (Read-only file system): choose another --save"),
        (errno.EIO, Unwritable, "PLACE cannot be written (Input/output error): choose another --save"),
    ],
)
def test_a_file_and_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[TvgradError], remedy: str
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("tvgrad.files.atomic.replace", refused)
    words = remedy.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(kind, match="^" + words.replace("PLACE", str(tmp_path / "x"))):
        write_text_atomically(tmp_path / "x", "text", option="--save")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(kind, match="^" + words.replace("PLACE", str(tmp_path / "y")).replace("written", "made .*")):
        make_folder(tmp_path / "y", option="--save")


def test_what_stands_in_the_place_of_a_file_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(os.path.relpath(tmp_path / "socket"))
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to-pipe").symlink_to("pipe")
    before = {path.name: path.lstat().st_ino for path in tmp_path.iterdir()}
    for name in before:
        with pytest.raises(TvgradError, match="choose another --save"):
            require_file(tmp_path / name, "--save")
    for name in ("pipe", "folder", "socket"):
        with pytest.raises(Unwritable, match=r"cannot be written \(it is a .* and no regular file\)"):
            write_text_atomically(tmp_path / name, "text")
        if name != "folder":
            with pytest.raises(TvgradError, match=f"{name} is a {name}: choose"):
                require_folder(tmp_path / name / "below")
    with pytest.raises(TvgradError, match="loop is a link that leads nowhere: choose"):
        require_folder(tmp_path / "loop")
    assert {path.name: path.lstat().st_ino for path in tmp_path.iterdir()} == before


def test_a_device_is_no_file_and_no_folder() -> None:
    with pytest.raises(TvgradError, match=r"cannot be written \(it is a device and no regular file\): choose another"):
        require_file(Path("/dev/null"))
    with pytest.raises(TvgradError, match="/dev/null is a device: choose another --out"):
        require_folder(Path("/dev/null"))


def test_a_link_to_a_file_is_followed_where_the_user_named_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/x.csv")
    place = require_file(tmp_path / "link")
    write_text_atomically(place, "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real/x.csv").read_text() == "text"


def test_a_place_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda place, _: Path(place) != tmp_path)
    with pytest.raises(TvgradError, match=r"may not be written to: choose another --save"):
        require_file(tmp_path / "x", "--save")
    with pytest.raises(TvgradError, match=r"may not be written to: choose another --out"):
        require_folder(tmp_path / "far" / "below")
