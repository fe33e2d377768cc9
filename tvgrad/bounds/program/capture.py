"""Capture: a model and its loss, exported together as one graph of operations, and lowered to the supported ones.

`torch.export` runs the program with one sample and records what it does to tensors: in-place operations, views, hooks
and control flow are in the graph or refused by it. Operations outside the supported set are refused by name and line.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tvgrad.bounds.program.agreement import compare_formats
from tvgrad.bounds.program.aten_rules import RULES
from tvgrad.bounds.program.graph import Graph
from tvgrad.bounds.program.lowering import Lowering, line_of
from tvgrad.bounds.program.operation import UnsupportedProgram

LossFunction = Callable[[Any, torch.Tensor], torch.Tensor]

LOSSES: dict[str, LossFunction] = {
    "cross_entropy": nn.functional.cross_entropy,
    "mse": nn.functional.mse_loss,
    "bce": nn.functional.binary_cross_entropy_with_logits,
}

_KEPT = (
    torch.ops.aten.linear.default,
    torch.ops.aten.scaled_dot_product_attention.default,
    torch.ops.aten.cross_entropy_loss.default,
    torch.ops.aten.mse_loss.default,
    torch.ops.aten.binary_cross_entropy_with_logits.default,
    torch.ops.aten.rms_norm.default,
    torch.ops.aten.silu.default,
    torch.ops.aten.softplus.default,
    torch.ops.aten.hardtanh.default,
    torch.ops.aten.leaky_relu.default,
    torch.ops.aten.clamp_min.default,
    torch.ops.aten.gelu.default,
    torch.ops.aten._softmax.default,
    torch.ops.aten.native_layer_norm.default,
    torch.ops.aten.embedding.default,
)


class WithLoss(nn.Module):
    """A model and its loss as one module."""

    def __init__(self, model: nn.Module, loss: LossFunction) -> None:
        """Join them.

        Args:
            model: the model.
            loss: of its output and the targets.
        """
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            inputs: samples.
            targets: their targets.

        Returns:
            A scalar.
        """
        return self.loss(self.model(inputs), targets)


@dataclass(frozen=True)
class Captured:
    """A program and the tensors that it was captured with.

    Attributes:
        graph: for one sample.
        tensors: the parameters and buffers by name, float64 copies.
        module: model and loss, the float64 copy that was exported.
        largest: numbers in the largest tensor of one sample.
    """

    graph: Graph
    tensors: dict[str, torch.Tensor]
    module: WithLoss
    largest: int


def capture(model: nn.Module, loss: LossFunction, inputs: torch.Tensor, targets: torch.Tensor) -> Captured:
    """Export model and loss.

    Args:
        model: the model, in the mode that is meant; it is copied.
        loss: of its output and the targets, a mean over the samples.
        inputs: samples, of which the first is used.
        targets: their targets.

    Returns:
        The program.

    Raises:
        UnsupportedProgram: a part of it is not supported, or export refuses it; says which and where.
    """
    _refuse_hooks(model, loss)
    _refuse_shared_storage(model)  # a copy in another format would no longer share it
    module = WithLoss(copy.deepcopy(model), copy.deepcopy(loss)).double()
    try:
        exported = torch.export.export(module, (inputs[:1], targets[:1]))
    except Exception as problem:  # torch.export raises many kinds: each says that the program was not captured
        told = str(problem).strip().splitlines()
        raise UnsupportedProgram(
            f"torch.export cannot capture {type(model).__name__}: {told[0] if told else type(problem).__name__}"
        ) from problem
    for node in exported.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator):
            raise UnsupportedProgram(
                f"{node.target} is not supported ({line_of(node)}): a region of its own, such as "
                "torch.no_grad or a branch, has no bounds"
            )
        if "detach" in str(node.target):
            raise UnsupportedProgram(
                f"{node.target} is not supported ({line_of(node)}): what is detached has no gradient, "
                "and the loss is not the function whose gradient is used"
            )
    compare_formats(exported, WithLoss(copy.deepcopy(model), copy.deepcopy(loss)), inputs[:1], targets[:1])
    table = torch.export.default_decompositions()
    for kept in _KEPT:
        table.pop(kept, None)
    lowered = Lowering(_decomposed(exported, table), module, RULES)
    tensors = {name: tensor.detach() for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    values = (node.meta.get("val") for node in exported.graph.nodes if node.op == "call_function")
    largest = max((value.numel() for value in values if isinstance(value, torch.Tensor)), default=1)
    return Captured(lowered.graph(), tensors, module, largest)


def _decomposed(exported: torch.export.ExportedProgram, table: Any) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():  # PyTorch copies its own trees there, which warns whoever called
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        decomposed: torch.export.ExportedProgram = exported.run_decompositions(table)
    return decomposed


def _refuse_hooks(model: nn.Module, loss: LossFunction) -> None:
    """Hooks on gradients are not part of a captured program."""
    modules = [*model.modules(), *(loss.modules() if isinstance(loss, nn.Module) else ())]
    for module in modules:
        if module._backward_hooks or module._backward_pre_hooks:
            raise UnsupportedProgram(f"{type(module).__name__} has a hook on its gradient: remove it")
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise UnsupportedProgram(f"the parameter {name} has a hook on its gradient: remove it")
    everywhere = torch.nn.modules.module
    for kind in ("_global_backward_hooks", "_global_backward_pre_hooks", "_global_forward_hooks"):
        if getattr(everywhere, kind, None):
            raise UnsupportedProgram("there are global hooks on modules: remove them")


def _refuse_shared_storage(module: nn.Module) -> None:
    """Two tensors on one storage move together, which no gradient of either tells."""
    owners: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.numel():
            continue
        at = tensor.untyped_storage().data_ptr()
        if at in owners and owners[at][1] is not tensor:
            raise UnsupportedProgram(
                f"{name} and {owners[at][0]} share their memory: tie them as one parameter, or give each its own"
            )
        owners[at] = name, tensor
