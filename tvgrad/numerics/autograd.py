"""Derivatives that PyTorch cannot take, or would silently take wrongly: each is an error that says what to do."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tvgrad.errors import UnsupportedModel


def gradients(
    loss: torch.Tensor, points: tuple[torch.Tensor, ...], create_graph: bool = False
) -> tuple[torch.Tensor, ...]:
    """Differentiate a loss that may not depend on every point, or on none.

    Args:
        loss: a scalar.
        points: tensors that require a gradient.
        create_graph: whether the gradients are differentiated in turn.

    Returns:
        One dense gradient for each point; zeros where the loss does not depend on it.
    """
    if not loss.requires_grad:
        return tuple(torch.zeros_like(point) for point in points)
    found = torch.autograd.grad(loss, points, create_graph=create_graph, materialize_grads=True)
    # Embeddings may give sparse ones.
    return tuple(part if part.layout == torch.strided else part.to_dense() for part in found)


def refuse_broken_graph(gradient: Sequence[torch.Tensor]) -> None:
    """Refuse a gradient whose graph ends at an operation that can be differentiated once only.

    Its node would raise when it ran, but it leads to no weight any more, so autograd leaves it out and a product is
    silently wrong.

    Args:
        gradient: tensors made with `create_graph`.

    Raises:
        UnsupportedModel: the graph has such a node.
    """
    if any(name.endswith("autograd::Error") for name in operation_names(gradient)):
        raise UnsupportedModel(_lacking("an autograd function is marked once_differentiable"))


def operation_names(tensors: Iterable[torch.Tensor]) -> Iterator[str]:
    """Go through the autograd graph behind tensors.

    Args:
        tensors: any.

    Yields:
        The name of each node, once.
    """
    ahead: list[Any] = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(ahead)
    while ahead:
        node = ahead.pop()
        yield node.name()
        following = {successor for successor, _ in node.next_functions if successor is not None} - seen
        seen |= following
        ahead += following


@contextmanager
def translate_errors() -> Generator[None]:
    """Turn PyTorch's errors about derivatives that a model does not have into cause and remedy.

    Yields:
        Nothing.

    Raises:
        UnsupportedModel: instead of such an error.
        RuntimeError: any other, as it came.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "use_reentrant=True" in text:
            raise UnsupportedModel(
                "the model checkpoints activations with use_reentrant=True, which has no gradient at given weights: "
                "switch checkpointing off or to use_reentrant=False (Hugging Face: "
                "model.gradient_checkpointing_disable())"
            ) from error
        if "derivative for" in text or "once_differentiable" in text:
            raise UnsupportedModel(_lacking(text.splitlines()[0])) from error
        raise


def _lacking(what: str) -> str:
    return (
        f"an operation of the model lacks the derivative that is needed ({what}): "
        "use a plain implementation of it (Hugging Face: attn_implementation='eager')"
    )
