"""LoopGradients: the full-batch gradient of a training loop, by passes over its own loader at the present weights.

As in a measuring pass of a script, the loop's own batches, loss, augmentation and dropout say what the gradient is. The
first point is measured by two passes, the second of which draws order and noise anew: where both agree to rounding and
every sample was used, the gradient is the full batch's, and later points take one pass each. Where they do not agree,
each point takes two, whose distance is the error bar.

Training goes on as if nothing had been: random numbers, buffers, samplers and the modes of modules are put back, and
the parameters' `.grad` is never touched.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tvgrad.errors import TvgradError
from tvgrad.numerics.precision import preserved_randomness
from tvgrad.problem.batch_loss import BatchLoss
from tvgrad.record.batch_items import BatchItems, facts_of, items_of, tensors_of
from tvgrad.record.batch_weights import Evidence, repeats_differ, some_coordinates, split, weights_of
from tvgrad.record.count_ratios import CountRatios
from tvgrad.record.decision import decided
from tvgrad.record.draws import Draws, NotedSampler
from tvgrad.record.exchange import exchanged_batches
from tvgrad.record.loss_weights import LossWeights
from tvgrad.record.measurement import AS_BEFORE, Measurement, compared
from tvgrad.record.reseed import reseed
from tvgrad.record.spread_batch import spread_batch
from tvgrad.record.telling import Telling
from tvgrad.record.weighing import CLASS_WEIGHTS, BatchWeights, Weighing
from tvgrad.store.measured import EXACT
from tvgrad.vectors.algebra import add_scaled, combination, to_float64, zeros_like
from tvgrad.vectors.parameters import Weights, first_not_finite, norm

SEED = 20_261
"""Where the random numbers of second passes begin."""

LossOf = Callable[[Any], torch.Tensor]
"""Computes the mean loss of a batch, as the loader returns it, at the model's present weights."""


class LoopGradients:
    """Measures full-batch gradients of a model while a loop trains it.

    Attributes:
        loss: the mean loss of the last pass.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        data: Iterable[Any],
        loss_of: LossOf,
        loss: Callable[..., Any] | None = None,
    ) -> None:
        """Prepare to measure.

        Args:
            model: the module that is tuned; its modules' modes, train or eval, are those of all passes.
            parameters: name -> parameter, those whose gradients are wanted.
            data: the loop's loader, or a list of batches; a tuple of tensors is one batch.
            loss_of: the loss of a batch.
            loss: of outputs and targets, of which that of a batch is made; what it divides by may be known.

        Raises:
            TvgradError: the data cannot be gone through again, or several processes train together.
        """
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise TvgradError("several processes train together, and full-batch gradients of a loop follow one")
        if isinstance(data, (Dataset, Iterator)):
            raise TvgradError("full-batch gradients go through the data again and again: give data=DataLoader(...)")
        self.loss = math.nan
        self._model, self._parameters, self._loss_of = model, parameters, loss_of
        self._loss_weights = LossWeights(loss)
        one_batch = isinstance(data, tuple) and all(isinstance(part, torch.Tensor) for part in data)
        self._data = [data] if one_batch else data
        self._modes = {module: module.training for module in model.modules()}
        self._device = next(iter(parameters.values())).device
        self._weights: BatchWeights | None = None
        self._first: Measurement | None = None
        self._dtype = min((parameter.dtype for parameter in parameters.values()), key=lambda dtype: dtype.itemsize)

    def measure(self) -> tuple[Weights, Measurement]:
        """Measure at the present weights.

        Returns:
            Name -> gradient in the parameter's dtype, float32 for narrower ones; what it is.

        Raises:
            TvgradError: the data has no batches, or the gradient is not finite.
        """
        with self._undisturbed():
            if self._weights is None:
                self._weights = self._probed()
            first = self._passed(self._weights)
            if self._first is not None and self._first.kind == EXACT and first[0]["samples"] == self._first.samples:
                made = replace(self._first, reason=AS_BEFORE)
            else:
                told = decided(self._weights, first, lambda one: one[0]["unlike"], self._told, self._passed)
                self._weights, first = told
                made = compared(self._weights, first, self._in_other_batches(self._weights))
        self._first = self._first or made
        self.loss = first[0]["loss"]
        formats = {name: torch.float32 if p.dtype.itemsize < 4 else p.dtype for name, p in self._parameters.items()}
        return {name: tensor.to(formats[name]) for name, tensor in first[1].items()}, made

    def _in_other_batches(self, weights: BatchWeights) -> tuple[dict[str, Any], Weights]:
        """A second pass, with other random numbers, whose batches exchange samples where the model takes them."""
        try:
            return self._passed(weights, SEED, exchanged_batches)
        except Exception:  # noqa: BLE001 - a model may want samples in order, say, and refuse others in any way
            return self._passed(weights, SEED)

    def _passed(
        self, weights: BatchWeights, seed: int | None = None, batches: Callable[[Any], Iterable[Any]] = iter
    ) -> tuple[dict[str, Any], Weights]:
        """One epoch: facts of it, and its gradient in float64."""
        loader = _own_loader(self._data)
        if seed is not None:
            reseed(loader, seed)
        draws = Draws()
        if isinstance(loader, DataLoader) and _size_of_data(loader) is not None:
            place = "sampler" if loader.batch_sampler is None else "batch_sampler"
            vars(loader)[place] = NotedSampler(vars(loader)[place], draws)
        total = zeros_like({name: parameter.detach() for name, parameter in self._parameters.items()})
        found: list[BatchItems] = []
        summed = norms = losses = 0.0
        added, counter = weights.weighing is Weighing.SUM, weights.used
        ratios = CountRatios(counter)
        for batch in batches(loader):
            items = self._loss_weights.counted(items_of(batch), batch)
            found.append(items)
            ratios.add(items.counts)
            weight = 1.0 if added else items.counts[counter] or float(not items.samples)
            if weight == 0:  # the mean over its targets, which are all ignored, is 0/0
                continue
            gradient, loss = self._gradient(batch)
            add_scaled(total, gradient, weight)
            summed, norms, losses = summed + weight, norms + weight * norm(gradient), losses + weight * loss
        if not found:
            raise TvgradError("full-batch gradients need batches, and the data has none")
        gradient = combination((1.0 if added else 1.0 / (summed or 1.0), total))
        if not all(bool(torch.isfinite(tensor).all()) for tensor in gradient.values()):
            lost = first_not_finite(self._parameters)
            if lost is not None:
                raise TvgradError(f"{lost} is not finite: check how the weights are loaded, or lower the rate")
            raise TvgradError(
                "the full-batch gradient is not finite at these weights, which are: check the data and the loss"
            )
        return {
            **facts_of(found),
            "data": _size_of_data(loader),
            "drawn_again": draws.again,
            "steps": len(found),
            "batches_a_step": 1,
            "dtype": str(self._dtype).removeprefix("torch."),
            "epochs_repeated": 0,
            "weight": summed,
            "mean_norm": norms / (summed or 1.0),
            "loss": losses / (1.0 if added else summed or 1.0),
            "unlike": ratios.unlike,
            "watched": self._loss_weights.known,
        }, gradient

    def _probed(self) -> BatchWeights:
        """How batches are weighted: from one of samples all over the data, in two parts, and again with its noise."""
        loader = _own_loader(self._data)
        batch = next(iter(loader), None)
        batch = None if batch is None else spread_batch(loader, batch)
        return self._weights_of(batch, None if batch is None else split(batch))

    def _told(self, counters: tuple[int, ...]) -> BatchWeights:
        """The same from a batch that tells counters apart."""
        if self._loss_weights.known and CLASS_WEIGHTS in counters:
            return BatchWeights(counter=CLASS_WEIGHTS, confirmed=True)
        loader = _own_loader(self._data)
        batches = iter(loader)
        batch, parts, _ = Telling(counters).parts(loader, next(batches), lambda: next(batches))
        return self._weights_of(batch, parts)

    def _weights_of(self, batch: Any, parts: tuple[Any, Any] | None) -> BatchWeights:
        """The weights that make a batch of its parts."""
        if batch is None or parts is None:
            return BatchWeights(reason="the first batch could not be cut into two parts")
        dropouts = [one for one in self._model.modules() if isinstance(one, nn.modules.dropout._DropoutNd)]
        chances = [one.p for one in dropouts]
        try:
            for one in dropouts:  # its noise would hide how batches are weighted
                one.p = 0.0
            found = [self._evidence(number, part) for number, part in enumerate((batch, *parts))]
        finally:
            for one, chance in zip(dropouts, chances, strict=True):
                one.p = chance
        weights = weights_of(found, self._dtype)
        again = [self._evidence(number, batch) for number in range(2)]
        return replace(weights, noise=repeats_differ(again, weights))

    def _evidence(self, number: int, batch: Any) -> Evidence:
        gradient = self._gradient(copy.deepcopy(batch))[0]
        items = self._loss_weights.counted(items_of(batch), batch)
        return Evidence(number, number, items.counts, some_coordinates(gradient.values()))

    def _gradient(self, batch: Any) -> tuple[Weights, float]:
        """Gradient in float64, and loss, of a batch."""
        with torch.enable_grad():
            loss = self._loss_of(batch)
            parts = torch.autograd.grad(loss, list(self._parameters.values()), allow_unused=True)
        gradient = {
            name: torch.zeros_like(p) if part is None else part.to_dense() if part.is_sparse else part
            for (name, p), part in zip(self._parameters.items(), parts, strict=True)
        }
        return to_float64(gradient), float(loss.detach())

    @contextmanager
    def _undisturbed(self) -> Generator[None]:
        """Put everything back that a pass changes, but for what a data set keeps for itself."""
        modes = {module: module.training for module in self._model.modules()}
        buffers = [
            (module._buffers, name, tensor, tensor.clone())
            for module in self._model.modules()
            for name, tensor in module._buffers.items()
            if tensor is not None
        ]
        drawers = _drawers(_unwrapped(self._data))
        states = [(one, dict(vars(one))) for one in drawers]
        owned = [getattr(one, "generator", None) for one in drawers]
        generators = [(one, one.get_state()) for one in owned if isinstance(one, torch.Generator)]
        watch = nn.modules.module.register_module_forward_pre_hook(self._note_autocast)
        try:
            for module in modes:
                module.training = self._modes.get(module, module.training)
            with preserved_randomness(self._device):
                yield
        finally:
            watch.remove()
            for module, mode in modes.items():
                module.training = mode
            with torch.no_grad():
                for place, name, tensor, before in buffers:
                    tensor.copy_(before)
                    place[name] = tensor
            for one, state in states:
                vars(one).update(state)
            for generator, drawn in generators:
                generator.set_state(drawn)

    def _note_autocast(self, module: nn.Module, args: Any) -> None:  # noqa: ARG002
        """Note the narrowest format in which the loop computes."""
        kind = self._device.type
        if torch.is_autocast_enabled(kind):
            self._dtype = min(self._dtype, torch.get_autocast_dtype(kind), key=lambda dtype: dtype.itemsize)


def loop_gradients(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    data: Any,
    loss: Callable[[Any, Any], torch.Tensor] | None,
) -> LoopGradients | None:
    """Make what measures a loop's full-batch gradients.

    Args:
        model: the module that is tuned.
        parameters: name -> parameter.
        data: the loop's loader or a list of batches, what was made of them already, or None.
        loss: callable(output, target) -> mean loss; None where the model returns the loss itself.

    Returns:
        It; None where there is no data, or nothing to differentiate by.

    Raises:
        TvgradError: there is a loss without data.
    """
    if data is None and loss is not None:
        raise TvgradError("a loss is for full-batch gradients by data: pass data=, the loop's own loader, too")
    if data is None or isinstance(data, LoopGradients) or not parameters:
        return data if isinstance(data, LoopGradients) else None
    batch_loss, device = BatchLoss(model, loss), next(iter(parameters.values())).device
    return LoopGradients(model, parameters, data, lambda batch: batch_loss(moved(batch, device)), loss)


def _unwrapped(data: Any) -> Any:
    """A loader without a library's wrapper, which would count its passes."""
    while isinstance(getattr(data, "base_dataloader", None), DataLoader):
        data = data.base_dataloader
    return data


def _own_loader(data: Any) -> Any:
    """A loader of the same batches in this process, so that no pass of the loop's own is disturbed."""
    data = _unwrapped(data)
    if not isinstance(data, DataLoader):
        return data
    loader: Any = copy.copy(data)
    # DataLoader forbids some of these to be set, because it has made other things of them by then: not those here.
    vars(loader).update(num_workers=0, persistent_workers=False, prefetch_factor=None, timeout=0, _iterator=None)
    return loader


def _drawers(loader: Any) -> list[Any]:
    """What draws the order of a loader's samples."""
    batches = getattr(loader, "batch_sampler", None)
    found = [getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None), loader]
    return list({id(one): one for one in found if hasattr(one, "__dict__")}.values())


def _size_of_data(loader: Any) -> int | None:
    try:
        return len(loader.dataset)
    except (TypeError, NotImplementedError, AttributeError):
        return None


def moved(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch to a device.

    Args:
        batch: a tensor, or a mapping or sequence of such, nested.
        device: where to.

    Returns:
        The batch itself where all its tensors are there already, else a copy.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if all(tensor.device == device for tensor in tensors_of(batch)):
        return batch
    if isinstance(batch, Mapping):
        return {name: moved(one, device) for name, one in batch.items()}
    if hasattr(batch, "_fields"):
        return type(batch)(*(moved(one, device) for one in batch))
    return type(batch)(moved(one, device) for one in batch) if isinstance(batch, (list, tuple)) else batch
