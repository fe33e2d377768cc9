"""The full-batch Hessian as a linear operator of scipy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from tvgrad.errors import TvgradError
from tvgrad.vectors.algebra import flatten, unflatten
from tvgrad.vectors.parameters import Weights

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


def operator_of(
    products: Callable[[Sequence[Weights]], Sequence[Weights]], like: Mapping[str, torch.Tensor]
) -> LinearOperator:
    """Make an operator of Hessian-vector products.

    Args:
        products: vectors -> their products with the Hessian.
        like: name -> tensor, for names, shapes and order of the coordinates.

    Returns:
        A symmetric operator on flat float64 vectors.

    Raises:
        TvgradError: in a product, where the Hessian is not finite.
    """  # noqa: DOC502 - raised by the product
    from scipy.sparse.linalg import LinearOperator  # a traced script needs none, and would wait for it

    size = sum(tensor.numel() for tensor in like.values())

    def multiply(columns: NDArray[np.float64]) -> NDArray[np.float64]:
        found = products([unflatten(column, like) for column in columns.reshape(size, -1).T])
        images = np.stack([flatten(product) for product in found], axis=1)
        if not np.isfinite(images).all():
            raise TvgradError("the Hessian is not finite at these weights: check the model, the loss and the data")
        return images.reshape(columns.shape)

    return LinearOperator((size, size), matvec=multiply, rmatvec=multiply, matmat=multiply, dtype=np.float64)
