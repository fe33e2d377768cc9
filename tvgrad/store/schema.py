"""What run.json and the state of a run may hold: checked once, where a run is read and where it is written.

Everything behind this door may trust the types and ranges that are listed here. Names that are not listed are facts of
users, which are kept and never used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from tvgrad.errors import TvgradError
from tvgrad.fields import (
    LARGEST,
    anything,
    boolean,
    either,
    integer,
    list_of,
    mapping_of,
    number,
    one_of,
    optional,
    record,
    refuse,
    text,
)
from tvgrad.files.tensors import DTYPES, MAX_DIMENSIONS
from tvgrad.results import plain_json
from tvgrad.store.kept_gradients import KeptGradients
from tvgrad.update_rules.rules import rule_from_dict
from tvgrad.wording import printable

TYPES = frozenset(str(dtype).removeprefix("torch.") for dtype in DTYPES.values())
"""Names of the formats that tensors of a run may have."""

_count, _positive = integer(0), integer(1)


def _words(value: Any, place: str) -> str:
    """Words of a bounded length that are shown to people: made printable, on one line."""
    return printable(text(value, place))


def _rule(value: Any, place: str) -> Any:
    rule = mapping_of(anything)(value, place)
    try:
        rule_from_dict(rule)
    except (TvgradError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{place} is no update rule: {error}") from None
    return rule


def _kept_gradients(value: Any, place: str) -> str:
    try:
        return KeptGradients(text(value, place))
    except TvgradError as error:
        raise ValueError(f"{place}: {error}") from None


def _path(value: Any, place: str) -> str:
    """A relative path that stays in the run directory (a run may come from anywhere)."""
    path = text(value, place)
    pure = PurePosixPath(path)
    # One file has one spelling, or two entries could name it without anybody seeing that.
    plain = str(pure) == path and path.isprintable() and "\\" not in path and len(path) <= 1000
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or not plain:
        raise ValueError(f"{place} names a file outside the run directory: {ascii(path)[:100]}")
    return path


def _part(value: Any, place: str) -> tuple[str, str, int]:
    if not isinstance(value, list) or len(value) != 3:
        raise refuse(place, value, "a path, a checksum and a size")
    return _path(value[0], place), text(value[1], place), _count(value[2], place)


def _numpy_state(value: Any, place: str) -> Any:
    if not isinstance(value, list) or len(value) != 4:
        raise refuse(place, value, "a kind, a position, a flag and a number")
    # numpy itself takes any position, and would read there.
    integer(0, 624)(value[1], f"{place}[1]")
    return value


def _entry(value: Any, place: str) -> dict[str, Any]:
    entry: dict[str, Any] = record({"path": _path, "parts": list_of(_part)}, ("path", "parts"))(value, place)
    if entry["path"] not in {path for path, _, _ in entry["parts"]}:
        raise ValueError(f"{place}.path is not among its own parts, which have the checksums")
    return entry


def _shape(value: Any, place: str) -> tuple[int, ...]:
    shape = tuple(list_of(_count, MAX_DIMENSIONS)(value, place))
    if math.prod(shape) > LARGEST // 16:
        raise refuse(place, value, "a shape that a tensor can have")
    return shape


_PARAMETER = record({"shape": _shape, "dtype": one_of(TYPES), "group": _words}, ("shape", "dtype", "group"))
_POINT = record(
    {"number": _count, "steps": _count, "files": mapping_of(_entry), "metrics": mapping_of(number)},
    ("number", "steps", "files", "metrics"),
)
_MEASURED = record(
    {
        "kind": _words,
        "deviation": number,
        "samples": _count,
        "data": optional(_count),
        "steps": _count,
        "weights": _words,
        "reason": _words,
        "weighing": _words,
        "counter": optional(_count),
        "passes": _count,
    },
    ("kind", "deviation"),
)
_OPTIONS = record({
    "optimizer": optional(_words),
    "lr": optional(number),
    "momentum": optional(number),
    "weight_decay": optional(number),
    "epochs": optional(_positive),
    "batch_size": optional(_positive),
    "dtype": optional(one_of(TYPES)),
    "device": _words,
    "seed": integer(-LARGEST),
    "record": list_of(text),
    "record_at": text,
    "keep": text,
    "keep_gradients": _kept_gradients,
    "groups": optional(text),
    "chunk_size": optional(_positive),
    "allow": list_of(text),
})
_INFO = record({
    "name": optional(_words),
    "created": optional(text),
    "rule": optional(_rule),
    "rule_reason": optional(_words),
    "optimizer": optional(_words),
    "fused": optional(boolean),
    "dtype": one_of(TYPES),
    "device": _words,
    "threads": optional(_count),
    "record": list_of(text),
    "keep": text,
    "keep_gradients": _kept_gradients,
    "modules": list_of(text),
    "versions": mapping_of(text),
    "samples": _count,
    "fingerprint": optional(text),
    "chunk_size": optional(_positive),
    "allowed": list_of(text),
    "metric": optional(_words),
    "test_samples": optional(_count),
    "recipe": optional(record({"target": optional(text), "task": _words, "about": text})),
    "options": optional(_OPTIONS),
    "epochs": optional(_count),
    "batch_size": optional(_positive),
    "seed": integer(-LARGEST),
    "consumes_recorded_gradient": boolean,
    "config": optional(mapping_of(anything)),
    "command": list_of(text),
    "model": optional(_words),
    "steps_per_epoch": optional(_positive),
    "optimizer_groups": list_of(mapping_of(anything)),
    "epoch_endings": list_of(text),
    "stopped": optional(_words),
    "resumed_at": list_of(_count),
    "trial_steps": _count,
    "processes": _positive,
    "training": _count,
    "moved_outside_steps": either(boolean, _count),
    "steps_unrecorded": optional(_count),
    "final_weights_differ": optional(boolean),
    "measured_gradients": optional(mapping_of(_MEASURED)),
    "adapter": optional(record({"name": _words, "config": mapping_of(anything)}, ("name", "config"))),
    "gradient_rounding": optional(number),
    "clipping_unrecorded": optional(boolean),
    "checkpoints": list_of(text),
})
_MANIFEST = record(
    {
        "info": _INFO,
        "unit": one_of(("epoch", "step")),
        "parameters": mapping_of(_PARAMETER),
        "tied": mapping_of(text),
        "points": list_of(_POINT),
        "static": optional(_entry),
        "state": optional(_entry),
        "finished": boolean,
    },
    ("info", "unit", "parameters", "tied", "points", "static", "state", "finished"),
)
_STATE = record(
    {
        "epoch": _count,
        "steps_in_epoch": _count,
        "groups": list_of(mapping_of(anything)),
        "optimizer": mapping_of(mapping_of(anything)),
        "scheduler": mapping_of(anything),
        "unsaved": text,
        "rng.python": list_of(anything, 3),
        "rng.numpy": _numpy_state,
    },
    ("epoch", "steps_in_epoch"),
)


def check_manifest(content: Any) -> dict[str, Any]:
    """Check the content of run.json.

    Args:
        content: parsed JSON.

    Returns:
        The same with numbers in the place of words for infinities, and tuples for shapes and parts.

    Raises:
        ValueError: something is not what it should be; the words begin with where.
    """
    checked: dict[str, Any] = _MANIFEST(content, "")
    numbers = [point["number"] for point in checked["points"]]
    if numbers != sorted(set(numbers)):
        raise ValueError("its epochs are not in order")
    return checked


def check_facts(facts: Mapping[str, Any]) -> None:
    """Refuse facts of which run.json could not be read again.

    Args:
        facts: name -> value, as they are about to be written to run.json.

    Raises:
        TvgradError: one is not of the type that tvgrad keeps under its name.
    """
    try:
        _INFO(plain_json(facts, keep_infinities=True), "info")
    except ValueError as error:
        raise TvgradError(f"run.json cannot keep this: {error}; give it another name") from None


def check_state(content: Any) -> dict[str, Any]:
    """Check the plain values that a resume needs.

    Args:
        content: parsed JSON.

    Returns:
        The same.

    Raises:
        ValueError: something is not what it should be; the words begin with where.
    """
    checked: dict[str, Any] = _STATE(content, "")
    return checked
