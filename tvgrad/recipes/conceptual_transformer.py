"""A transformer of one layer and one head with a fixed readout, and its hinge loss."""

from __future__ import annotations

import math

import torch
from torch import nn

WIDTH = 16
SPREAD = 0.02  # standard deviation of the start's weights


class ConceptualTransformer(nn.Module):
    """`f(X) = (1/P) sum_l a' ReLU( V sum_s x_s softmax_s(x_s' W x_l) )`, with W and V trained.

    Half of the entries of a are `1/sqrt(width)`, half are minus that, the same for every position l: f does not depend
    on the order of the tokens, so that equal tokens may be given once with how often they occur.
    """

    readout: torch.Tensor

    def __init__(self, dimension: int, width: int = WIDTH, *, generator: torch.Generator) -> None:
        """Draw a start with small weights.

        Args:
            dimension: of a token.
            width: neurons; an even number.
            generator: of the random numbers.
        """
        super().__init__()
        self.attention = nn.Parameter(SPREAD * torch.randn(dimension, dimension, generator=generator))
        self.value = nn.Parameter(SPREAD * torch.randn(width, dimension, generator=generator))
        signs = torch.ones(width)
        signs[width // 2 :] = -1
        self.register_buffer("readout", signs / math.sqrt(width))

    def forward(
        self, tokens: torch.Tensor, repeats: torch.Tensor | None = None, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Evaluate.

        Args:
            tokens: shape (n, slots, dimension); with `rows`, a table of patterns, shape (patterns, dimension).
            repeats: how often each slot's token stands in a sample, shape (slots,); once each by default.
            rows: which row of the table each token is, shape (n, slots). The matrices then meet each pattern once.

        Returns:
            Shape (n,).
        """
        logits = tokens @ self.attention.T @ tokens.transpose(-1, -2)  # [l, s] = x_s' W x_l, since (W x_l)' = x_l' W'
        values = tokens @ self.value.T
        if rows is not None:
            pairs = rows[:, :, None] * len(tokens) + rows[:, None, :]
            logits = logits.flatten().index_select(0, pairs.flatten()).view(pairs.shape)
            values = values.index_select(0, rows.flatten()).view(*rows.shape, -1)
        if repeats is not None:
            logits = logits + repeats.log()
        attended = torch.softmax(logits, dim=-1) @ values
        each = torch.relu(attended) @ self.readout
        return each.mean(-1) if repeats is None else (each * repeats).sum(-1) / repeats.sum()


def hinge_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean of `max(0, 1 - y f)`.

    Args:
        output: f, shape (n,).
        target: y, +1 or -1, shape (n,).

    Returns:
        A scalar.
    """
    return torch.relu(1 - target * output).mean()
