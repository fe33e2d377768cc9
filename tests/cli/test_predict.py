"""`tvgrad predict` on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest


def test_the_table_and_a_plain_sentence(tvgrad: Callable[..., Any]) -> None:
    done = tvgrad("predict", "digits", "--tasks", "low,rotated", "--lr", "0.01", "--epochs", "5", "--chunk-size", "900")
    assert done.code == 0, done.err
    assert "(estimates: about)" in done.out
    digits = [re.sub(r"e[+-]\d+$|^0?\.0*|\.", "", number) for number in re.findall(r"\d*\.\d+(?:e[+-]\d+)?", done.out)]
    assert digits
    assert max(map(len, digits)) <= 3, done.out
    assert "low: up to about" in done.out
    assert "the task vector is the gradient within 10%" in done.out


def test_json_has_every_number(tvgrad: Callable[..., Any]) -> None:
    done = tvgrad(
        "predict", "digits", "--tasks", "low", "--optimizer", "momentum", "--lr", "0.01", "--epochs", "4",
        "--quadratic", "--curvature", "--json", "--chunk-size", "900",
    )  # fmt: skip
    (row,) = json.loads(done.out)
    assert row["task"] == "low"
    assert row["frozen_share"] < 0.1
    assert row["gradients"] == 1
    assert row["hvps"] > 3
    assert 0 < row["error_norm"] < row["task_vector_norm"]
    assert row["stability_limit"] > 0
    assert row["kind"] == "estimate"


def test_cost_is_told_and_nothing_computed(tvgrad: Callable[..., Any]) -> None:
    words = ["--tasks", "low", "--cost", "--epochs", "9", "--chunk-size", "900"]
    done = tvgrad("predict", "digits", *words)
    assert done.code == 0
    assert done.out.startswith("low: 1 gradient and 1 Hessian-vector product over 454 samples, about ")
    done = tvgrad(
        "predict", "digits", "--tasks", "low", "--cost", "--epochs", "9", "--quadratic", "--chunk-size", "900"
    )
    assert "8 Hessian-vector products" in done.out


def test_a_rate_over_the_limit_is_said(tvgrad: Callable[..., Any]) -> None:
    done = tvgrad("predict", "digits", "--tasks", "low", "--lr", "1000", "--chunk-size", "900")
    assert done.code == 0
    assert "over the stability limit" in done.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["digits", "--optimizer", "adam"], "not a linear update rule"),
        (["digits", "--threshold", "0"], "--threshold must be a positive number"),
        (["digits", "--lr", "-1"], "--lr must be a positive number"),
        (["nothing"], "unknown recipe"),
        (["digits", "--tasks", "lowest"], "no task called"),
    ],
)
def test_bad_input(words: list[str], sentence: str, refused: Callable[..., str]) -> None:
    assert sentence in refused("predict", *words)
