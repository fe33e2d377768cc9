"""What is said where several processes sum their losses, or do not end together."""

from __future__ import annotations

from typing import Any

import torch

from tvgrad.errors import TvgradError
from tvgrad.integrations.measuring.why_ended import why_failed
from tvgrad.record.measurement import compared
from tvgrad.record.weighing import BatchWeights, Weighing


def weights_of(**more: Any) -> str:
    facts: dict[str, Any] = {
        "samples": 4, "data": 4, "batches": 2, "content": 11, "dtype": "float32", "epochs_repeated": 0, "weight": 4.0,
        "steps": 1, "batches_a_step": 1, "mean_norm": 1.0, "batch_fingerprints": [11], "batches_of_each": [1],
        "watched": False, **more,
    }  # fmt: skip
    one = facts, {"weight": torch.ones(3, dtype=torch.float64)}
    return compared(BatchWeights(Weighing.SUM, confirmed=True), one, one).weights


def test_sums_of_several_processes_are_said_to_be_averaged() -> None:
    alone = "batches added, the loss being a sum"
    assert weights_of() == weights_of(processes=1) == alone
    assert weights_of(processes=2) == f"{alone}, and divided by 2: its processes average their gradients"


def test_what_failed_in_a_pass_is_one_sentence() -> None:
    lost = RuntimeError("[/a/gloo/pair.cc:537] Read error [127.0.0.1]:9417: Connection reset by peer.")
    assert why_failed(lost).startswith("the processes do not come to the end of the epoch together")
    assert why_failed(TvgradError("a sentence")) == "a sentence"
    assert why_failed(ValueError("words")) == "ValueError: words"
