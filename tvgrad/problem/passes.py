"""Passes: what every pass over an objective's data needs, and the model's loss and output at given weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from tvgrad.errors import TvgradError
from tvgrad.numerics.precision import seeded
from tvgrad.problem.batch_loss import PREFIX, BatchLoss
from tvgrad.problem.evaluations import Evaluations
from tvgrad.problem.fully_sharded import at_work
from tvgrad.problem.ranks import Alone
from tvgrad.problem.samples import Batch, Samples
from tvgrad.vectors.parameters import Weights, same_names_and_shapes

FIRST = 8
"""So many samples tell whether processes have the same loss."""


class Passes:
    """Goes over the data in chunks, at weights that need not be the model's own.

    Attributes:
        samples: the data, in its fixed order.
        device: where it is computed.
        home: where the caller's model lies, and with it every gradient and product.
        evaluations: passes over the data so far.
        allowed: names of the checks that the caller switched off; reports repeat them.
    """

    samples: Samples
    device: torch.device
    home: torch.device
    evaluations: Evaluations
    allowed: tuple[str, ...]
    _initial: Weights
    _batch_loss: BatchLoss
    _ranks: Alone
    _sharded: Sequence[nn.Module]

    @property
    def chunk_size(self) -> int:
        """Samples that are evaluated at once."""
        raise NotImplementedError

    def _loss(
        self,
        weights: Mapping[str, torch.Tensor],
        chunk: Batch,
        then: Callable[[torch.Tensor], Any] | None = None,
    ) -> Any:
        """The loss of a chunk with the given weights; buffers go in as copies, so that nothing is mutated."""
        # Derivatives are taken in `then`, while the module still has these weights: checkpointed activations would
        # otherwise be recomputed with the model's own, and make a derivative that is silently wrong.
        return functional_call(self._batch_loss, self._state(weights), (chunk,), {"then": then})

    def _output(self, weights: Mapping[str, torch.Tensor], chunk: Batch, then: Callable[[Any], Any]) -> Any:
        """What `then` makes of the model's output for a chunk."""
        return functional_call(self._batch_loss, self._state(weights), (chunk,), {"of_output": then})

    def _state(self, weights: Mapping[str, torch.Tensor]) -> Weights:
        state = {name: buffer.clone() for name, buffer in self._batch_loss.named_buffers()}
        return state | {PREFIX + name: tensor for name, tensor in weights.items()}

    def _chunks(self, size: int | None = None) -> Iterator[tuple[Batch, float]]:
        """Chunks on the device, each with its weight in the mean; a single chunk weighs 1, so that it stays exact."""
        size = size or self.chunk_size
        single = len(self.samples) <= size
        for start in self._ranks.part(range(0, len(self.samples), size)):
            chunk = self.samples.batch(start, start + size, self.device)
            weight = self._batch_loss.weight(chunk)
            # A chunk without weight (all its tokens ignored) may have an undefined mean, 0/0: it is left out.
            if weight > 0:
                with self._noise(start):
                    yield chunk, 1.0 if single else weight

    def _noise(self, start: int) -> AbstractContextManager[None]:
        """Where dropout is allowed, every evaluation of a chunk sees the same draw."""
        return seeded(start, self.device) if "dropout" in self.allowed else nullcontext()

    def _first_loss(self) -> tuple[float, float]:
        """The loss of a few samples at the weights of the beginning, and their weight in the mean."""
        chunk = self.samples.batch(0, FIRST, self.device)
        with torch.no_grad(), self._noise(0):
            value: torch.Tensor = self._loss(self._initial, chunk)
        return float(value), self._batch_loss.weight(chunk)

    def _check(self, given: Mapping[str, torch.Tensor] | None) -> Weights:
        """Weights or a vector with the right names and shapes, on the device and in the parameters' dtypes."""
        require_whole(self._sharded)
        if given is None:
            return self._initial
        difference = same_names_and_shapes(self._initial, given)
        if difference is not None:
            raise TvgradError(f"the weights do not fit the model: {difference}")
        with torch.inference_mode(False):
            plain = {name: given[name].detach() for name in self._initial}
            return {
                # A tensor made in inference mode cannot be differentiated at; a copy can.
                name: (plain[name].clone() if plain[name].is_inference() else plain[name]).to(self.device, tensor.dtype)
                for name, tensor in self._initial.items()
            }


def require_whole(modules: Iterable[nn.Module]) -> None:
    """Refuse modules that gather and spread their parameters: these would take the place of given weights.

    Args:
        modules: of a model, those that `fully_shard` was called on.

    Raises:
        TvgradError: one does.
    """
    if at_work(modules):
        raise TvgradError(
            "the model's parameters are spread over several processes (fully_shard), and an Objective has whole ones: "
            "use tvgrad.SpreadObjective, or stay inside `with tvgrad.gathered(model)` where every process can hold "
            "the whole model"
        )
