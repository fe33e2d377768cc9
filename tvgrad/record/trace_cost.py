"""What tracing a recipe takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from tvgrad.cost import Cost, held_bytes
from tvgrad.files.writing import Places, bytes_on_disk
from tvgrad.problem.count import WIDEST
from tvgrad.record.training_loop import Prepared
from tvgrad.store.gradient_sketches import sketch_bytes
from tvgrad.store.keep_policy import KEEP_ALL
from tvgrad.update_rules.rules import Adam, Momentum, Nesterov
from tvgrad.vectors.parameters import frozen_state


def trace_cost(prepared: Prepared, gradient_seconds: float) -> Cost:
    """Tell what a trace of epochs takes.

    Time: a full-batch gradient for each recorded one, and a pass for each epoch of training; with the full batch, a
    step takes the recorded gradient. Memory: what the process holds after a chunk's gradient, and beside it the larger
    of a float64 copy and gradient (up to 30 million parameters, in the checks before the training) and of the float64
    sum of the chunks with the optimizer's state. Disk: weights, gradients and sums of the kept points, and what is
    frozen.

    Args:
        prepared: the recipe and options.
        gradient_seconds: of one full-batch gradient.

    Returns:
        The cost.
    """
    options, weights = prepared.options, prepared.objective.initial
    by_step = bool(options.record_at.steps)
    numbers = sorted({0, *options.record_at.steps}) if by_step else range(prepared.epochs + 1)
    measured = len(numbers) if "gradients" in options.record else 0
    full = prepared.batch_size is None
    passes = max(measured, prepared.epochs) if full else measured + prepared.epochs
    size = sum(tensor.numel() for tensor in weights.values())
    stored = sum(int(tensor.nbytes) for tensor in weights.values())
    copies = {Adam: 2, Momentum: 1, Nesterov: 1}
    state = next((number * stored for rule, number in copies.items() if isinstance(prepared.rule, rule)), 0)
    checked = 16 * size if size <= WIDEST else 0
    memory = held_bytes() + max(checked - stored, 8 * size + state, 0)
    return Cost(
        prepared.recipe.name,
        passes * gradient_seconds,
        memory,
        _disk(prepared, numbers),
        "tables, and the state that a resume needs (up to two copies of the weights)",
    )


def _disk(prepared: Prepared, numbers: Sequence[int]) -> int:
    """Bytes of the tensor files that are kept at the end."""
    options, weights = prepared.options, prepared.objective.initial
    places: Places = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    wide: Places = {
        name: (shape, torch.float32 if dtype.itemsize < 4 else dtype) for name, (shape, dtype) in places.items()
    }
    frozen = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in frozen_state(prepared.model).items()}
    total = bytes_on_disk(frozen, "static") if frozen else 0
    kept = numbers if options.keep == KEEP_ALL else options.keep.kept(numbers)
    # files of names of one length have one size: a long training is not walked through
    lengths = Counter(map(len, map("{:04d}".format, kept)))
    for length, count in lengths.items():
        stem = f"epoch-{'0' * length}"
        size, started = bytes_on_disk(places, stem), 0 in kept and length == 4
        total += count * size
        if "gradients" in options.record and options.keep_gradients.width is None:
            total += count * size
        if "epoch-gradients" in options.record and options.keep_gradients.width is None:
            total += (count - started) * bytes_on_disk(wide, stem)
    full, summed = "gradients" in options.record, "epoch-gradients" in options.record
    sizes, width = {name: tensor.numel() for name, tensor in weights.items()}, options.keep_gradients.width
    if width is not None:
        total += len(numbers) * full * sketch_bytes(sizes, width, {dtype for _, dtype in places.values()})
        total += (len(numbers) - 1) * summed * sketch_bytes(sizes, width, {dtype for _, dtype in wide.values()})
    return total
