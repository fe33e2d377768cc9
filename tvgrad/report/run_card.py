"""The run card: what was trained, on what, by which rule, with which versions, and the command that does it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tvgrad.store.run import Run
from tvgrad.wording import listed, printable

FIELDS = (
    "model", "data", "rule", "batch size", "epochs", "seed", "format", "recorded", "versions", "date", "command",
)  # fmt: skip
"""What a card tells, in order."""

_OPTIONS = ("optimizer", "lr", "momentum", "weight_decay", "epochs", "batch_size", "dtype", "groups", "chunk_size")


def run_card(run: Run) -> dict[str, str]:
    """Describe a run.

    Args:
        run: a recorded run.

    Returns:
        Field -> words, of `FIELDS`; what the run does not know is left out.
    """
    info = run.info
    recipe = info.get("recipe") or {}
    parameters = sum(_size(one.shape) for one in run.parameters.values())
    modules = [
        str(name) for name in info.get("modules") or [] if name not in {"Sequential", "ModuleDict", "ModuleList"}
    ]
    samples = [f"{info['samples']:,} training samples"] if "samples" in info else []
    samples += [f"{info['test_samples']:,} test samples"] if info.get("test_samples") else []
    size = info.get("batch_size")
    versions = info.get("versions") or {}
    found: dict[str, Any] = {
        "model": "; ".join([listed(modules, 6), f"{parameters:,} trainable parameters"]).strip("; "),
        "data": "; ".join([*([str(recipe["about"])] if recipe.get("about") else []), *samples]),
        "rule": _rule(info.get("rule")),
        "batch size": f"{size:,}" if size else "full batch" if info.get("consumes_recorded_gradient") else "",
        "epochs": str(run.points[-1].number) if run.points and run.unit == "epoch" else "",
        "seed": "" if info.get("seed") is None else str(info["seed"]),
        "format": ", ".join(str(info[name]) for name in ("dtype", "device") if info.get(name)),
        "recorded": listed(["weights", *(str(kind).replace("-", " ") for kind in info.get("record") or [])]),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "date": str(info.get("created") or "").replace("T", " ").replace("+00:00", " UTC"),
        "command": _command(info),
    }
    return {field: printable(found[field]) for field in FIELDS if found[field]}


def shared_card(cards: Mapping[str, Mapping[str, str]]) -> tuple[dict[str, str], pd.DataFrame]:
    """Divide the cards of several runs into what all share and what differs.

    Args:
        cards: run -> its card.

    Returns:
        Field -> words where all runs have the same; and a table of the others, one row a run, empty where there are
        none.
    """
    common, apart = {}, []
    for field in FIELDS:
        values = {card.get(field, "") for card in cards.values()}
        if values == {""}:
            continue
        if len(values) == 1:
            common[field] = values.pop()
        elif field == "date":
            dates = sorted(card.get(field, "") for card in cards.values())
            common[field] = f"{dates[0]} to {dates[-1]}" if dates[0] else dates[-1]
        else:
            apart.append(field)
    rows = [{"run": run, **{field: card.get(field, "") for field in apart}} for run, card in cards.items()]
    return common, pd.DataFrame(rows if apart else [], columns=["run", *apart])


def _size(shape: Sequence[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _rule(rule: Mapping[str, Any] | None) -> str:
    """A rule in words: its name and every option that is not nothing."""
    if not rule:
        return ""
    words = [str(rule.get("name", "unknown rule"))]
    for name, value in rule.items():
        if name == "name" or not value:
            continue
        if isinstance(value, (int, float, str)):
            words.append(name.replace("_", " ") if value is True else f"{name.replace('_', ' ')} {value}")
        elif isinstance(value, list) and all(isinstance(one, (int, float)) for one in value):
            words.append(f"{name.replace('_', ' ')} {listed(value)}")
        elif isinstance(value, (list, Mapping)):
            words.append(f"{len(value)} {name.replace('_', ' ')}")
    return ", ".join(words)


def _command(info: Mapping[str, Any]) -> str:
    """The script's command; of a recipe, the command line that asks for the recorded options."""
    if info.get("command"):
        return shlex.join(str(word) for word in info["command"])
    recipe, options = info.get("recipe") or {}, info.get("options") or {}
    if not recipe.get("target"):
        return ""
    words = ["tvgrad", "trace", str(recipe["target"])]
    words += ["--tasks", str(recipe["task"])] if recipe.get("task") else []
    for name in _OPTIONS:
        if options.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(options[name])]
    words += ["--seed", str(options["seed"])] if options.get("seed") else []
    words += ["--record", ",".join(options["record"])] if options.get("record") not in (None, ["gradients"]) else []
    return shlex.join([*words, "--out", "DIR"])
