"""Paired timing: competitors run in turn, so that a machine whose speed drifts is fair to all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Figure:
    """One figure of a benchmark beside what it is compared with, and the goal it has.

    Attributes:
        what: what was measured.
        peer: what the ratio is to, or the unit of the value.
        values: one value a round.
        goal: the limit of the median, None where there is none.
        least: the goal is the least, not the most, that the median may be.
    """

    what: str
    peer: str
    values: Sequence[float]
    goal: float | None = None
    least: bool = False

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median keeps to the goal; None without one."""
        if self.goal is None:
            return None
        return self.median >= self.goal if self.least else self.median <= self.goal

    @property
    def row(self) -> tuple[str, ...]:
        """Cells of a line: figure, peer, median, least, largest, goal, verdict."""
        goal = "" if self.goal is None else f"at {'least' if self.least else 'most'} {self.goal:g}"
        verdict = ""
        if self.met is not None:
            away = abs(self.median / self.goal - 1) if self.goal else self.median
            verdict = "met" if self.met else f"missed by {away:.0%}"
        numbers = (_short(value) for value in (self.median, min(self.values), max(self.values)))
        return (self.what, self.peer, *numbers, goal, verdict)


HEADINGS = ("figure", "in units of", "median", "least", "largest", "goal", "verdict")


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


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


def ratios(timings: Sequence[Timing], above: str, below: str) -> list[float] | None:
    """Divide the seconds of one competitor by another's, round by round.

    Args:
        timings: of one call of `paired`.
        above: a competitor.
        below: another.

    Returns:
        One ratio a round; None where one of the two did not run (a peer that is not installed).
    """
    found = {timing.name: timing.seconds for timing in timings}
    if above not in found or below not in found:
        return None
    return [one / base for one, base in zip(found[above], found[below], strict=True)]


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


def figures_table(figures: Sequence[Figure]) -> str:
    """Render figures as a Markdown table.

    Args:
        figures: the lines.

    Returns:
        The text.
    """
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
    return "\n".join([*lines, *("| " + " | ".join(figure.row) + " |" for figure in figures)]) + "\n"
