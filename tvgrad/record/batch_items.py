"""BatchItems: what a batch holds, counted in the ways in which a loss may take its mean, and a fingerprint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

DEPTH = 4
"""How deep in nested containers a batch's tensors are looked for."""

IGNORED = -100
"""The target that torch's losses leave out."""

COUNTERS = (
    "samples",
    "tokens",
    "tokens after the first",
    "tokens that are not 0",
    "class weights of targets",
    "tokens after the first that are not 0",
)
"""The ways in which a batch is counted. Language models that shift their targets leave out the first of each row; class
weights are known where the loss was watched."""

TOKENS = 1
"""Place of the tokens that torch's losses leave out by default."""

SAMPLED = 64
"""About so many elements of each row of a tensor enter the fingerprint: a training waits for it."""

FEW = 8
"""So many tensors of a batch enter it."""

BITS = 52
MODULUS = 1 << BITS
"""Fingerprints are below it: float64, in which tables of steps are read, holds them exactly."""


@dataclass(frozen=True)
class BatchItems:
    """What a batch holds.

    Attributes:
        counts: in the order of `COUNTERS`; all are the samples where there are no tokens or weights, 0
            where nothing is known.
        fingerprint: a sum over the samples of a hash of each, modulo 2^52, so that an epoch's sum is the same in
            whichever order it goes through the samples; None where the batch holds no tensor on the CPU.
    """

    counts: tuple[float, ...]
    fingerprint: int | None

    @property
    def samples(self) -> int:
        """The number of samples, 0 where it is not known."""
        return int(self.counts[0])


def items_of(batch: Any, tokens: bool = True) -> BatchItems:
    """Count a batch.

    Args:
        batch: what a loader returned.
        tokens: count them too, for which an accelerator is waited for.

    Returns:
        Its items. The first dimension of the first tensor counts the samples.
    """
    tensors = tensors_of(batch)
    if not tensors:
        return BatchItems((0.0,) * len(COUNTERS), None)
    first = tensors[0]
    samples = len(first) if first.ndim else 1
    target = _token_targets(batch, tensors) if tokens else None
    counts: tuple[int, ...] = (samples,) * len(COUNTERS)
    if target is not None:
        used = target != IGNORED
        real = used & (target != 0)
        counts = (samples, int(used.sum()), int(used[:, 1:].sum()), int(real.sum()), samples, int(real[:, 1:].sum()))
    return BatchItems(tuple(map(float, counts)), _fingerprint(tensors, samples))


def tensors_of(batch: Any, depth: int = DEPTH) -> list[torch.Tensor]:
    """List the tensors of a batch, in order.

    Args:
        batch: what a loader returned.
        depth: how deep containers are searched.

    Returns:
        The tensors; none where there are none.
    """
    if isinstance(batch, torch.Tensor):
        return [batch]
    if depth == 0 or isinstance(batch, (str, bytes)):
        return []
    inside = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, Sequence) else ()
    return [tensor for one in inside for tensor in tensors_of(one, depth - 1)]


def facts_of(items: Sequence[BatchItems]) -> dict[str, Any]:
    """Describe the batches of a pass together.

    Args:
        items: of each.

    Returns:
        samples; batches; content, the fingerprint of all samples; batch_fingerprints, of the samples of each batch.
    """
    return {
        "samples": sum(one.samples for one in items),
        "batches": len(items),
        "content": sum_of_fingerprints([one.fingerprint for one in items]),
        "batch_fingerprints": [one.fingerprint for one in items],
    }


def targets_of(batch: Any) -> torch.Tensor | None:
    """Find the whole numbers that are most likely the targets of a batch, of samples or of tokens.

    Args:
        batch: what a loader returned.

    Returns:
        `labels` of a mapping, or the last tensor of whole numbers; None where there is none.
    """
    named = batch.get("labels") if isinstance(batch, Mapping) else None
    candidates = [named] if isinstance(named, torch.Tensor) else list(reversed(tensors_of(batch)))
    return next((one for one in candidates if one.ndim and not one.is_floating_point() and not one.is_complex()), None)


def sum_of_fingerprints(fingerprints: Sequence[int | None]) -> int | None:
    """Add fingerprints.

    Args:
        fingerprints: of batches.

    Returns:
        That of all their samples; None where one is not known, or there are none.
    """
    if not fingerprints or None in fingerprints:
        return None
    total: int = sum(one for one in fingerprints if one is not None)
    return total % MODULUS


def _token_targets(batch: Any, tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The tensor of integers whose elements are the targets of tokens, shape (samples, length, ...), or None."""
    named = batch.get("labels") if isinstance(batch, Mapping) else None
    candidates = [named] if isinstance(named, torch.Tensor) else list(reversed(tensors))
    for tensor in candidates:
        if tensor.ndim >= 2 and not tensor.is_floating_point() and not tensor.is_complex():
            return tensor
    return None


def _fingerprint(tensors: Sequence[torch.Tensor], samples: int) -> int | None:
    total = np.zeros(samples, dtype=np.uint64)
    hashed = False
    try:
        for tensor in tensors[:FEW]:
            if tensor.device.type != "cpu" or tensor.layout != torch.strided or not tensor.numel():
                continue
            if tensor.ndim == 0 or len(tensor) != samples:
                continue
            total = _mixed(total * np.uint64(31) + _hash_of_rows(tensor.detach()))
            hashed = True
    except (RuntimeError, TypeError, NotImplementedError):  # tensors of another kind: nothing is known of them
        return None
    added: np.uint64 = (total >> np.uint64(64 - BITS)).sum(dtype=np.uint64)
    return int(added) % MODULUS if hashed else None


def _hash_of_rows(tensor: torch.Tensor) -> np.ndarray:
    """A number for each row: its bytes times odd constants, modulo 2^64."""
    flat = tensor.reshape(len(tensor), -1)
    picked = flat[:, :: max(1, flat.shape[1] // SAMPLED)].contiguous()
    content = picked.view(torch.uint8).reshape(len(tensor), -1).numpy().astype(np.uint64)
    constants = _mixed(np.arange(1, content.shape[1] + 1, dtype=np.uint64)) | np.uint64(1)
    return (content + np.uint64(1)) @ constants


def _mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers that spreads every bit (the finalizer of the SplitMix generator)."""
    values = values * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: np.ndarray = values ^ (values >> np.uint64(31))
    return result
