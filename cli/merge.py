"""`tvgrad merge`: one model from several runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import pandas as pd

    from tvgrad.merging import Method
    from tvgrad.merging.evaluation import Scorer
    from tvgrad.merging.runs import MergedFile
    from tvgrad.store.run import Run
    from tvgrad.vectors.parameters import Weights

SEARCH = "search"


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--epoch", type=int, help="Epoch to merge (default: the last that all runs keep).")
@click.option(
    "--method",
    "name",
    default="mean",
    show_default=True,
    help="task_arithmetic (the sum), mean, ties, dare, median, tsv_m, breadcrumbs, negation or analogy.",
)
@click.option(
    "--alpha", default="1", show_default=True, help="What the merged task vector is multiplied with, or `search`."
)
@click.option("--density", type=float, help="ties, dare, breadcrumbs: share of the entries that are kept.")
@click.option("--seed", type=int, help="dare: of the random numbers (default: 0).")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The .safetensors file to make.")
@click.option("--evaluate", is_flag=True, help="Evaluate every task on its test samples; needs --recipe.")
@click.option("--recipe", "target", help="TARGET of the recipe that made the runs.")
def merge(
    runs: tuple[Path, ...],
    epoch: int | None,
    name: str,
    alpha: str,
    density: float | None,
    seed: int | None,
    out: Path,
    evaluate: bool,
    target: str | None,
) -> None:
    """Merge the trainable weights of RUNS (or directories of runs) after an epoch into one safetensors file.

    The file holds the shared trainable tensors, merged, and the frozen tensors and buffers that are the same in all
    runs. Heads stay each task's own: they are in the runs. `--alpha search` tries 0, 0.05 .. 1 on one half of each
    task's test samples; what is reported is then measured on the other half.

    \b
    Examples:
      tvgrad merge runs/digits --epoch 1 --out merged.safetensors
      tvgrad merge runs/digits --epoch 1 --method ties --alpha 0.4 --out merged.safetensors
      tvgrad merge runs/digits --method task_arithmetic --alpha search --recipe digits --evaluate --out m.safetensors
    """
    from tvgrad.errors import TvgradError
    from tvgrad.merging.runs import common_epoch, merge_runs, stack_of
    from tvgrad.merging.streaming import merged_vector
    from tvgrad.store.run import open_runs

    method = _method(name, density, seed)
    fixed = None if alpha == SEARCH else _number(alpha)
    if target is None and (evaluate or fixed is None):
        raise TvgradError("evaluating and searching alpha need the tasks' data: give --recipe TARGET")
    if target is not None and not evaluate and fixed is not None:
        raise TvgradError("--recipe is for --evaluate and --alpha search: give one of them, or leave it out")
    _check_out(out)
    opened = open_runs(runs)
    _check_different(opened)
    method.check_tasks(len(opened))
    chosen = common_epoch(opened) if epoch is None else epoch
    if target is not None:
        scorers = _scorers(opened, target)
        vector = merged_vector(method, stack_of(opened, chosen))
        base = opened[0].weights(0)
        if fixed is None:
            fixed, validation = _searched(scorers, base, vector)
            click.echo(f"alpha {fixed:g}: {validation:.4f} on the validation half, mean over {len(opened)} tasks")
        if evaluate:
            from tvgrad.cli.terminal import print_table

            print_table(
                f"{method.name}, {opened[0].unit} {chosen}, alpha {fixed:g}"
                + (", test half of the samples" if alpha == SEARCH else ""),
                _evaluated(opened, scorers, base, vector, chosen, fixed, alpha == SEARCH),
            )
    assert fixed is not None
    made = merge_runs(opened, chosen, method, fixed, out)
    click.echo(
        f"{made.path}: {_counted(len(made.merged), 'tensor')} merged from {_counted(len(opened), 'run')} by "
        f"{method.name} at {opened[0].unit} {chosen}, alpha {fixed:g}; {_beside(made, len(opened))}"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _beside(made: MergedFile, runs: int) -> str:
    """What stands in the file beside the merged tensors, and what is left to each run."""
    frozen = _counted(len(made.shared), "frozen tensor")
    if runs == 1:
        return f"{frozen} beside them" if made.shared else "no other tensor"
    shared = f"{frozen} that all runs have alike" if made.shared else "no frozen tensor is alike in all runs"
    return f"{shared}; each run's own: {', '.join(made.own)}" if made.own else f"{shared}; none is a run's own"


def _check_out(out: Path) -> None:
    """Refuse a path that cannot be written, or that holds something, before any work."""
    from tvgrad.errors import TvgradError

    if out.is_dir():
        raise TvgradError(f"{out} is a folder: give --out the path of a .safetensors file to make")
    if out.suffix != ".safetensors":
        raise TvgradError(f"{out} does not end in .safetensors, by which other programs know the format: rename --out")
    if not out.parent.is_dir():
        raise TvgradError(f"{out.parent} is no folder: make it, or choose another --out")
    for path in (out, out.with_name(f"{out.name}.index.json")):  # a model above the largest file has an index
        if path.exists():
            raise TvgradError(f"{path} exists: delete it, or choose another --out")


def _check_different(runs: list[Run]) -> None:
    from tvgrad.errors import TvgradError

    seen = set()
    for run in runs:
        place = run.root.resolve()
        if place in seen:
            raise TvgradError(f"{run.root} is given twice, and would count twice: give each run once")
        seen.add(place)


def _method(name: str, density: float | None, seed: int | None) -> Method:
    from dataclasses import fields

    from tvgrad.errors import TvgradError
    from tvgrad.merging import METHODS

    chosen = name.replace("-", "_")
    if chosen not in METHODS:
        raise TvgradError(f"there is no merging method {name!r}: choose one of {', '.join(METHODS)}")
    kind = METHODS[chosen]
    options = {option: value for option, value in (("density", density), ("seed", seed)) if value is not None}
    for option in options:
        if option not in {field.name for field in fields(kind)}:
            raise TvgradError(f"{chosen} has no {option}: leave --{option} out")
    return kind(**options)


def _number(alpha: str) -> float:
    from tvgrad.errors import TvgradError
    from tvgrad.merging.streaming import checked_alpha

    try:
        value = float(alpha)
    except ValueError:
        raise TvgradError(f"--alpha {alpha!r} is no number: give one, or `{SEARCH}`") from None
    return checked_alpha(value)


def _scorers(runs: list[Run], target: str) -> list[Scorer]:
    from tvgrad.merging.evaluation import Scorer
    from tvgrad.recipes.of_run import recipe_of

    return [Scorer(recipe_of(run, target), run.complete(0)) for run in runs]


def _searched(scorers: list[Scorer], base: Weights, vector: Weights) -> tuple[float, float]:
    from tvgrad.merging.evaluation import halves, search_alpha, shifted

    parts = [halves(scorer.test)[0] for scorer in scorers]

    def mean_score(alpha: float) -> float:
        weights = shifted(base, vector, alpha)
        return sum(one.score(weights, part) for one, part in zip(scorers, parts, strict=True)) / len(scorers)

    return search_alpha(mean_score)


def _evaluated(
    runs: list[Run], scorers: list[Scorer], base: Weights, vector: Weights, epoch: int, alpha: float, searched: bool
) -> pd.DataFrame:
    import math

    import pandas as pd

    from tvgrad.merging.evaluation import halves, shifted

    weights = shifted(base, vector, alpha)
    rows = []
    for run, scorer in zip(runs, scorers, strict=True):
        samples = halves(scorer.test)[1] if searched else scorer.test
        single, merged = scorer.score(run.weights(epoch), samples), scorer.score(weights, samples)
        rows.append({
            "run": run.name,
            "samples": len(samples),
            "pretrained": scorer.score(base, samples),
            "single_task": single,
            "merged": merged,
            "normalised": merged / single if single else math.nan,
        })
    table = pd.DataFrame(rows)
    mean = {"run": "mean", "samples": int(table["samples"].sum()), **table.drop(columns=["run", "samples"]).mean()}
    return pd.concat([table, pd.DataFrame([mean])], ignore_index=True).round(4)
