"""Graph: a program as steps in order, from parameters, constants and one sample to its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tvgrad.bounds.program.operation import Operation


@dataclass(frozen=True)
class Step:
    """One operation and what it reads.

    Attributes:
        operation: what is computed; a plain function where the result is of whole numbers.
        inputs: places of the arguments.
        name: of the node, for messages.
        where: the line of the program that asked for it.
        trained: whether the result depends on trainable parameters.
    """

    operation: Operation | Callable[..., torch.Tensor]
    inputs: tuple[int, ...]
    name: str
    where: str
    trained: bool


@dataclass(frozen=True)
class Graph:
    """A program for one sample.

    Every tensor has a place: first the parameters, then inputs and targets, then constants and steps in order.

    Attributes:
        names: of the parameters in their places 0, 1, ...; trainable ones and frozen ones.
        trainable: places of the trainable ones, in the order of the flat vector.
        inputs: place of the sample's input.
        targets: place of its target.
        constants: place -> tensor, with a first axis of length 1.
        steps: place -> step, in order.
        output: place of the loss.
    """

    names: tuple[str, ...]
    trainable: tuple[int, ...]
    inputs: int
    targets: int
    constants: dict[int, torch.Tensor]
    steps: dict[int, Step]
    output: int
