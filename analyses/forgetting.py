"""What a model forgets of its first task when a second one is trained, the same one with inputs turned at random.

Linear regression on (X, y) and then on (X O, y), O a random rotation, from the least squares solution w_1 to the
solution w_2 of the second task that changes w_1 least. With d the rank of X and p parameters (theory: arXiv 2207.06475,
2401.12617)

    E ||X w_2 - y||^2 = ||X||_F^2 ||w_1||^2 (1/p + b) + a ||X w_1||^2 + ||y - X w_1||^2,
    b = d (p - d) / (p (p + 2) (p - 1)),    a = d (d + 2) / (p (p + 2)) - b.

Ten shapes (n, p) are simulated. Beside it stands what a network forgets of handwritten digits when it is trained on
digits with permuted pixels, against its width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy import stats
from sklearn.datasets import load_digits
from torch import nn

from tvgrad.errors import TvgradError

from .analysis_result import AnalysisResult, outcome_of
from .concept_figures import panels
from .concept_verdicts import LEVEL
from .intervals import holm, seed_mean
from .model_stack import ModelStack
from .resumable_cache import ResumableCache, Rows

SHAPES = ("10:5", "10:10", "10:20", "10:40", "10:80", "20:10", "20:20", "20:30", "20:60", "40:50")
DRAWS = 2000
AT_ONCE = 500  # rotations in memory
NOISE = 0.5  # standard deviation of what is added to y
SEED = 20250401
STANDARD_ERRORS = 2.0
CLOSE = 0.05  # of the formula's value: every interval must lie within it
WIDTHS = (8, 16, 32, 64, 128, 256)
SEEDS, STEPS, LR = 5, 300, 0.5
TRAIN = 1200  # of 1797 images; the rest is tested on
WIDTH, HEIGHT = 6.6, 2.7

Array = NDArray[np.float64]


def expected_error(inputs: Array, targets: Array) -> float:
    """The expectation of `||X w_2 - y||^2` by the formula.

    Args:
        inputs: X, shape (n, p), p at least 2.
        targets: y, shape (n,).

    Returns:
        The expectation over rotations.
    """
    rank, parameters = int(np.linalg.matrix_rank(inputs)), inputs.shape[1]
    first = np.linalg.pinv(inputs) @ targets
    b = rank * (parameters - rank) / (parameters * (parameters + 2) * (parameters - 1))
    a = rank * (rank + 2) / (parameters * (parameters + 2)) - b
    fitted = inputs @ first
    moved = (inputs**2).sum() * (first**2).sum() * (1 / parameters + b) + a * (fitted**2).sum()
    return float(moved + ((targets - fitted) ** 2).sum())


def simulated_errors(inputs: Array, targets: Array, draws: int, generator: np.random.Generator) -> Array:
    """Train on both tasks, under many rotations.

    Args:
        inputs: X, shape (n, p).
        targets: y, shape (n,).
        draws: how many rotations.
        generator: of the random numbers.

    Returns:
        `||X w_2 - y||^2` of each, shape (draws,).
    """
    at_once = range(0, draws, AT_ONCE)
    return np.concatenate([_turned(inputs, targets, min(AT_ONCE, draws - start), generator) for start in at_once])


def _turned(inputs: Array, targets: Array, draws: int, generator: np.random.Generator) -> Array:
    first = np.linalg.pinv(inputs) @ targets
    square = generator.standard_normal((draws, inputs.shape[1], inputs.shape[1]))
    turn, upper = np.linalg.qr(square)
    # Haar's measure needs the signs of the triangle's diagonal.
    turn = turn * np.sign(np.diagonal(upper, axis1=-2, axis2=-1))[:, None, :]
    second = inputs @ turn
    change = np.linalg.pinv(second) @ (targets - second @ first)[..., None]
    errors = (first + change[..., 0]) @ inputs.T - targets
    return np.asarray((errors**2).sum(axis=-1))


def analyse(
    target: str = "digits",
    shapes: Sequence[str] = SHAPES,
    draws: int = DRAWS,
    widths: Sequence[int] = WIDTHS,
    seeds: int = SEEDS,
    steps: int = STEPS,
    cells: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> AnalysisResult:
    """Simulate the regression at each shape, and train networks on digits and then on permuted ones.

    Args:
        target: nothing but `digits`: the permuted digits are those of scikit-learn.
        shapes: n:p, samples and parameters.
        draws: rotations of each shape, at least 100.
        widths: of the network's hidden layer.
        seeds: of networks and permutations, at least two.
        steps: of full-batch gradient descent on each task.
        cells: a folder that keeps what is finished; empty keeps nothing.
        progress: called with the parts done and their number.

    Returns:
        The result.

    Raises:
        TvgradError: an option is out of range.
    """
    if target != "digits":
        raise TvgradError(f"this analysis makes its own tasks and cannot run on {target}: leave --on out")
    sizes = [_read_shape(text) for text in shapes]
    if draws < 100 or seeds < 2 or steps < 1 or len(widths) < 2 or min(widths) < 1:
        raise TvgradError(
            "draws must be at least 100, seeds 2 and steps 1, and widths two or more whole numbers above 0: "
            f"not {draws}, {seeds}, {steps} and {', '.join(map(str, widths))}"
        )
    store = ResumableCache(cells, {"draws": draws, "steps": steps, "networks": seeds})
    parts: list[Callable[[], tuple[Rows, ...]]] = [
        partial(store.rows, {"shape": f"{n}x{p}"}, partial(_regression, n, p, draws)) for n, p in sizes
    ]
    parts += [partial(store.rows, {"width": width}, partial(_networks, width, seeds, steps)) for width in widths]
    rows: Rows = []
    for place, part in enumerate(parts):
        rows += part()[0]
        if progress is not None:
            progress(place + 1, len(parts))
    return _result(pd.DataFrame(rows[: len(sizes)]), pd.DataFrame(rows[len(sizes) :]))


def _read_shape(text: str) -> tuple[int, int]:
    try:
        samples, parameters = (int(part) for part in text.split(":"))
    except ValueError:
        samples = parameters = 0
    if samples < 1 or parameters < 2:
        raise TvgradError(f"{text!r} is no shape: give samples:parameters, at least 1:2, as in 10:40")
    return samples, parameters


def _regression(samples: int, parameters: int, draws: int) -> tuple[Rows]:
    generator = np.random.default_rng([SEED, samples, parameters])
    inputs = generator.standard_normal((samples, parameters))
    truth = generator.standard_normal(parameters) / math.sqrt(parameters)
    targets = inputs @ truth + NOISE * generator.standard_normal(samples)
    expected = expected_error(inputs, targets)
    errors = simulated_errors(inputs, targets, draws, generator)
    mean, error = float(errors.mean()), float(errors.std(ddof=1)) / math.sqrt(draws)
    start = float(((targets - inputs @ (np.linalg.pinv(inputs) @ targets)) ** 2).sum())
    row = {
        "samples": samples, "parameters": parameters, "expected": expected, "simulated": mean, "standard_error": error,
        "deviations": (mean - expected) / error, "forgotten": expected - start,
    }  # fmt: skip
    return ([row],)


class _DigitsNetwork(nn.Sequential):
    def __init__(self, width: int, seed: int) -> None:
        super().__init__(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in (self[0], self[2]):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=draw) / math.sqrt(layer.weight.shape[1]))
                layer.bias.zero_()


def _networks(width: int, seeds: int, steps: int) -> tuple[Rows]:
    """All seeds of a width in one stack: digits first, then digits with permuted pixels."""
    data = load_digits()
    images, labels = torch.from_numpy(data.data / 16.0).float(), torch.from_numpy(data.target.astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(SEED).permutation(len(images)))
    train, test = order[:TRAIN], order[TRAIN:]
    turns = torch.stack([
        torch.from_numpy(np.random.default_rng([SEED, seed]).permutation(64)) for seed in range(seeds)
    ])
    stack = ModelStack([_DigitsNetwork(width, seed) for seed in range(seeds)])
    first = images[train].expand(seeds, -1, -1)
    second = torch.stack([images[train][:, turn] for turn in turns])
    targets = labels[train].expand(seeds, -1)
    loss = nn.functional.cross_entropy
    alone = stack.trained([(first, targets)] * steps, loss, LR)
    both = stack.trained([(second, targets)] * steps, loss, LR, start=alone)

    def accuracy(weights: dict[str, torch.Tensor], inputs: torch.Tensor) -> list[float]:
        found = stack.outputs(weights, inputs).argmax(-1) == labels[test]
        return [float(value) for value in found.double().mean(-1)]

    tests = images[test].expand(seeds, -1, -1)
    turned = torch.stack([images[test][:, turn] for turn in turns])
    before, after, new = accuracy(alone, tests), accuracy(both, tests), accuracy(both, turned)
    row: dict[str, float] = {"width": width, "parameters": 75 * width + 10}
    lost = [one - other for one, other in zip(before, after, strict=True)]
    for name, values in (("before", before), ("after", after), ("second", new), ("lost", lost)):
        row |= {f"{name}_{seed}": value for seed, value in enumerate(values)}
    return ([row],)


def _result(regression: pd.DataFrame, networks: pd.DataFrame) -> AnalysisResult:
    scores = regression["deviations"].abs()
    within = int((scores <= STANDARD_ERRORS).sum())
    half = stats.norm.ppf(1 - LEVEL / 2) * regression["standard_error"]
    farthest = ((regression["simulated"] - regression["expected"]).abs() + half) / regression["expected"]
    corrected = holm([float(2 * stats.norm.sf(score)) for score in scores])
    columns = [name for name in networks if name.startswith("lost_")]
    lost = networks[columns].to_numpy()
    fall = seed_mean(lost[0] - lost[-1])
    widths = networks["width"].tolist()
    return AnalysisResult(
        claim="The error on the first task after the second has the expectation of the formula.",
        outcome=outcome_of(farthest.max() <= CLOSE and min(corrected) > LEVEL, min(corrected) <= LEVEL),
        evidence=(
            f"every 95 % interval of simulated / formula lies within {farthest.max():.1%} of 1, and {CLOSE:.0%} is "
            f"asked for; {within} of {len(regression)} shapes within {STANDARD_ERRORS:g} standard errors, the farthest "
            f"{scores.max():.2f} (p {min(corrected):.2g}, corrected)"
        ),
        table=regression,
        draw=partial(_draw, regression, networks),
        verdicts=(
            f"the plainer rule, every shape within {STANDARD_ERRORS:g} standard errors: "
            f"{outcome_of(within == len(scores))}, {within} of {len(scores)}; of {len(scores)} true values all are in "
            f"{2 * stats.norm.cdf(STANDARD_ERRORS) - 1:.3f}^{len(scores)} = "
            f"{(2 * stats.norm.cdf(STANDARD_ERRORS) - 1) ** len(scores):.0%} of studies",
            f"digits and permuted digits: the wider network forgets less: {outcome_of(fall.low > 0, fall.high < 0)}, "
            f"points lost at width {widths[0]} minus at width {widths[-1]}: {fall.points()}",
            "points lost at each width: "
            + ", ".join(f"{width}: {seed_mean(row).points()}" for width, row in zip(widths, lost, strict=True)),
        ),
    )


def _draw(regression: pd.DataFrame, networks: pd.DataFrame, ax: Axes) -> None:
    left, right = panels(ax, 2, WIDTH, HEIGHT, share=False)
    left.errorbar(
        regression["expected"], regression["simulated"] / regression["expected"],
        yerr=STANDARD_ERRORS * regression["standard_error"] / regression["expected"],
        fmt="o", markersize=3.5, elinewidth=0.9, capsize=2,
    )  # fmt: skip
    left.axhline(1, color="0.3", linewidth=0.8, linestyle=":")
    left.set(xscale="log", xlabel="error by the formula", ylabel="simulated / formula", title="linear regression")
    columns = [name for name in networks if name.startswith("lost_")]
    found = [seed_mean(row) for row in networks[columns].to_numpy()]
    middle = 100 * np.array([one.mean for one in found])
    right.errorbar(
        networks["width"], middle,
        yerr=[middle - [100 * one.low for one in found], [100 * one.high for one in found] - middle],
        marker="o", markersize=3.5, linewidth=1.2, elinewidth=0.9, capsize=2,
    )  # fmt: skip
    right.set_xscale("log", base=2)
    right.set(xlabel="hidden neurons", ylabel="points of accuracy lost", title="digits, then permuted digits")
