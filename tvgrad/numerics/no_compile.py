"""Eager: keeps torch.compile away from functions that must run as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function that torch.compile calls and does not compile, nor what it calls.

    A compiled `optimizer.step()` would draw the optimizer's hooks into its graphs, warn of what it finds there, and
    compile once more whenever a number in them has changed. `torch.compiler.disable` prevents that. It is asked at the
    first call only, because it imports the compiler, for which a program that takes no step should not wait (one that
    does take a step has torch.optim import it).

    Args:
        function: any function.

    Returns:
        A function that does the same.
    """
    disabled: list[Callable[P, R]] = []

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    called._torchdynamo_disable = True  # type: ignore[attr-defined]
    return called
