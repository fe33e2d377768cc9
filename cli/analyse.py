"""`tvgrad analyse`: put one claim to the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tvgrad.errors import CheckFailed, TvgradError
from tvgrad.files.writable import make_folder, require_folder
from tvgrad.wording import near

from . import options

ANALYSES = {
    "one_epoch_equivalence": "After one full-batch epoch the task vector is minus the rate times the gradient.",
    "second_order_error": "One Hessian-vector product predicts how far it drifts from the gradient afterwards.",
    "convergence_orders": "What the predictions leave falls with the second or third power of the learning rate.",
    "multitask_gap": "Task arithmetic and multitask training differ by a second-order term that is known beforehand.",
    "practical_optimizers": "Momentum and Adam leave a residual that no small rate removes, and the budget names it.",
    "merge_epochs": "Merging models tuned for one epoch is as good as merging converged ones.",
    "merge_coefficients": "How far to go along a merge is told from the pretrained weights, before any training.",
    "merge_methods": "With a coefficient searched for each, no merging method beats the plain sum by two points.",
    "mergeability": "What merging changes in every task's loss is told before training; cosines do not tell it.",
    "fairness": "Merging task vectors of two groups is fairer than tuning one model on both.",
    "tangent_space": "Linearised models get less in each other's way than ordinary ones of equal accuracy.",
    "leave_out": "What training without some samples would have made is told without training.",
    "task_addition": "Conceptual tasks of overlap rho are both solved from lambda = 1 - rho on, opposed ones never.",
    "task_negation": "Subtracting a conceptual task's vector forgets it and keeps an unrelated or opposed task.",
    "out_of_domain": "Task vectors weighed for a mixture of conceptual tasks solve it from sum lambda gamma = 1 on.",
    "low_rank": "Task vectors of rank 1 keep the effect of adding and of negating.",
    "mechanism": "Margins are linear in the overlap of two conceptual tasks, attention logits quadratic.",
    "task_pairs": "One product a task tells how real tasks will relate better than their gradients alone.",
    "coloured_pairs": "On real coloured digits task vectors add, subtract and mix as the theory of such pairs says.",
    "unlearning": "Subtracting a text's task vector takes the text out of a language model and leaves others in.",
    "forgetting": "What linear regression forgets on randomly turned inputs follows an exact formula.",
}
"""Analysis (a module of this package with a function `analyse`) -> the claim, in a line."""
DEFAULT_TARGET = "digits"
"""The recipe of an analysis that names no other."""
OUTCOMES = {
    "holds": "It held",
    "fails": "It did not hold",
    "undecided": "It is undecided",
    "vacuous": "It is vacuous",
}
"""Outcome of an analysis -> how the terminal says it."""


@click.command()
@click.argument("name", required=False)
@click.option("--on", "target", help="TARGET of the recipe to run it on; by default the analysis's own, mostly digits.")
@click.option(
    "--out", type=options.PATH, default="tvgrad-analyses", show_default=True, help="Folder for table and figure."
)
@click.option("--set", "given", multiple=True, help="NAME=VALUE: an option of the analysis; may be repeated.")
def analyse(name: str | None, target: str | None, out: Path, given: tuple[str, ...]) -> None:
    """Put one claim to the test on real data: one table, one figure, and whether it held (exit code 1: it failed).

    A claim that the data leave undecided, or that is vacuous on them, is printed as such and ends with exit code 0.

    Without NAME, the analyses are listed.

    \b
    Examples:
      tvgrad analyse
      tvgrad analyse second_order_error
      tvgrad analyse second_order_error --on suite-vit --out analyses-vit
      tvgrad analyse merge_epochs --on suite --set optimizers=gd,sgd,adam \\
        --set seeds=5 --set epochs=64
    """
    import importlib
    import inspect
    from dataclasses import replace

    if name is None:
        for known, claim in ANALYSES.items():
            click.echo(f"{known:<{max(map(len, ANALYSES))}}  {claim}")
        return
    chosen = name.replace("-", "_")
    if chosen not in ANALYSES:
        raise TvgradError(f"there is no analysis {name!r}: choose one of {', '.join(ANALYSES)}{near(chosen, ANALYSES)}")
    from tvgrad.cli.terminal import percent_bar, print_table, say

    from tvgrad.report.documents import write_tables

    require_folder(out)
    make_folder(out)
    run = importlib.import_module(f"tvgrad.analyses.{chosen}").analyse
    known = inspect.signature(run).parameters
    own = known["target"].default
    on = target or (DEFAULT_TARGET if own is inspect.Parameter.empty else own)
    chosen_options = _options(given, run)
    with percent_bar(chosen) as progress:
        result = run(on, **chosen_options, **({"progress": progress} if "progress" in known else {}))
    print_table(chosen, result.table)
    figure = out / f"{chosen}.png"
    result.save(figure)
    for other, draw in result.others.items():
        replace(result, draw=draw).save(out / f"{chosen}_{other}.png")
    written = write_tables({chosen: result.table}, out, ("csv",))
    say(f"Figure: {figure}, table: {written[0]}")
    say(f"Claim: {result.claim}")
    say(f"{OUTCOMES[result.outcome]}: {result.evidence}.")
    for verdict in result.verdicts:
        say(f"  {verdict}.")
    if result.outcome == "fails":
        raise CheckFailed(f"the claim of {chosen} did not hold on {on}")


def _options(given: tuple[str, ...], run: Callable[..., Any]) -> dict[str, Any]:
    """Options of an analysis from NAME=VALUE: numbers and words, as its function's own defaults are."""
    import inspect

    known = {
        name: option.default
        for name, option in inspect.signature(run).parameters.items()
        if name != "target" and isinstance(option.default, (int, float, str, tuple))
    }
    chosen: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or name not in known:
            names = ", ".join(known) or "none"
            raise TvgradError(f"--set {text!r} is no NAME=VALUE of this analysis: choose from {names}")
        default = known[name]
        try:
            if isinstance(default, (int, float)):
                chosen[name] = type(default)(value)
            elif isinstance(default, tuple):
                kind = type(default[0]) if default else str
                chosen[name] = tuple(kind(part) for part in value.split(","))
            else:
                chosen[name] = value
        except ValueError:
            raise TvgradError(f"--set {text!r}: {name} is a {type(default).__name__} such as {default!r}") from None
    return chosen
