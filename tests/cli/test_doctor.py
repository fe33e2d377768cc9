"""`tvgrad doctor`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tvgrad import installation
from tvgrad.installation import FAILED, Check

Tvgrad = Callable[..., Any]


def test_a_line_for_each_check(tvgrad: Tvgrad) -> None:
    outcome = tvgrad("doctor", "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    *lines, last = outcome.out.splitlines()
    assert last == f"All {len(lines)} checks pass; a warning names something to avoid."
    assert all(line.split()[0] in {"ok", "note", "warning"} for line in lines)
    for what in ("versions: tvgrad ", f"torch: {torch.__version__}", "device: cpu, ", "SGD(fused=True) in bfloat16: "):
        assert sum(what in line for line in lines) == 1, what
    assert any("disk: " in line and " free in " in line for line in lines)
    machine = json.loads(tvgrad("doctor", "--device", "cpu", "--json").out)
    words = [f"{row['what']}: {row['words']}" for row in machine]
    assert words[:5] == [line.split(maxsplit=1)[1] for line in lines[:5]]


def test_a_check_that_failed(tvgrad: Tvgrad, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "_attention", lambda device: Check("attention", FAILED, "is wrong: use another"))
    outcome = tvgrad("doctor", "--device", "cpu")
    assert outcome.code == 1
    assert " failed  attention: is wrong: use another\n" in outcome.out
    assert outcome.err.startswith("Error: 1 of ")
    assert outcome.err.endswith(" checks failed: attention\n")


def test_an_absent_device(refused: Callable[..., str]) -> None:
    assert refused("doctor", "--device", "abacus").endswith(": choose auto or cpu")
