"""Likelihoods: the targets that a model holds for likely, as far as its loss says so.

With p the distribution of targets that belongs to the loss, `E_{y ~ p} (grad loss)^2` is the diagonal of the Fisher
matrix. The gradient by the parameters is `J' r(y)`, r the gradient by the outputs, so that the expectation needs
`E r r'` only; here it is written as a sum of `s s'`, and every s is one backward pass:

- cross-entropy: `r = p - e_y` and `E r r' = sum_c p_c (e_c - p)(e_c - p)'`;
- MSE, the mean over m outputs, which is the likelihood of noise with variance m/2: `E r r' = (2/m) I`;
- binary cross-entropy, the mean over m outputs: `E r r' = diag(q (1 - q)) / m^2`, q the probabilities.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tvgrad.errors import UnsupportedModel


class Likelihood(ABC):
    """A distribution of targets, given outputs of shape (samples, m) or (samples,)."""

    @abstractmethod
    def factors(self, outputs: torch.Tensor) -> Iterator[torch.Tensor]:
        """Write `E r r'` as a sum.

        Args:
            outputs: of the model.

        Yields:
            Each s, shaped like the outputs.
        """

    @abstractmethod
    def sampled(self, outputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw a target for every sample.

        Args:
            outputs: of the model.
            generator: of the draw, on the CPU.

        Returns:
            `r(y)`, shaped like the outputs.
        """


class Categorical(Likelihood):
    """One class of several."""

    def factors(self, outputs: torch.Tensor) -> Iterator[torch.Tensor]:
        """One for each class."""
        p = outputs.softmax(1)
        for label in range(outputs.shape[1]):
            away = -p
            away[:, label] += 1
            yield away * p[:, label : label + 1].sqrt()

    def sampled(self, outputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A class by its probability."""
        p = outputs.softmax(1)
        labels = torch.multinomial(p.double().cpu(), 1, generator=generator)[:, 0]
        return p - torch.eye(outputs.shape[1], dtype=p.dtype, device=p.device)[labels]


class Gaussian(Likelihood):
    """A number for each output, with noise of variance m/2."""

    def factors(self, outputs: torch.Tensor) -> Iterator[torch.Tensor]:
        """One for each output."""
        flat = outputs.reshape(len(outputs), -1)
        for index in range(flat.shape[1]):
            unit = torch.zeros_like(flat)
            unit[:, index] = (2 / flat.shape[1]) ** 0.5
            yield unit.reshape(outputs.shape)

    def sampled(self, outputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The gradient at a target with noise."""
        noise: torch.Tensor = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
        return noise * float((2 / outputs[0].numel()) ** 0.5)


class Bernoulli(Likelihood):
    """Yes or no for each output."""

    def factors(self, outputs: torch.Tensor) -> Iterator[torch.Tensor]:
        """One for each output."""
        q = outputs.sigmoid().reshape(len(outputs), -1)
        for index in range(q.shape[1]):
            unit = torch.zeros_like(q)
            unit[:, index] = (q[:, index] * (1 - q[:, index])).sqrt() / q.shape[1]
            yield unit.reshape(outputs.shape)

    def sampled(self, outputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The gradient at drawn targets."""
        q = outputs.sigmoid()
        drawn = torch.bernoulli(q.double().cpu(), generator=generator).to(q)
        return (q - drawn) / outputs[0].numel()


def likelihood_of(loss: Any) -> Likelihood:
    """Read the likelihood of a loss.

    Args:
        loss: a module or function of PyTorch.

    Returns:
        It.

    Raises:
        UnsupportedModel: the loss is no known likelihood.
    """
    weighted = any(getattr(loss, name, None) is not None for name in ("weight", "pos_weight"))
    # A sum over outputs is another likelihood than their mean; of one sample it is no mean over samples either.
    plain = not getattr(loss, "label_smoothing", 0) and getattr(loss, "reduction", "mean") == "mean"
    if not weighted and plain:
        for known, likelihood in (
            ((nn.CrossEntropyLoss, F.cross_entropy), Categorical),
            ((nn.MSELoss, F.mse_loss), Gaussian),
            ((nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits), Bernoulli),
        ):
            if type(loss) is known[0] or loss is known[1]:
                made: Likelihood = likelihood()
                return made
    name = getattr(loss, "__name__", type(loss).__name__) if loss is not None else "forward itself"
    raise UnsupportedModel(
        f"{name} says no distribution of targets that is known here: an exact or sampled Fisher diagonal takes plain "
        "cross-entropy, MSE or binary cross-entropy with logits (reduction='mean'); kind='empirical' takes any loss"
    )


def check_outputs(likelihood: Likelihood, outputs: torch.Tensor) -> None:
    """Refuse outputs that a likelihood cannot take.

    Args:
        likelihood: the distribution.
        outputs: of the model.

    Raises:
        UnsupportedModel: cross-entropy over more than one position a sample.
    """
    if isinstance(likelihood, Categorical) and outputs.ndim != 2:
        raise UnsupportedModel(
            f"outputs of shape {tuple(outputs.shape)} are classes at several positions: an exact or sampled Fisher "
            "diagonal takes (samples, classes); kind='empirical' takes any"
        )
