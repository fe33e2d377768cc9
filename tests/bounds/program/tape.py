"""A tape: gradients of programs of numbers of mpmath, by reverse accumulation, written on its own as an oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np

Array = Any  # of objects, numbers of mpmath


def numbers(values: Any) -> Array:
    """The same numbers for mpmath; float64 and less are held exactly."""
    return np.vectorize(mp.mpf, otypes=[object])(np.asarray(values))


def each(function: Callable[[Any], Any], values: Array) -> Array:
    return np.vectorize(function, otypes=[object])(values)


class Node:
    """A tensor on the tape."""

    def __init__(self, value: Array, *parents: tuple[Node, Callable[[Array], Array]]) -> None:
        self.value, self.parents, self.slope = value, parents, None

    def backward(self) -> None:
        order, seen = list[Node](), set[int]()

        def visit(node: Node) -> None:
            if id(node) not in seen:
                seen.add(id(node))
                for parent, _ in node.parents:
                    visit(parent)
                order.append(node)

        visit(self)
        self.slope = np.full(self.value.shape, mp.mpf(1), dtype=object)
        for node in reversed(order):
            for parent, pull in node.parents:
                more = pull(node.slope)
                extra = more.ndim - parent.value.ndim
                more = more.sum(axis=tuple(range(extra))) if extra else more
                for axis, size in enumerate(parent.value.shape):
                    if size == 1 < more.shape[axis]:
                        more = more.sum(axis=axis, keepdims=True)
                parent.slope = more if parent.slope is None else parent.slope + more

    def __add__(self, other: Node) -> Node:
        return Node(self.value + other.value, (self, lambda g: g), (other, lambda g: g))

    def __mul__(self, other: Node) -> Node:
        return Node(self.value * other.value, (self, lambda g: g * other.value), (other, lambda g: g * self.value))

    def __matmul__(self, other: Node) -> Node:
        return Node(
            self.value @ other.value,
            (self, lambda g: g @ np.swapaxes(other.value, -1, -2)),
            (other, lambda g: np.swapaxes(self.value, -1, -2) @ g),
        )

    def __getitem__(self, at: Any) -> Node:
        def pull(g: Array) -> Array:
            found = np.full(self.value.shape, mp.mpf(0), dtype=object)
            found[at] = g
            return found

        return Node(self.value[at], (self, pull))

    def turned(self) -> Node:
        return Node(np.swapaxes(self.value, -1, -2), (self, lambda g: np.swapaxes(g, -1, -2)))

    def apply(self, function: Callable[[Any], Any], slope: Callable[[Any], Any]) -> Node:
        return Node(each(function, self.value), (self, lambda g: g * each(slope, self.value)))

    def mean(self, axis: int) -> Node:
        size = self.value.shape[axis]
        kept = self.value.mean(axis=axis, keepdims=True)
        return Node(kept, (self, lambda g: np.repeat(g, size, axis) / size))

    def scaled(self, factor: Any) -> Node:
        return Node(self.value * factor, (self, lambda g: g * factor))


def joined(parts: list[Node], axis: int) -> Node:
    ends = np.cumsum([0, *(part.value.shape[axis] for part in parts)])

    def pull(index: int) -> Callable[[Array], Array]:
        return lambda g: np.take(g, range(ends[index], ends[index + 1]), axis)

    return Node(np.concatenate([part.value for part in parts], axis), *((p, pull(i)) for i, p in enumerate(parts)))


def sigmoid(x: Any) -> Any:
    return 1 / (1 + mp.exp(-x))


def softmax(x: Node, seen: Array | None = None) -> Node:
    """Along the last axis, over what is seen."""
    raised = each(mp.exp, x.value - x.value.max(axis=-1, keepdims=True))
    raised = raised if seen is None else raised * seen
    p = raised / raised.sum(axis=-1, keepdims=True)
    return Node(p, (x, lambda g: p * (g - (g * p).sum(axis=-1, keepdims=True))))


def inverse_root(x: Node) -> Node:
    return x.apply(lambda a: 1 / mp.sqrt(a), lambda a: -1 / (2 * a * mp.sqrt(a)))


def normalised(x: Node, eps: float, *, centred: bool) -> Node:
    if centred:
        x = x + x.mean(-1).scaled(mp.mpf(-1))
    variance = (x * x).mean(-1)
    return x * inverse_root(variance + Node(numbers(np.full(variance.value.shape, eps))))


def density(x: Any) -> Any:
    return mp.exp(-x * x / 2) / mp.sqrt(2 * mp.pi)


ACTIVATIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "tanh": (mp.tanh, lambda x: 1 - mp.tanh(x) ** 2),
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * (1 - sigmoid(x))),
    "silu": (lambda x: x * sigmoid(x), lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x)))),
    "gelu": (lambda x: x * mp.ncdf(x), lambda x: mp.ncdf(x) + x * density(x)),
    "softplus": (lambda x: mp.log(1 + mp.exp(x)), sigmoid),
}
