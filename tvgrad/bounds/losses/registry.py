"""Find the loss of a name or a module, or say why there are no bounds for it."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

from tvgrad.bounds.losses.base import Loss, UnknownLoss
from tvgrad.bounds.losses.cross_entropy import CrossEntropy
from tvgrad.bounds.losses.elementwise import BinaryCrossEntropy, SquaredError


def loss_of(loss: str | nn.Module | Loss, **options: object) -> Loss:
    """The loss of a name or a module.

    Args:
        loss: "cross_entropy" (options weight, label_smoothing, ignore_index, reduction), "bce" (outputs "mean" or
            "sum", weight, pos_weight, reduction), "mse" (reduction), "mse_half" (half the squared norm for each
            sample), one of the modules `nn.CrossEntropyLoss`, `nn.BCEWithLogitsLoss`, `nn.MSELoss`, or a `Loss`.
        **options: of a name; a module has its own.

    Returns:
        The loss.

    Raises:
        UnknownLoss: the loss or an option is not known; says what is.

    Examples:
        >>> from torch import nn
        >>> from tvgrad.bounds import loss_of
        >>> loss_of("cross_entropy", label_smoothing=0.1).label_smoothing
        0.1
        >>> loss_of(nn.MSELoss()).name
        'mse'
    """
    if isinstance(loss, Loss) and not options:
        return loss
    if isinstance(loss, nn.Module) and not options:
        return _of_module(loss)
    if not isinstance(loss, str):
        raise UnknownLoss("Options go with the name of a loss; a module or loss object has its own.")
    key = _ALIASES.get(loss.lower(), loss.lower())
    if key not in _KINDS:
        raise UnknownLoss(_unknown(loss))
    kind, fixed = _KINDS[key]
    try:
        return kind(**fixed, **options)
    except TypeError as error:
        raise UnknownLoss(f"{loss}: {error}.") from None


_KINDS: dict[str, tuple[type[Loss], dict[str, object]]] = {
    "cross_entropy": (CrossEntropy, {}),
    "bce": (BinaryCrossEntropy, {}),
    "mse": (SquaredError, {}),
    "mse_half": (SquaredError, {"half": True}),
}
_ALIASES = {"bce_with_logits": "bce", "binary_cross_entropy_with_logits": "bce", "mse_loss": "mse"}


def _of_module(loss: nn.Module) -> Loss:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    changed = any(getattr(loss, name) or getattr(torch_module, f"_global{name}", None) for name in hooks)
    if changed or "forward" in vars(loss):
        raise UnknownLoss(f"{type(loss).__name__} has hooks or a forward of its own: remove them")
    if type(loss) is nn.CrossEntropyLoss:
        return CrossEntropy(loss.weight, loss.label_smoothing, loss.ignore_index, loss.reduction)
    if type(loss) is nn.BCEWithLogitsLoss:
        return BinaryCrossEntropy("mean", loss.weight, loss.pos_weight, loss.reduction)
    if type(loss) is nn.MSELoss:
        return SquaredError(reduction=loss.reduction, broadcasts=True)
    raise UnknownLoss(_unknown(type(loss).__name__))


def _unknown(name: str) -> str:
    hint = " (BCEWithLogitsLoss takes the logits that BCELoss's sigmoid would get)" if name == "BCELoss" else ""
    return (
        f"No bounds are known for the loss {name}{hint}; use cross_entropy, bce (with logits), mse or mse_half, or the "
        "estimates, which take any loss."
    )
