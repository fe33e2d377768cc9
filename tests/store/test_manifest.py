"""run.json: a round trip, and every way in which it may be wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tvgrad.errors import DamagedRun, TvgradError
from tvgrad.store.layout import is_own
from tvgrad.store.manifest import FileEntry, Manifest, Parameter, Point, read_manifest
from tvgrad.store.run import Run

DIGEST = "0" * 64


def entry(path: str) -> FileEntry:
    return FileEntry(path, ((path, DIGEST, 12),))


MANIFEST = Manifest(
    info={"rule": {"name": "gd", "lr": 0.1}, "seed": 3},
    unit="epoch",
    parameters={"layer.weight": Parameter((2, 3), "float32", "layer")},
    tied={"head.weight": "layer.weight"},
    points=(
        Point(0, 0, {"weights": entry("weights/epoch-0000.safetensors")}, {"loss": 0.1 + 0.2}),
        Point(1, 4, {"weights": entry("weights/epoch-0001.safetensors")}, {"loss": float("inf")}),
    ),
    static=entry("static.safetensors"),
    state=entry("state/epoch-0001.json"),
    finished=True,
)


def test_round_trip(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(MANIFEST.to_json())
    assert read_manifest(tmp_path) == MANIFEST


def test_it_is_json_for_every_language() -> None:
    """Python's own NaN and Infinity are no JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    content = json.loads(MANIFEST.to_json(), parse_constant=refuse)
    assert (content["format"], content["version"]) == ("tvgrad run", 1)
    assert content["points"][1]["metrics"] == {"loss": "inf"}


def test_listed_names_every_file() -> None:
    assert MANIFEST.listed() == {
        "weights/epoch-0000.safetensors",
        "weights/epoch-0001.safetensors",
        "static.safetensors",
        "state/epoch-0001.json",
    }


@pytest.mark.parametrize(("unit", "number", "stem"), [("epoch", 3, "epoch-0003"), ("step", 10, "step-000010")])
def test_stem(unit: str, number: int, stem: str) -> None:
    assert Manifest({}, unit, {}).stem(number) == stem


@pytest.mark.parametrize(
    "relative",
    [
        "weights/epoch-0000.safetensors",
        "weights/epoch-12345.safetensors",
        "gradients/step-000010-00001-of-00002.safetensors",
        "gradients/step-000010.safetensors.index.json",
        "steps/epoch-0001.csv",
        "state/epoch-0001.json",
        "static.safetensors",
        "static-00001-of-00003.safetensors",
        "static.safetensors.index.json",
        ".run.json.123.tmp",
        "weights/.epoch-0001.safetensors.77.tmp",
        "state/.tmp9Sbatx",
    ],
)
def test_names_that_the_writer_gives_are_its_own(relative: str) -> None:
    assert is_own(relative)


@pytest.mark.parametrize(
    "relative",
    [
        "weights/best.safetensors",
        "weights/epoch-0001.pt",
        "weights/notes.txt",
        "static-notes.txt",
        "static.txt",
        "run.json",
        "metrics.csv",
        "other/epoch-0001.safetensors",
        "other/.x.1.tmp",
        ".hidden.tmp",
        "weights/.tmp",
        "weights/.tmp-notes",
        "results/epoch-0001.json",
    ],
)
def test_other_names_are_somebody_elses(relative: str) -> None:
    assert not is_own(relative)


def put(change: Callable[[dict[str, Any]], object]) -> str:
    content = json.loads(MANIFEST.to_json())
    change(content)
    return json.dumps(content)


DAMAGED = {
    "empty": "",
    "truncated": MANIFEST.to_json()[:200],
    "not JSON": "weights: 3",
    "a list": "[1, 2]",
    "a number": "7",
    "null": "null",
    "deep": "[" * 100_000,
    "another format": put(lambda c: c.update(format="a diary")),
    "no format": put(lambda c: c.pop("format")),
    "no version": put(lambda c: c.pop("version")),
    "no points": put(lambda c: c.pop("points")),
    "no parameters": put(lambda c: c.pop("parameters")),
    "points a number": put(lambda c: c.update(points=3)),
    "point null": put(lambda c: c.update(points=[None])),
    "parameters a list": put(lambda c: c.update(parameters=["layer.weight"])),
    "shape of words": put(lambda c: c["parameters"]["layer.weight"].update(shape=["two"])),
    "unit": put(lambda c: c.update(unit="fortnight")),
    "unit a list": put(lambda c: c.update(unit=["epoch"])),
    "number infinite": put(lambda c: c["points"][0].update(number=float("inf"))),
    "number null": put(lambda c: c["points"][0].update(number=None)),
    "out of order": put(lambda c: c["points"].reverse()),
    "twice": put(lambda c: c["points"].append(c["points"][1])),
    "metric a word": put(lambda c: c["points"][0].update(metrics={"loss": "low"})),
    "metrics a list": put(lambda c: c["points"][0].update(metrics=[1])),
    "static a word": put(lambda c: c.update(static="static.safetensors")),
    "parts short": put(lambda c: c["static"].update(parts=[["static.safetensors"]])),
    "info a number": put(lambda c: c.update(info=5)),
    "parent": put(lambda c: c["static"].update(path="../elsewhere.safetensors")),
    "parent inside": put(lambda c: c["static"].update(path="weights/../../elsewhere.safetensors")),
    "absolute": put(lambda c: c["static"].update(path="/etc/passwd")),
    "absolute part": put(lambda c: c["static"].update(parts=[["/etc/passwd", DIGEST, 3]])),
    "backslash": put(lambda c: c["static"].update(path="..\\elsewhere")),
    "no path": put(lambda c: c["static"].update(path="")),
    "path a number": put(lambda c: c["static"].update(path=3)),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(DamagedRun, match=r"run\.json .*restore it or trace the run again") as caught:
        Run.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_description_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DamagedRun, match="cannot be read"):
        Run.open(tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_named(tmp_path: Path, version: object) -> None:
    (tmp_path / "run.json").write_text(put(lambda content: content.update(version=version, points="changed since")))
    with pytest.raises(TvgradError, match=f"format version {version!r} and this tvgrad reads version 1"):
        Run.open(tmp_path)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(TvgradError, match=r"not a run directory: it has no run\.json"):
        Run.open(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(TvgradError, match="not a run directory"):
        Run.open(tmp_path / "file")


def test_a_file_is_described_and_compared(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"twelve bytes")
    made = FileEntry.of(tmp_path, path)
    digest = hashlib.sha256(b"twelve bytes").hexdigest()
    assert (made.path, made.parts, made.nbytes) == ("weights", (("weights", digest, 12),), 12)
    assert made.problems(tmp_path) == []
    path.write_bytes(b"Twelve bytes")
    assert made.problems(tmp_path) == ["weights does not have the checksum it was written with"]
    assert made.problems(tmp_path, checksums=False) == []
    path.write_bytes(b"short")
    assert made.problems(tmp_path) == ["weights has 5 bytes instead of 12"]
    path.unlink()
    assert made.problems(tmp_path) == ["weights is missing"]
