"""Checks of a problem: is the loss a deterministic function of weights and data, and a weighted mean over its samples?

Run once on a few samples, on the device that will be used. What fails is refused with its cause and remedy, because
each of these makes a full-batch gradient that is silently not the gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

import torch
from torch import nn

from tvgrad.errors import TvgradError, UnsupportedModel
from tvgrad.numerics.precision import full_precision, preserved_randomness, seeded
from tvgrad.problem.batch_loss import BatchLoss
from tvgrad.problem.count import check_count
from tvgrad.problem.samples import LIST_OF_BATCHES, Batch, Samples, map_tensors, tensors_in
from tvgrad.vectors.parameters import first_not_finite, trainable_parameters
from tvgrad.vectors.spread import own_part
from tvgrad.wording import near, printable

ALLOWABLE = {
    "dropout": "noise in the forward pass (dropout): gradients belong to one fixed draw of it",
    "batchnorm": "batch statistics (BatchNorm in train mode): gradients depend on how the data is cut into chunks",
    "augmentation": "random augmentation: gradients belong to one draw of the data",
    "count": "a loss that is not the weighted mean over samples: gradients depend on how the data is cut into chunks",
}
"""What `allow` may name, and the sentence with which reports repeat it."""

BATCH_DEPENDENT = frozenset(ALLOWABLE)
"""Each of them makes gradients that depend on how the data is cut into chunks, or on a draw."""

CHECKED_SAMPLES = 12

REORDERED = 64
"""Units of the last place by which a loss may differ when a GPU adds its terms in another order; a dropped unit of a
network changes it by far more."""


def fitted(samples: Samples, model: nn.Module, forward: object = None) -> Samples:
    """Cast float64 data to the dtype of a model that could not take it, and say so.

    Args:
        samples: the data.
        model: the module that is tuned.
        forward: the user's own, which may cast as it likes: the data is then left alone.

    Returns:
        The samples, or a view of them.
    """
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if samples.dtype is not None or forward is not None or len(dtypes) != 1 or torch.float64 in dtypes:
        return samples
    with preserved_randomness(torch.device("cpu")):
        found = {tensor.dtype for tensor in tensors_in(samples.batch(0, 1))}
    if torch.float64 not in found:
        return samples
    (dtype,) = dtypes
    name = str(dtype).removeprefix("torch.")
    warnings.warn(f"the data is float64 and the model {name}: the data is cast to {name}", stacklevel=3)
    return samples.with_dtype(dtype)


def check_problem(batch_loss: BatchLoss, samples: Samples, device: torch.device, allow: Collection[str] = ()) -> None:
    """Check model, loss and data on a few samples.

    Args:
        batch_loss: model and loss, on `device`.
        samples: the data.
        device: where to run.
        allow: names of `ALLOWABLE` that are not to be refused.

    Raises:
        TvgradError: an unknown name in `allow`, or weights or a loss that are not finite.
        UnsupportedModel: the loss is random, depends on batch statistics, or is no weighted mean over its samples.
    """
    unknown = sorted(set(allow) - set(ALLOWABLE))
    if unknown:
        raise TvgradError(
            f"nothing called {unknown[0]!r} can be allowed: "
            f"choose from {', '.join(ALLOWABLE)}{near(unknown[0], ALLOWABLE)}"
        )
    check_finite(trainable_parameters(batch_loss.model, batch_loss.spread))
    with full_precision(device):
        _check_samples(batch_loss, _few(samples), device, allow)
        if not set(allow) & BATCH_DEPENDENT:
            check_count(batch_loss, samples, device)


def check_finite(parameters: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that are not finite.

    Args:
        parameters: name -> tensor; of spread ones this process looks at what it holds.

    Raises:
        TvgradError: one is not.
    """
    parts = {name: own_part(tensor.detach()) for name, tensor in parameters.items()}
    lost = first_not_finite(parts)
    if lost is not None:
        kind = "nan" if bool(parts[lost].isnan().any()) else "inf"
        raise TvgradError(
            f"{printable(lost)} of the pretrained weights is not finite ({kind}): check how they are made or loaded"
        )


def _few(samples: Samples) -> Samples:
    """A few samples from all over the data: the first ones of a sorted data set may all be of one class."""
    size = min(CHECKED_SAMPLES, len(samples))
    return samples.subset([index * (len(samples) - 1) // max(1, size - 1) for index in range(size)])


def _check_samples(batch_loss: BatchLoss, samples: Samples, device: torch.device, allow: Collection[str]) -> None:
    size = len(samples)
    batch = _moved(samples.batch(0, size), device)
    if "augmentation" not in allow and not _equal(batch, _moved(samples.batch(0, size), device)):
        raise UnsupportedModel(
            "the data changes between two reads of the same samples (random augmentation): "
            "turn the augmentation off, or allow 'augmentation'"
        )
    model = batch_loss.model
    if "batchnorm" not in allow:
        _refuse_batch_statistics(model)
    if batch_loss.weight(batch) == 0:
        raise TvgradError(
            f"count(batch) is 0 for {size} samples from all over the data: there is no mean loss to check; "
            "take out the samples without weight"
        )
    try:
        value, depends = _value(batch_loss, batch, seed=0)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if samples.maybe_batches:
            raise TvgradError(LIST_OF_BATCHES) from error
        raise
    if not torch.isfinite(value):
        raise TvgradError(
            f"the loss at the pretrained weights is {value.item()}: check the data, the model and the loss"
        )
    if "dropout" not in allow and _differ(value, _value(batch_loss, batch, seed=1)[0]):
        raise UnsupportedModel(_randomness(model))
    if not depends:
        raise UnsupportedModel(
            "the loss does not depend on the trainable parameters: look for a no_grad or a detach on its way, "
            "and for the parameters that require a gradient"
        )


def _differ(value: torch.Tensor, again: torch.Tensor) -> bool:
    """Whether a loss is another one at a second evaluation; a GPU may add in another order each time."""
    if value.device.type == "cpu":
        return not torch.equal(value, again)
    return abs(float(value) - float(again)) > REORDERED * torch.finfo(value.dtype).eps * abs(float(value))


def _refuse_batch_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        uses_batch = isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or module.running_mean is None
        )
        if uses_batch:
            raise UnsupportedModel(
                f"{name or type(module).__name__} is a BatchNorm that uses the statistics of its batch, so chunks "
                "do not add up to the full batch: put it in eval mode, or allow 'batchnorm'"
            )


def _randomness(model: nn.Module) -> str:
    noisy = [
        name or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0
    ]
    source = f"dropout in train mode ({', '.join(noisy[:3])}{', ...' if len(noisy) > 3 else ''})" if noisy else "noise"
    return (
        f"the loss differs between two evaluations at the same weights because of {source}: "
        "call model.eval() or set p=0, or allow 'dropout'"
    )


def _value(batch_loss: BatchLoss, batch: Batch, seed: int) -> tuple[torch.Tensor, bool]:
    """The loss of a batch, and whether it depends on the trainable parameters."""
    # Buffers go in as copies, so that the model stays as it is. Gradients are always on: attention has a faster path
    # without them, whose last bits differ.
    buffers = {name: buffer.clone() for name, buffer in batch_loss.named_buffers()}
    with seeded(seed, batch_device(batch)):
        value: torch.Tensor = torch.func.functional_call(batch_loss, buffers, (batch,))
    return value.detach(), value.requires_grad


def batch_device(batch: Batch) -> torch.device:
    """Tell where a batch lies.

    Args:
        batch: as the collate function made it.

    Returns:
        The device of its first tensor; the CPU where there is none.
    """
    found = tensors_in(batch)
    return found[0].device if found else torch.device("cpu")


def _moved(batch: Batch, device: torch.device) -> Batch:
    with torch.inference_mode(False):  # a copy that is made in inference mode could not be differentiated through
        return map_tensors(batch, lambda tensor: tensor.to(device))


def _equal(left: Batch, right: Batch) -> bool:
    pairs = list(zip(tensors_in(left), tensors_in(right), strict=False))
    return len(pairs) == len(tensors_in(right)) and all(
        one.shape == other.shape and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)) for one, other in pairs
    )
