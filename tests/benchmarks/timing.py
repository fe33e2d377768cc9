"""Paired timing: competitors run in turn, so that a machine whose speed drifts is fair to all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one competitor, and its ratio to the first one, round by round."""

    name: str
    seconds: list[float]
    ratios: list[float]

    @property
    def row(self) -> dict[str, str]:
        """A line of a table: median seconds, and median, least and largest ratio."""
        return {
            "what": self.name,
            "seconds": f"{statistics.median(self.seconds):.3f}",
            "ratio": f"{statistics.median(self.ratios):.2f}",
            "from": f"{min(self.ratios):.2f}",
            "to": f"{max(self.ratios):.2f}",
        }


def paired(competitors: dict[str, Callable[[], object]], rounds: int = 7, warmup: int = 1) -> list[Timing]:
    """Time competitors in turn.

    Args:
        competitors: name -> what to run; the first is the unit of the ratios.
        rounds: counted rounds.
        warmup: rounds before, not counted.

    Returns:
        One timing a competitor.
    """
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    for number in range(warmup + rounds):
        for name, run in competitors.items():
            begin = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - begin)
    unit = seconds[next(iter(competitors))]
    return [
        Timing(name, taken, [one / base for one, base in zip(taken, unit, strict=True)])
        for name, taken in seconds.items()
    ]


def markdown(title: str, timings: list[Timing], note: str = "") -> str:
    """Render timings as a Markdown table.

    Args:
        title: stands above it.
        timings: the lines.
        note: stands below it.

    Returns:
        The text.
    """
    lines = [f"## {title}", "", "| what | seconds | ratio | from | to |", "| --- | --- | --- | --- | --- |"]
    lines += ["| " + " | ".join(timing.row.values()) + " |" for timing in timings]
    return "\n".join([*lines, "", note, ""])
