"""What functions on task vectors in memory are called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

Vectors = Sequence[Mapping[str, torch.Tensor]]
Base = Mapping[str, torch.Tensor] | None
