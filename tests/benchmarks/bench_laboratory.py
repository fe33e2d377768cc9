"""The grid of conceptual pairs, all models at once, against a plain loop over the same models, and how it grows.

    python -m tests.benchmarks.bench_laboratory                 the whole grid of 21 x 41 x 10 models, and the loop
    python -m tests.benchmarks.bench_laboratory --threads 2

The loop trains each of the 220 models with an optimizer of PyTorch on the same mini-batches, and evaluates each of the
8610 sums on the test samples of both tasks, and of each pair the 21 finer coefficients round its threshold on those
of task 2: what the grid does, one model after the other.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import pandas as pd
import torch
from tvgrad.analyses.concept_grid import LAMBDAS, MOST_LAMBDA, MOST_RHO, RHOS, SEEDS, concept_grid, evenly, pair_tasks
from tvgrad.analyses.concept_training import ConceptSetting, concept_batches, one_thread
from tvgrad.analyses.concept_verdicts import finer

from tests.benchmarks.timing import Figure, figures_table
from tvgrad.recipes.conceptual import TokenMix
from tvgrad.recipes.conceptual_transformer import ConceptualTransformer, hinge_loss

SECONDS, SPEED_UP = 60, 3
QUICK = (3, 5, 2)


def one_after_the_other(setting: ConceptSetting, rhos: list[float], lambdas: list[float], seeds: int) -> list[float]:
    """Train and evaluate every model by itself; the losses on task 2, for a check that it is the same work."""
    losses = []
    repeats = setting.mix.repeats
    rows, labels = setting.tests()
    for seed in range(seeds):
        tasks = pair_tasks(setting, rhos, seed)
        batches = list(concept_batches(setting, tasks))
        trained = []
        for place in range(len(tasks)):
            draw = torch.Generator().manual_seed(1000 * (seed + 1))
            model = ConceptualTransformer(setting.mix.dimension, setting.width, generator=draw)
            start = {name: weights.detach().clone() for name, weights in model.named_parameters()}
            optimizer = torch.optim.SGD(model.parameters(), lr=setting.lr)
            for tokens, targets in batches:
                optimizer.zero_grad()
                hinge_loss(model(tokens[place], repeats), targets[place]).backward()
                optimizer.step()
            trained.append({name: weights.detach().clone() for name, weights in model.named_parameters()})
        with torch.no_grad():
            for place, task in enumerate(tasks[1:], start=1):
                inputs = [one.table[rows] for one in (tasks[0], task)]
                second = []
                for lam in lambdas:
                    for name, weights in model.named_parameters():
                        weights.copy_(trained[0][name] + lam * (trained[place][name] - start[name]))
                    found = [hinge_loss(model(one, repeats), labels) for one in inputs]
                    second.append(float(found[1]))
                losses += second
                for lam in finer(pd.DataFrame({"lam": lambdas, "loss": second}), "lam", "loss"):
                    for name, weights in model.named_parameters():
                        weights.copy_(trained[0][name] + lam * (trained[place][name] - start[name]))
                    hinge_loss(model(inputs[1], repeats), labels)
    return losses


def figures(rounds: int, quick: bool) -> Iterator[Figure]:
    """Seconds of the grid, the speed-up over the loop, and seconds of smaller grids.

    Yields:
        The figures.

    Raises:
        AssertionError: loop and grid found other losses.
    """
    setting = ConceptSetting(TokenMix())
    shape = QUICK if quick else (RHOS, LAMBDAS, SEEDS)
    rhos, lambdas = evenly(MOST_RHO, shape[0], "rho"), evenly(MOST_LAMBDA, shape[1], "lambda")
    concept_grid(setting, rhos[:2], lambdas[:2], 2)  # the first call is slower
    name = f"laboratory, {shape[0]} x {shape[1]} x {shape[2]} models"
    grids, loops, processors, loop_processors = [], [], [], []
    for _ in range(rounds):
        begin, processor = time.perf_counter(), time.process_time()
        table = concept_grid(setting, rhos, lambdas, shape[2])
        grids.append(time.perf_counter() - begin)
        processors.append(time.process_time() - processor)
        begin, processor = time.perf_counter(), time.process_time()
        with one_thread():  # as in the grid: on more, a loop over small tensors is slower
            losses = one_after_the_other(setting, rhos, lambdas, shape[2])
        loops.append(time.perf_counter() - begin)
        loop_processors.append(time.process_time() - processor)
        difference = (torch.tensor(losses) - torch.tensor(table["loss_2"].to_numpy())).abs().max()
        if difference > 0.01:
            raise AssertionError(f"the loop found other losses: {difference:g}")
    yield Figure(name, "seconds", grids, SECONDS)
    yield Figure(name, "seconds of processors", processors)
    ratios = [loop / grid for loop, grid in zip(loops, grids, strict=True)]
    yield Figure(f"{name}, speed-up", "a loop over models", ratios, SPEED_UP, least=True)
    ratios = [loop / grid for loop, grid in zip(loop_processors, processors, strict=True)]
    yield Figure(f"{name}, speed-up in processor time", "a loop over models", ratios)
    for part in (2, 5) if not quick else ():
        begin = time.process_time()
        concept_grid(setting, rhos, lambdas, part)
        taken = time.process_time() - begin
        yield Figure(f"laboratory, {shape[0]} x {shape[1]} x {part} models", "seconds of processors", [taken])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"threads: {torch.get_num_threads()}")
    print(figures_table(list(figures(1, options.quick))))


if __name__ == "__main__":
    main()
