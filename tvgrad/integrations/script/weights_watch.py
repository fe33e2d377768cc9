"""WeightsWatch: notices weights that move outside the optimizer's steps, as by a mask, a projection or a swap.

Between two steps the version counters of the parameters are compared. Writes through `.data` leave them as they are,
and an average that is swapped in and out again raises them in vain; so a sample of the weights is compared as well,
after steps 1, 2, 4, 8, ... and after each recorded point. Between the others only the counters speak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter

import torch

SAMPLED = 1024
"""About so many elements of each parameter are compared."""


class WeightsWatch:
    """The weights as they stood when they were last looked at.

    Attributes:
        version: sum of the parameters' version counters at the end of the last step.
    """

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        """Look at the weights for the first time.

        Args:
            parameters: those that the optimizer moves.
        """
        self._parameters = parameters
        self._steps = 0
        self._seen = self._unseen = 0
        self._in_vain = False
        self.version = self.present_version()
        self._first = _sample(parameters)
        self._left = False
        self._mark(sampled=True)

    @property
    def returned(self) -> bool:
        """Whether something besides the steps has put back the weights of the first look, which the steps had left."""
        if not self._left or self.present_version() == self.version:
            return False
        return _same(_sample(self._parameters), self._first)

    @property
    def moved(self) -> int:
        """How often the weights were seen to have moved though no step was taken: at least so often they did.

        Counters that rose between steps without a sample count, unless samples have shown only rises in vain.
        """
        return self._seen + (0 if self._in_vain and not self._seen else self._unseen)

    def present_version(self) -> int:
        """Add up the version counters.

        Returns:
            The sum, which grows with each write that torch knows of.
        """
        return sum(map(attrgetter("_version"), self._parameters))

    def look(self) -> None:
        """Compare the weights with what they were after the last step, or at the last look since."""
        raised = self.present_version() != self._marked_version
        if self._sample is None:
            self._unseen += raised
            return
        if len(now := _sample(self._parameters)) == len(self._sample):
            moved = not _same(now, self._sample)
            self._seen += moved
            self._in_vain |= raised and not moved

    def look_again(self) -> None:
        """Compare the weights, and begin from what they are now: they are being recorded."""
        self.look()
        self._mark(sampled=True)

    def after_step(self) -> None:
        """The optimizer has stepped, or tried to."""
        self._steps += 1
        self._mark(sampled=self._steps & (self._steps - 1) == 0)
        self.version = self._marked_version

    def _mark(self, sampled: bool) -> None:
        self._marked_version = self.present_version()
        self._sample = _sample(self._parameters) if sampled else None
        if self._sample is not None and not self._left:
            self._left = bool(self._first) and not _same(self._sample, self._first)


def differ(recorded: Mapping[str, torch.Tensor], present: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether weights are others than the recorded ones, in any bit.

    Args:
        recorded: name -> CPU tensor.
        present: name -> tensor on any device; a cast to another dtype alone makes no difference.

    Returns:
        Whether one is missing, has another shape or another content.
    """
    for name, tensor in recorded.items():
        live = present.get(name)
        if live is None or live.shape != tensor.shape:
            return True
        if not torch.equal(_bits(live.detach().to("cpu")), _bits(tensor.to(live.dtype))):
            return True
    return False


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Bytes: NaN is equal to itself there."""
    return tensor.reshape(-1).contiguous().view(torch.uint8)


def _same(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


def _sample(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Elements of all parameters, as bytes: one tensor for each device and dtype; none where they cannot be read."""
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        return []
    parts: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    try:
        for parameter in parameters:
            flat = parameter.detach().reshape(-1)
            parts.setdefault((flat.device, flat.dtype), []).append(flat[:: max(1, len(flat) // SAMPLED)])
        return [_bits(torch.cat(part)) for part in parts.values()]
    except (RuntimeError, NotImplementedError):  # tensors of another kind: sharded, quantized, inference-mode ones
        return []
