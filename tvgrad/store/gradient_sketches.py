"""Gradient sketches: how a run's file of a sketch is written and read.

sketch        float64, as many numbers as it is wide
squares       float64, the sum of squares of each tensor, the names in order
projection    int64: version, entries of the vector
tensors       float64, a sketch of each tensor of many entries, the names in order
entries       float32 or float64, the entries of the other tensors
split         int64: version of the sketches of tensors, numbers in each of them

Files of earlier versions lack the last three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from tvgrad.errors import DamagedRun
from tvgrad.files.tensors import TensorFile
from tvgrad.files.writing import Stream, bytes_on_disk
from tvgrad.sketching.sketches import Sketch, sketch_of
from tvgrad.sketching.split_sketch import SplitSketch, is_kept_whole, split_width
from tvgrad.store.manifest import Parameter
from tvgrad.vectors.parameters import Weights

PROJECTION = 1
"""Version of the projection: sketches of two versions have nothing to do with each other."""

SPLIT = 1
"""Version of the sketches of single tensors."""


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
    return sketch_tensors(
        sketch_of(sizes, stream.blocks, width, split=True), {dtype for _, dtype in stream.places.values()}
    )


def sketch_tensors(made: Sketch, dtypes: set[torch.dtype]) -> Weights:
    """Lay out a sketch for its file.

    Args:
        made: of all tensors, and of each.
        dtypes: of what was sketched: entries are kept in float32 where that holds them.

    Returns:
        The tensors of the file.
    """
    split = made.split
    assert split is not None
    names, held = sorted(made.squares), torch.float64 if torch.float64 in dtypes else torch.float32
    whole = [name for name in names if is_kept_whole(split.entries[name], split.width)]
    sketched = [split.values[name] for name in names if name not in set(whole)]
    empty = torch.zeros(0, dtype=torch.float64)
    return {
        "sketch": made.values,
        "squares": torch.tensor([made.squares[name] for name in names], dtype=torch.float64),
        "projection": torch.tensor([PROJECTION, made.entries]),
        "tensors": torch.cat([empty, *sketched]),
        "entries": torch.cat([empty, *(split.values[name] for name in whole)]).to(held),
        "split": torch.tensor([SPLIT, split.width]),
    }


def sketch_bytes(sizes: Mapping[str, int], width: int, dtypes: set[torch.dtype]) -> int:
    """Tell how large a sketch's file is.

    Args:
        sizes: name -> number of entries.
        width: numbers in the sketch.
        dtypes: of what is sketched.

    Returns:
        Bytes, those of the file's header included.
    """
    held = torch.float64 if torch.float64 in dtypes else torch.float32
    return bytes_on_disk(_expected(sizes, width, held), "sketch")


def read_sketch(file: TensorFile, parameters: Mapping[str, Parameter], width: int | None) -> Sketch:
    """Read a sketch, and compare it with the run and with itself.

    Args:
        file: opened; it is closed.
        parameters: those of the run.
        width: numbers in each of the run's sketches; None for a run that says it keeps none.

    Returns:
        The sketch, without those of single tensors where the file lacks them.

    Raises:
        DamagedRun: the file holds no sketch of a gradient of this run, or one whose norm cannot be right.
    """
    sizes = {name: math.prod(parameters[name].shape) for name in sorted(parameters)}
    with file:
        places = {name: (place.shape, place.dtype) for name, place in file.places.items()}
        expected = [_expected(sizes, width, held) for held in (None, torch.float32, torch.float64)]
        held = file.read_all() if places in expected and width else {}
    facts = [PROJECTION, sum(sizes.values())]
    if not held or held["projection"].tolist() != facts or not _is_split(held, split_width(width or 0)):
        raise DamagedRun(f"{file.path} holds no sketch of this run's gradients: restore it or trace the run again")
    squares = dict(zip(sizes, held["squares"].tolist(), strict=True))
    found = Sketch(held["sketch"], facts[1], squares, _split_of(held, sizes, split_width(width or 0)))
    why = _contradiction(found)
    if why is not None:
        raise DamagedRun(f"{file.path} contradicts itself ({why}): restore it or trace the run again")
    return found


Places = dict[str, tuple[tuple[int, ...], torch.dtype]]


def _expected(sizes: Mapping[str, int], width: int | None, held: torch.dtype | None) -> Places:
    """Shapes and dtypes of a file: with single tensors, whose entries are kept in a dtype, or without."""
    found: Places = {
        "sketch": ((width or 0,), torch.float64),
        "squares": ((len(sizes),), torch.float64),
        "projection": ((2,), torch.int64),
    }
    if held is not None:
        narrow = split_width(width or 0)
        few = [size for size in sizes.values() if is_kept_whole(size, narrow)]
        found["tensors"] = (((len(sizes) - len(few)) * narrow,), torch.float64)
        found["entries"] = ((sum(few),), held)
        found["split"] = ((2,), torch.int64)
    return found


def _is_split(held: Weights, width: int) -> bool:
    """Whether sketches of single tensors are of the version that is read, where there are any."""
    return "split" not in held or held["split"].tolist() == [SPLIT, width]


def _split_of(held: Weights, sizes: Mapping[str, int], width: int) -> SplitSketch | None:
    if "split" not in held:
        return None
    whole = {name: size for name, size in sizes.items() if is_kept_whole(size, width)}
    entries = dict(zip(whole, held["entries"].to(torch.float64).split(list(whole.values())), strict=True))
    sketched = [name for name in sizes if name not in whole]
    values = entries | dict(zip(sketched, held["tensors"].view(-1, width), strict=True))
    return SplitSketch(width, dict(sizes), values)


FAR = 2.0
"""Widths of the interval, outside of it, from which a norm is said to be wrong: ten standard deviations in all."""

SMALL = 1e-290
"""Below this a sum of squares has lost digits."""


def _contradiction(found: Sketch) -> str | None:
    """How a sketch's own norms and its sums of squares disagree; None where they fit, or are not finite."""
    if any(square < 0 for square in found.squares.values()):
        return "a sum of squares is negative"
    norms = [("the norm", found.norm, found.estimated_norm())]
    if found.split is not None:
        norms += [
            (f"the norm of {name}", math.sqrt(square), found.split.estimated_norm([name]))
            for name, square in found.squares.items()
            if square > SMALL
        ]
    for what, norm, estimate in norms:
        room = FAR * (estimate.high - estimate.low)
        known = math.isfinite(norm) and math.isfinite(estimate.value) and max(norm, estimate.value) ** 2 > SMALL
        if known and not estimate.low - room <= norm <= estimate.high + room:
            return f"{what} is {norm:.6g} by its squares and {estimate.value:.6g} by its sketch"
    return None
