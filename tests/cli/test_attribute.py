"""`tvgrad attribute` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

WORDS = ("digits", "--tasks", "low", "--chunk-size", "900", "--lr", "0.01", "--epochs", "2")


def test_shares_and_counterfactuals(tvgrad: Callable[..., Any], refused: Callable[..., str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert tvgrad("trace", *WORDS, "--out", run, "--quiet").code == 0
    files = ("--save", tmp_path / "shares.csv", "--figure", tmp_path / "shares.svg")
    done = tvgrad("attribute", run, "--recipe", "digits", "--without-class", "3", *files)
    assert done.code == 0, done.err
    assert "Shares of classes in the task vector of low after epoch 2" in done.out
    assert "454 samples make 1 of the task vector" in done.out
    assert "of its norm, and their own loss from" in done.out
    assert "Without these samples (estimates: about)" in done.out
    assert "misses the training as it was" in done.out
    assert "Warning" not in done.out
    far = tmp_path / "far"
    assert tvgrad("trace", *WORDS[:5], "--lr", "0.5", "--epochs", "10", "--out", far, "--quiet").code == 0
    warned = tvgrad("attribute", far, "--recipe", "digits", "--without-class", "3")
    assert "Warning: the same prediction misses the training as it was" in warned.out
    assert "so train again without these samples" in warned.out
    table = pd.read_csv(tmp_path / "shares.csv")
    assert table["share"].sum() == pytest.approx(1, abs=1e-4)  # a float32 run
    assert (tmp_path / "shares.svg").read_text().startswith("<?xml")
    gone = table.index[table["label"] == 3]
    said = json.loads(
        tvgrad("attribute", run, "--recipe", "digits", "--without", ",".join(map(str, gone)), "--json").out
    )
    assert said["shares"] == pytest.approx(list(table["share"]), rel=1e-9)
    assert sum(row["share"] for row in said["classes"]) + said["rest"] == pytest.approx(1)
    assert said["most_aligned"][0] == table["share"].idxmax()
    assert said["without"]["removed"] == len(gone)
    assert said["without"]["predicted_removed_loss"] > said["without"]["removed_loss"]
    words = ("attribute", run, "--recipe", "digits")
    for more, sentence in (
        (("--without", "a"), "--without 'a' is no list of positions"),
        (("--without", "1", "--without-class", "1"), "give one"),
        (("--without-class", "9"), "no sample has class 9: there are 0, 1, 2, 3, 4"),
        (("--figure", tmp_path / "shares.doc"), "shares.doc is no picture"),
        (("--save", tmp_path / "none" / "a.csv"), "choose another --save"),
    ):
        assert sentence in refused(*words, *more)
