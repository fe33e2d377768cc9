"""Tightness and cost of certificates on the reference case: three digits tasks, 64-32-32-10 tanh, five epochs.

Run by hand: `python -m tests.benchmarks.bench_certificate`. It prints, for learning rates from 1e-7 to 1e-1, every
form's upper bound (and lower bound) over the true error, the gain of each tightening step, the same for the gap between
task arithmetic and multitask training, and the time of a certificate in full-batch gradients.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import torch

from tests.bounds.reference import Task, reference_tasks, true_error
from tests.bounds.test_certificate import true_gap
from tvgrad.bounds import FeedForward, NoCertificate, multitask_gap

RATES = (1e-7, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
EPOCHS = 5
ALPHA = 0.4
SAMPLES = 1797


def tightness(task: Task) -> None:
    """Print each form's bounds over the true error; a dash where the form does not exist."""
    problem = FeedForward(task.model, task.inputs, task.targets)
    print(f"\n{task.name}: upper (lower) bound / true error; {len(task.inputs)} samples")
    print(f"{'rate':>8} {'true error':>11}  best form")
    for rate in RATES:
        error = true_error(task, rate, EPOCHS)
        try:
            found = problem.certificate(rate, EPOCHS)
        except NoCertificate as reason:
            print(f"{rate:8.0e} {error:11.3e}  {reason}")
            continue
        cells = [
            f"{form.name} {form.upper / error:.6g} ({form.lower / error:.3g})" if form.exists else f"{form.name} -"
            for form in found.forms
        ]
        print(f"{rate:8.0e} {error:11.3e}  {found.method}: {', '.join(cells)}")
        bounds = [form.upper for form in found.forms if form.exists]
        steps = [f"{before / after:.4g}" for before, after in itertools.pairwise(bounds)]
        print(f"{'':21} gain of each step: {', '.join(steps)}")


def gaps(tasks: list[Task]) -> None:
    """Print the bounds of the multitask gap over the true gap."""
    problems = [FeedForward(task.model, task.inputs, task.targets) for task in tasks]
    print(f"\ngap between task arithmetic and multitask training, alpha {ALPHA}")
    for rate in RATES:
        gap = true_gap(tasks, rate, EPOCHS, ALPHA)
        found = multitask_gap(problems, rate, EPOCHS, ALPHA)
        cells = [f"{form.name} {form.upper / gap:.6g} ({form.lower / gap:.3g})" for form in found.forms if form.exists]
        print(f"{rate:8.0e} {gap:11.3e}  {', '.join(cells)}")


def seconds(work: Callable[[], object]) -> float:
    """The time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def speed(task: Task, repeat: int) -> None:
    """Print the time of a certificate for all 1797 samples, in full-batch gradients.

    The two take turns and the fastest of each counts, so that other work on the machine falls on neither.
    """
    copies = -(-SAMPLES // len(task.inputs))
    inputs = task.inputs.repeat(copies, 1)[:SAMPLES]
    whole = Task(task.name, task.model, inputs, task.targets.repeat(copies)[:SAMPLES])
    print(f"\ntime of a certificate, {SAMPLES} samples, in full-batch gradients (goal: at most 300)")
    for rate in (1e-4, 1e-2, 1e-1):
        gradients, certificates = [], []
        for _ in range(repeat):
            gradients += [seconds(lambda: whole.gradient(whole.start)) for _ in range(30)]
            problem = FeedForward(whole.model, inputs, whole.targets)
            certificates.append(seconds(lambda problem=problem, rate=rate: problem.certificate(rate, EPOCHS)))
        gradient, certificate = min(gradients), min(certificates)
        print(f"{rate:8.0e} {certificate / gradient:6.0f} gradients of {gradient * 1e3:.2f} ms")


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tasks = list(reference_tasks())
    speed(tasks[0], options.repeat)
    for task in tasks:
        tightness(task)
    gaps(tasks)


if __name__ == "__main__":
    main()
