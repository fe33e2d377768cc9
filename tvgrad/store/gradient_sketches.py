"""Gradient sketches: how a run's file of a sketch is written and read.

sketch        float64, as many numbers as it is wide
squares       float64, the sum of squares of each tensor, the names in order
projection    int64: version, entries of the vector
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from tvgrad.errors import DamagedRun
from tvgrad.files.tensors import TensorFile
from tvgrad.files.writing import Stream
from tvgrad.sketching.sketches import Sketch, sketch_of
from tvgrad.store.manifest import Parameter
from tvgrad.vectors.parameters import Weights

PROJECTION = 1
"""Version of the projection: sketches of two versions have nothing to do with each other."""


def sketch_file(content: Weights | Stream, width: int) -> Weights:
    """Sketch what is about to be written.

    Args:
        content: a gradient, or what makes it block by block.
        width: numbers in the sketch.

    Returns:
        The tensors of the file.
    """
    stream = content if isinstance(content, Stream) else Stream.of(content)
    sizes = {name: math.prod(shape) for name, (shape, _) in stream.places.items()}
    made = sketch_of(sizes, stream.blocks, width)
    return {
        "sketch": made.values,
        "squares": torch.tensor([made.squares[name] for name in sorted(sizes)], dtype=torch.float64),
        "projection": torch.tensor([PROJECTION, made.entries]),
    }


def read_sketch(file: TensorFile, parameters: Mapping[str, Parameter], width: int | None) -> Sketch:
    """Read a sketch, and compare it with the run and with itself.

    Args:
        file: opened; it is closed.
        parameters: those of the run.
        width: numbers in each of the run's sketches; None for a run that says it keeps none.

    Returns:
        The sketch.

    Raises:
        DamagedRun: the file holds no sketch of a gradient of this run, or one whose norm cannot be right.
    """
    entries = sum(math.prod(one.shape) for one in parameters.values())
    with file:
        places = {name: (place.shape, place.dtype) for name, place in file.places.items()}
        expected = {
            "sketch": ((width or 0,), torch.float64),
            "squares": ((len(parameters),), torch.float64),
            "projection": ((2,), torch.int64),
        }
        held = file.read_all() if places == expected and width else {}
    if not held or held["projection"].tolist() != [PROJECTION, entries]:
        raise DamagedRun(f"{file.path} holds no sketch of this run's gradients: restore it or trace the run again")
    squares = dict(zip(sorted(parameters), held["squares"].tolist(), strict=True))
    found = Sketch(held["sketch"], entries, squares)
    why = _contradiction(found)
    if why is not None:
        raise DamagedRun(f"{file.path} contradicts itself ({why}): restore it or trace the run again")
    return found


FAR = 2.0
"""Widths of the interval, outside of it, from which a norm is said to be wrong: ten standard deviations in all."""


def _contradiction(found: Sketch) -> str | None:
    """How a sketch's own norm and its sums of squares disagree; None where they fit, or are not finite."""
    if any(square < 0 for square in found.squares.values()):
        return "a sum of squares is negative"
    norm, estimate = found.norm, found.estimated_norm()
    if not (math.isfinite(norm) and math.isfinite(estimate.value)):
        return None
    room = FAR * (estimate.high - estimate.low)
    if not estimate.low - room <= norm <= estimate.high + room:
        return f"the norm is {norm:.6g} by its squares and {estimate.value:.6g} by its sketch"
    return None
