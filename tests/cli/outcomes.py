"""What commands that are run in tests say."""

from __future__ import annotations

from typing import Any


def sentence(outcome: Any) -> str:
    """The one sentence with which a command refused what it was given."""
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    found = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
    assert len(found) == 1, outcome
    return str(found[0])
