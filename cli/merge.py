"""`tvgrad merge`: one model from several runs."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tvgrad.errors import TvgradError
from tvgrad.files.regular import real_path
from tvgrad.wording import counted, near

from . import options
from .merge_methods import MethodChoice, chosen_method, parsed_options

if TYPE_CHECKING:
    import pandas as pd

    from tvgrad.merging import Measurements, Method
    from tvgrad.merging.runs import MergedFile
    from tvgrad.store.run import Run

SEARCH, PLAN = "search", "plan"


@click.command()
@options.runs
@click.option(
    "--pretrained",
    type=options.PATH,
    help="A checkpoint: RUNS are then checkpoints, or adapters, that were trained from it, and --out is a folder.",
)
@click.option("--epoch", type=int, help="Epoch to merge (default: the last that all runs keep).")
@click.option(
    "--method",
    "name",
    default="mean",
    show_default=True,
    help="task_arithmetic (the sum), mean, ties, dare, median, tsv_m, tsv_c, isotropic, isotropic_subspaces, knots, "
    "wudi, model_stock, breadcrumbs, dare_ties, breadcrumbs_ties, magnitude_prune, lines, meta_gpt, fed_nova, "
    "centred_clip, masked_mean, trust_region, disentangled, vector_bases, slerp, negation or analogy; with "
    "--measurements fisher, regmean, gradient_matching, measured_meta_gpt or measured_trust_region; with --recipe "
    "ada_merging or "
    "exact_gradient_matching.",
)
@click.option(
    "--alpha",
    default="1",
    show_default=True,
    help="Factor of the merged task vector, `search`, or `plan`.",
)
@click.option("--density", type=float, help="ties, dare, breadcrumbs: share of the entries that are kept.")
@click.option("--seed", type=int, help="dare: of the random numbers (default: 0).")
@click.option("--option", "extra", multiple=True, metavar="NAME=VALUE", help="Of the method: share=0.1 for tsv_c.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The .safetensors file to make; with --pretrained, the folder.",
)
@click.option("--measurements", type=options.PATH, help="A file of `tvgrad plan --save FILE.safetensors`.")
@click.option("--dtype", help="With --pretrained: float32, bfloat16 or float16 (default: as the pretrained model).")
@click.option("--evaluate", is_flag=True, help="Evaluate every task on its test samples; needs --recipe.")
@click.option("--recipe", "target", help="TARGET of the recipe that made the runs.")
@options.cost
def merge(
    runs: tuple[Path, ...],
    pretrained: Path | None,
    epoch: int | None,
    name: str,
    alpha: str,
    density: float | None,
    seed: int | None,
    extra: tuple[str, ...],
    out: Path,
    measurements: Path | None,
    dtype: str | None,
    evaluate: bool,
    target: str | None,
    cost: bool,
) -> None:
    """Merge the trainable weights of RUNS (or directories of runs) after an epoch into one safetensors file.

    The file holds the shared trainable tensors, merged, and the frozen tensors and buffers that are the same in all
    runs. Heads stay each task's own: they are in the runs. `--alpha search` tries 0, 0.05 .. 1 on one half of each
    task's test samples; what is reported is then measured on the other half. `--alpha plan` takes the coefficient at
    which the tasks' training losses are told to be least (see `tvgrad plan`), and needs no test samples.

    With --pretrained, RUNS are checkpoints as they lie on disks (Hugging Face folders, safetensors in one file or in
    shards, files of torch.save that hold tensors only) or folders of LoRA adapters, which are merged in weight space.
    The folder that is made opens with from_pretrained; an interrupted merge is finished by the same command.

    With --measurements, a file that `tvgrad plan RUNS --recipe TARGET --save FILE.safetensors` wrote, the methods that
    need to know of each task which weights matter to it take that from the file, and `--alpha plan` the coefficient:
    no data is needed.

    \b
    Examples:
      tvgrad merge runs/digits --epoch 1 --out merged.safetensors
      tvgrad merge runs/digits --epoch 1 --method ties --alpha 0.4 \\
        --out merged.safetensors
      tvgrad merge runs/digits --method task_arithmetic --alpha search \\
        --recipe digits --evaluate --out m.safetensors
      tvgrad merge --pretrained base tuned-a tuned-b --method ties --out merged
      tvgrad merge --pretrained base adapter-a adapter-b \\
        --method task_arithmetic --dtype bfloat16 --out merged
      tvgrad merge runs/digits --method regmean \\
        --measurements measured.safetensors --out merged.safetensors
      tvgrad merge runs/digits --method tsv_c --option share=0.25 \\
        --out merged.safetensors
      tvgrad merge runs/digits --method ada_merging --option steps=100 \\
        --recipe digits --out merged.safetensors
    """
    from tvgrad.merging import METHODS

    if pretrained is not None and measurements is not None:
        raise TvgradError("--measurements are of recorded runs: leave them out with --pretrained")
    found = None if measurements is None else _measured(measurements, runs)
    given = {"density": density, "seed": seed, **parsed_options(extra)}
    choice = chosen_method(name, found, {key: one for key, one in given.items() if one is not None})
    if cost and (pretrained is not None or target is not None):
        raise TvgradError("--cost is told of merging recorded runs without data: leave out --pretrained and --recipe")
    if pretrained is not None:
        if epoch is not None or evaluate or target is not None or alpha in (SEARCH, PLAN):
            raise TvgradError(
                "--epoch, --evaluate, --recipe, --alpha search and plan are about runs: leave them out with "
                "--pretrained"
            )
        if choice.needs_data:
            raise TvgradError(f"{choice.name} needs the tasks' data: merge recorded runs, with --recipe TARGET")
        _merge_checkpoints(pretrained, runs, choice.made(), alpha=_number(alpha), out=out, dtype=dtype)
        return
    if dtype is not None:
        raise TvgradError("--dtype is about checkpoints: give --pretrained, or leave it out")
    if found is not None and (choice.name in METHODS or choice.needs_data) and (alpha != PLAN or target is not None):
        raise TvgradError(f"{name} takes no measurements: leave --measurements out, or give --alpha plan")
    _merge_recorded(runs, epoch, choice, alpha=alpha, out=out, target=target, evaluate=evaluate, cost=cost)


def _merge_recorded(
    runs: tuple[Path, ...],
    epoch: int | None,
    choice: MethodChoice,
    *,
    alpha: str,
    out: Path,
    target: str | None,
    evaluate: bool,
    cost: bool,
) -> None:
    from tvgrad.cli.terminal import say

    from tvgrad.merging.merge_cost import merge_cost
    from tvgrad.merging.runs import common_epoch, merge_runs
    from tvgrad.store.lora import is_lora
    from tvgrad.store.run import open_runs

    factor = None if alpha in (SEARCH, PLAN) else _number(alpha)
    if target is None and alpha == PLAN and choice.measurements is not None:
        factor = _coefficient(choice.measurements, choice.name, runs, epoch)
    if target is None and choice.needs_data:
        raise TvgradError(f"{choice.name} needs the tasks' data: give --recipe TARGET")
    if target is None and (evaluate or factor is None):
        raise TvgradError("evaluating, searching and planning alpha need the tasks' data: give --recipe TARGET")
    if target is not None and not evaluate and factor is not None and not choice.needs_data:
        raise TvgradError("--recipe is for --evaluate, --alpha search and plan: give one of them, or leave it out")
    _check_out(out)
    opened = open_runs(runs)
    _check_different(opened)
    if target is not None and any(is_lora(run) for run in opened):
        raise TvgradError(
            "LoRA runs are merged in weight space, where the recipe's adapted model is not evaluated: merge without "
            "--recipe, and evaluate the merged model"
        )
    chosen = common_epoch(opened) if epoch is None else epoch
    method = choice.made_for(opened, chosen, target)
    method.check_tasks(len(opened))
    if cost:
        click.echo(merge_cost(opened, chosen, method, out).sentence)
        return
    if target is not None and alpha == PLAN:
        factor = _planned(opened, chosen, method, target)
    if target is not None and (evaluate or factor is None):
        factor = _evaluated(opened, chosen, method, choice.name, alpha=factor, target=target, show=evaluate)
    assert factor is not None
    made = merge_runs(opened, chosen, method, alpha=factor, out=out)
    done = f"{counted(len(made.merged), 'tensor')} merged"
    say(
        f"{made.path}: {done} from {counted(len(opened), 'run')} by {choice.name} at {opened[0].unit} {chosen}, "
        f"alpha {factor:g}; {_beside(made, len(opened))}",
        done,
        colour="green",
    )


def _merge_checkpoints(
    pretrained: Path, tuned: tuple[Path, ...], method: Method, *, alpha: float, out: Path, dtype: str | None
) -> None:
    import torch
    from tvgrad.cli.terminal import say

    from tvgrad.merging.checkpoints import merge_checkpoints

    if out.suffix == ".safetensors":
        raise TvgradError(f"{out} is to be a folder with --pretrained, and has a file's name: choose another --out")
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
    if dtype is not None and dtype not in kinds:
        raise TvgradError(f"there is no --dtype {dtype!r}: choose one of {', '.join(kinds)}{near(dtype, kinds)}")
    made = merge_checkpoints(
        method, pretrained, tuned, alpha=alpha, out=out, dtype=None if dtype is None else kinds[dtype]
    )
    for sentence in made.left_out:
        click.echo(sentence, err=True)
    kinds_of = f" ({made.adapters} of them LoRA, in weight space)" if made.adapters else ""
    own = f"; {counted(len(made.from_base), 'tensor')} as in {pretrained}" if made.from_base else ""
    files = f"; carried along: {', '.join(made.carried)}" if made.carried else ""
    done = f"{counted(len(made.merged), 'tensor')} merged"
    say(
        f"{out}: {done} from {counted(len(tuned), 'model')}{kinds_of} by {method.name}, alpha {alpha:g}{own}{files}",
        done,
        colour="green",
    )


def _beside(made: MergedFile, runs: int) -> str:
    """What stands in the file beside the merged tensors, and what is left to each run."""
    frozen = counted(len(made.shared), "frozen tensor")
    if runs == 1:
        return f"{frozen} beside them" if made.shared else "no other tensor"
    shared = f"{frozen} that all runs have alike" if made.shared else "no frozen tensor is alike in all runs"
    return f"{shared}; each run's own: {', '.join(made.own)}" if made.own else f"{shared}; none is a run's own"


def _check_out(out: Path) -> None:
    """Refuse a path that cannot be written, or that holds something, before any work."""
    if out.is_dir():
        raise TvgradError(f"{out} is a folder: give --out the path of a .safetensors file to make")
    if out.suffix != ".safetensors":
        raise TvgradError(f"{out} does not end in .safetensors, by which other programs know the format: rename --out")
    if not out.parent.is_dir():
        raise TvgradError(f"{out.parent} is no folder: make it, or choose another --out")
    for path in (out, out.with_name(f"{out.name}.index.json")):  # a model above the largest file has an index
        if os.path.lexists(path):
            raise TvgradError(f"{path} exists: delete it, or choose another --out")
    options.file_to_write(out)


def _check_different(runs: list[Run]) -> None:
    places = [real_path(run.root) for run in runs]
    for number, run in enumerate(runs):
        if places[number] in places[:number]:
            raise TvgradError(f"{run.root} is given twice, and would count twice: give each run once")


def _measured(path: Path, runs: tuple[Path, ...]) -> Measurements:
    """The measurements of the runs' tasks, in the order of the runs."""
    from tvgrad.merging import load_measurements
    from tvgrad.store.run import open_runs

    return load_measurements(path).of([run.name for run in open_runs(runs)])


def _coefficient(measurements: Measurements, name: str, runs: tuple[Path, ...], epoch: int | None) -> float:
    """The coefficient that a plan told, or its slopes and curvatures tell, without data."""
    if name != "task_arithmetic":
        raise TvgradError(
            f"measurements tell how far to go along the sum of task vectors, not along what {name} makes: give "
            "--alpha a number, --recipe, or --method task_arithmetic"
        )
    from tvgrad.merging.runs import common_epoch, stack_of
    from tvgrad.store.run import open_runs

    opened = open_runs(runs)
    measurements.check(stack_of(opened, common_epoch(opened) if epoch is None else epoch))
    found = measurements.coefficient()
    order = "" if measurements.planned is not None else " to second order"
    click.echo(f"alpha {found:.4g}: told by measurements to be best for the training losses{order} (an estimate)")
    return found


def _number(alpha: str) -> float:
    from tvgrad.merging.method import checked_alpha

    try:
        value = float(alpha)
    except ValueError:
        raise TvgradError(f"--alpha {alpha!r} is no number: give one, `{SEARCH}` or `{PLAN}`") from None
    return checked_alpha(value)


def _planned(runs: list[Run], epoch: int, method: Method, target: str) -> float:
    """The coefficient at which the tasks' training losses are told to be least."""
    from tvgrad.merging.merge import combine_stack
    from tvgrad.merging.runs import stack_of
    from tvgrad.recipes.of_run import objective_of, recipe_of
    from tvgrad.theory.merge_plan import coefficient_along

    vector = combine_stack(method, stack_of(runs, epoch), add_base=False)
    found, sentences = coefficient_along([objective_of(run, recipe_of(run, target)) for run in runs], vector)
    for sentence in sentences:
        click.echo(sentence, err=True)
    click.echo(f"alpha {found:.4g}: told to be best for the training losses (an estimate)")
    return found


def _evaluated(
    runs: list[Run], epoch: int, method: Method, name: str, *, alpha: float | None, target: str, show: bool
) -> float:
    """Search alpha on one half of the test samples where it is not given, print the table, and return alpha."""
    from tvgrad.cli.terminal import print_table, say

    from tvgrad.merging.evaluation import Scorer, halves, search_alpha, shifted
    from tvgrad.merging.merge import combine_stack
    from tvgrad.merging.runs import stack_of
    from tvgrad.recipes.of_run import recipe_of

    scorers = [Scorer(recipe_of(run, target), run.complete(0)) for run in runs]
    base, vector = runs[0].weights(0), combine_stack(method, stack_of(runs, epoch), add_base=False)
    samples, title = [scorer.test for scorer in scorers], f"{name}, {runs[0].unit} {epoch}, alpha "
    if alpha is None:
        parts = [halves(scorer.test) for scorer in scorers]
        samples, which = [test for _, test in parts], ", test half of the samples"

        def mean_score(alpha: float) -> float:
            weights = shifted(base, vector, alpha)
            return sum(one.score(weights, half) for one, (half, _) in zip(scorers, parts, strict=True)) / len(scorers)

        alpha, validation = search_alpha(mean_score)
        say(f"alpha {alpha:g}: {validation:.4f} on the validation half, mean over {len(runs)} tasks")
    else:
        which = ""
    if show:
        merged = shifted(base, vector, alpha)
        rows = [
            [run.name, len(part), *(one.score(weights, part) for weights in (base, run.weights(epoch), merged))]
            for run, one, part in zip(runs, scorers, samples, strict=True)
        ]
        table = _table(rows)
        print_table(f"{title}{alpha:g}{which}", table)
        for name, before, after in table[["run", "pretrained", "single_task"]].itertuples(index=False):
            if name != "mean" and after < before:
                say(
                    f"Warning: fine-tuning hurt {name} ({after:.4f} after, {before:.4f} before), so that a high "
                    "normalised score there is no success: look at the gain over the pretrained model"
                )
    return alpha


def _table(rows: list[list[object]]) -> pd.DataFrame:
    """Scores of each run; 95 % intervals of accuracies, gain over pretrained, share of the single task's; means."""
    import pandas as pd

    from tvgrad.merging.evaluation import accuracy_interval

    table = pd.DataFrame(rows, columns=["run", "samples", "pretrained", "single_task", "merged"])
    ends = [accuracy_interval(score, n) for score, n in zip(table["merged"], table["samples"], strict=True)]
    table["merged_low"], table["merged_high"] = zip(*ends, strict=True)
    table["gain"] = table["merged"] - table["pretrained"]
    table["normalised"] = table["merged"] / table["single_task"].where(table["single_task"] != 0)
    mean = {"run": "mean", "samples": int(table["samples"].sum()), **table.drop(columns=["run", "samples"]).mean()}
    mean["merged_low"] = mean["merged_high"] = math.nan  # tasks of different data have no common interval
    return pd.concat([table, pd.DataFrame([mean])], ignore_index=True).round(4)
