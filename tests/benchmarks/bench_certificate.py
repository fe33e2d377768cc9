"""Tightness and cost of certificates on the reference case: three digits tasks, 64-32-32-10 tanh, five epochs.

Run by hand: `python -m tests.benchmarks.bench_certificate`. It prints, for learning rates from 1e-7 to 1e-1 and as
Markdown, every form's upper bound over the true error (the range over the tasks), the winner with its lower bound, the
factor that each form gains on the one before, the same for the gap between task arithmetic and multitask training, and
the time of a certificate in full-batch gradients.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterable

import torch

from tests.bounds.certificates.test_certificate import true_gap
from tests.bounds.reference import Task, reference_tasks, true_error
from tvgrad.bounds import Certificate, FeedForward, multitask_gap_bound

RATES = (1e-7, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
CLOSED = ("closed, uniform", "closed, worst case", "closed, local")
FORMS = (*CLOSED, "remainder", "layer-wise", "quadratic", "cubic", "tube")
EPOCHS = 5
ALPHA = 0.4
SAMPLES = 1797


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a Markdown table."""
    heads = list(columns)
    print(f"\n{title}\n\n| {' | '.join(heads)} |\n| {' | '.join('---' for _ in heads)} |")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def spread(values: Iterable[float]) -> str:
    """The range of ratios; how many tasks are without, where some are."""
    all_of = list(values)
    found = sorted(value for value in all_of if math.isfinite(value))
    if not found:
        return "-"
    low, high = (
        f"{v:.6f}" if abs(v - 1) < 5e-4 else f"{v:.3f}" if v < 2 else f"{v:.3g}" for v in (found[0], found[-1])
    )
    missing = len(all_of) - len(found)
    return (low if low == high else f"{low} to {high}") + (f" ({missing} none)" if missing else "")


def uppers(certificate: Certificate) -> list[float]:
    """Each form's upper bound."""
    return [next(form.upper for form in certificate.forms if form.name == name) for name in FORMS]


def tightness(tasks: list[Task]) -> None:
    """Print each form's bounds over the true errors, and what each form gains."""
    problems = [FeedForward(task.model, task.inputs, task.targets) for task in tasks]
    ratios, winners, gains = [], [], []
    for rate in RATES:
        errors = [true_error(task, rate, EPOCHS) for task in tasks]
        found = [problem.certificate(rate, EPOCHS) for problem in problems]
        every = [[upper / error for upper in uppers(one)] for one, error in zip(found, errors, strict=True)]
        ratios.append([f"{rate:.0e}", *(spread(column) for column in zip(*every, strict=True))])
        winners.append([
            f"{rate:.0e}",
            f"{min(errors):.2e} to {max(errors):.2e}",
            ", ".join(sorted({one.method for one in found})),
            spread(one.error_bound / error for one, error in zip(found, errors, strict=True)),
            spread(one.lower_bound / error for one, error in zip(found, errors, strict=True)),
            spread(one.from_start / error for one, error in zip(found, errors, strict=True)),
            spread(one.closed_form_bound / one.error_bound for one in found),
        ])
        steps = [[before / after for before, after in itertools.pairwise(row)] for row in every]
        gains.append([f"{rate:.0e}", *(spread(column) for column in zip(*steps, strict=True))])
    names = ", ".join(task.name for task in tasks)
    table(
        f"Certificates of {names}: bounds over the true error",
        ["rate", "true error", "winning form", "upper", "lower", "upper from theta_0 alone", "closed form / upper"],
        winners,
    )
    table("Upper bound of each form over the true error", ["rate", *FORMS], ratios)
    table("Factor that each form gains on the one before", ["rate", *FORMS[1:]], gains)


def gaps(tasks: list[Task]) -> None:
    """Print the bounds of the multitask gap over the true gap."""
    problems = [FeedForward(task.model, task.inputs, task.targets) for task in tasks]
    rows = []
    for rate in RATES:
        gap = true_gap(tasks, rate, EPOCHS, ALPHA)
        found = multitask_gap_bound(problems, rate, EPOCHS, alpha=ALPHA)
        forms = {form.name: form for form in found.forms}
        rows.append([
            f"{rate:.0e}",
            f"{gap:.2e}",
            spread([found.upper_bound / gap]),
            spread([found.lower_bound / gap]),
            spread([min(forms[name].upper for name in ("closed", "quadratic", "cubic")) / gap]),
            spread([forms["closed"].upper / gap]),
        ])
    table(
        f"Gap between task arithmetic and multitask training, alpha {ALPHA}: bounds over the true gap",
        ["rate", "true gap", "upper", "lower", "upper from theta_0 alone", "closed form"],
        rows,
    )


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
    rows = []
    for rate in (1e-4, 1e-3, 1e-2, 1e-1):
        gradients, certificates = [], []
        for _ in range(repeat):
            gradients += [seconds(lambda: whole.gradient(whole.start)) for _ in range(30)]
            problem = FeedForward(whole.model, inputs, whole.targets)
            certificates.append(seconds(lambda problem=problem, rate=rate: problem.certificate(rate, EPOCHS)))
        gradient, certificate = min(gradients), min(certificates)
        rows.append([f"{rate:.0e}", f"{certificate / gradient:.0f}", f"{gradient * 1e3:.2f} ms"])
    table(
        f"Time of a certificate, {SAMPLES} samples, {torch.get_num_threads()} thread (goal: 300 gradients)",
        ["rate", "gradients", "one gradient"],
        rows,
    )


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tasks = list(reference_tasks())
    speed(tasks[0], options.repeat)
    tightness(tasks)
    gaps(tasks)


if __name__ == "__main__":
    main()
