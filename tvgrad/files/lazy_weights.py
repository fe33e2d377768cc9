"""LazyWeights: a vector in a safetensors file, of which one tensor at a time is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from tvgrad.files.tensors import TensorFile


class LazyWeights(Mapping[str, torch.Tensor]):
    """The tensors of a file, read anew each time that they are asked for.

    The file is open only while it is read.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        """Read the header.

        Args:
            path: a safetensors file.
        """
        self.path = path
        with TensorFile(path) as file:
            self._names = file.names

    def __getitem__(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Args:
            name: of the parameter.

        Returns:
            A new CPU tensor.

        Raises:
            KeyError: the file has no such tensor.
        """
        if name not in self._names:
            raise KeyError(name)
        with TensorFile(self.path) as file:
            return file.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
