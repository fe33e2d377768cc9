"""What a measuring pass notes of a gradient is among the facts that a run may hold."""

from __future__ import annotations

from tvgrad.integrations.measuring.weights_probe import BatchWeights
from tvgrad.store.schema import check_facts


def test_the_facts_of_a_measured_gradient() -> None:
    weights = BatchWeights(confirmed=True)
    measured = {"kind": "exact full batch", "deviation": 0.0, "weighing": weights.weighing.value}
    check_facts({"measured_gradients": {"0": {**measured, "counter": weights.counter}}})
