"""Conceptual tasks on sequences of tokens, for which it was proved when task vectors can be added and negated.

The setting follows Li et al., "When is Task Vector Provably Effective for Model Editing?" (arXiv 2504.10957). A token
is one of `mu, -mu, v_1 .. v_M`, unit vectors with mu orthogonal to every v_j. A sample of label y holds so many tokens
`y mu` (label-relevant), fewer `-y mu` (confusing), and others drawn from the v_j (irrelevant): the label is the
majority sign among its mu tokens. Two tasks differ in mu, and are irrelevant, aligned or contradictory as
`rho = mu_1' mu_2` is 0, positive or negative. A mixture, `sum gamma_i mu_i + kappa mu_perp`, is out of the domain of
the tasks mu_i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.conceptual_transformer import ConceptualTransformer, hinge_loss

SEED = 20250410
RHO = 0.5  # of the aligned recipe, and minus that of the contradictory one
TRAIN_SAMPLES, TEST_SAMPLES = 256, 200


@dataclass(frozen=True)
class TokenMix:
    """What the samples of every task are made of.

    Attributes:
        relevant: tokens of the label's sign in a sample.
        confusing: tokens of the other sign; fewer.
        irrelevant: other tokens in a sample.
        patterns: how many patterns the irrelevant tokens are drawn from.
        dimension: of a token.
    """

    relevant: int = 6
    confusing: int = 2
    irrelevant: int = 2
    patterns: int = 30
    dimension: int = 36

    def __post_init__(self) -> None:
        least = {"relevant": 1, "confusing": 0, "irrelevant": 0, "patterns": 1, "dimension": 2}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise TvgradError(f"{name} must be a whole number of at least {lowest}, not {getattr(self, name)}")
        if self.confusing >= self.relevant:
            raise TvgradError(
                f"{self.confusing} confusing tokens are no fewer than {self.relevant} label-relevant ones, so that the "
                "majority is not the label: lower confusing"
            )

    @property
    def length(self) -> int:
        """Tokens in a sample."""
        return self.relevant + self.confusing + self.irrelevant

    @property
    def repeats(self) -> torch.Tensor:
        """How often each of the tokens that `draw` returns stands in a sample, shape (slots,): they sum to `length`."""
        return torch.tensor([self.relevant, self.confusing, *[1] * self.irrelevant], dtype=torch.float32)

    def axes(self, directions: int, seed: int) -> torch.Tensor:
        """Draw the orthonormal system in which tasks and irrelevant patterns lie, turned at random.

        Args:
            directions: orthogonal directions that the tasks need, besides the irrelevant patterns.
            seed: of the rotation.

        Returns:
            float64, shape (directions + patterns, dimension): the tasks' directions come first.

        Raises:
            TvgradError: so many orthogonal patterns do not fit into the dimension.
        """
        wanted = directions + self.patterns
        if wanted > self.dimension:
            raise TvgradError(
                f"{self.patterns} irrelevant patterns and {directions} directions of tasks cannot be orthogonal in "
                f"{self.dimension} dimensions: lower patterns, or raise dimension to {wanted}"
            )
        draw = torch.Generator().manual_seed(seed)
        square = torch.randn(self.dimension, self.dimension, generator=draw, dtype=torch.float64)
        turned: torch.Tensor = torch.linalg.qr(square).Q
        return turned[:wanted]

    def table(self, axes: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
        """List the patterns of a task.

        Args:
            axes: of `axes`.
            mu: the task's unit vector, shape (dimension,).

        Returns:
            float32, shape (2 + patterns, dimension): mu, -mu, v_1 .. v_M.
        """
        return torch.stack([mu, -mu, *axes[-self.patterns :]]).float()

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw samples.

        Args:
            count: how many.
            generator: of the random numbers.

        Returns:
            Rows of the task's table, shape (count, slots), where the first slot is the label-relevant token and the
            second the confusing one, each once; and labels, +1 or -1, shape (count,), float32.
        """
        negative = (torch.rand(count, generator=generator) < 0.5).long()
        others = 2 + torch.randint(self.patterns, (count, self.irrelevant), generator=generator)
        return torch.cat([negative[:, None], 1 - negative[:, None], others], dim=1), (1 - 2 * negative).float()


def pair_direction(axes: torch.Tensor, rho: float) -> torch.Tensor:
    """Make the second task of a pair, whose first task is `axes[0]`.

    Args:
        axes: orthonormal, at least two rows.
        rho: the overlap of both tasks.

    Returns:
        The unit vector `rho axes[0] + sqrt(1 - rho^2) axes[1]`.

    Raises:
        TvgradError: rho is outside [-1, 1].
    """
    if not -1 <= rho <= 1:
        raise TvgradError(f"rho is the cosine of two tasks and lies between -1 and 1, not {rho:g}: give another one")
    return rho * axes[0] + math.sqrt(1 - rho**2) * axes[1]


def mixture_direction(axes: torch.Tensor, gammas: Sequence[float]) -> torch.Tensor:
    """Make a task out of the domain of the tasks `axes[0], axes[1] ..`.

    Args:
        axes: orthonormal, one row more than there are gammas: the last is mu_perp.
        gammas: how much of each task is in the mixture.

    Returns:
        The unit vector `sum gamma_i axes[i] + kappa mu_perp`, with kappa >= 0.

    Raises:
        TvgradError: the gammas are longer than a unit vector.
    """
    square = sum(gamma**2 for gamma in gammas)
    if square > 1 + 1e-12:
        raise TvgradError(
            f"the gammas {', '.join(f'{gamma:g}' for gamma in gammas)} have the norm {math.sqrt(square):.3g}, and a "
            "mixture is a unit vector: divide them by that"
        )
    given = torch.tensor(gammas, dtype=axes.dtype) @ axes[: len(gammas)]
    return given + math.sqrt(max(0.0, 1 - square)) * axes[len(gammas)]


def conceptual_pair(rho: float) -> list[Recipe]:
    """Make two tasks of a given overlap that share one start, a transformer with small random weights.

    Args:
        rho: the overlap.

    Returns:
        The recipes `first` and `second`.

    Raises:
        TvgradError: rho is outside [-1, 1].
    """  # noqa: DOC502 - raised by what it calls
    mix = TokenMix()
    axes = mix.axes(2, SEED)
    model = ConceptualTransformer(mix.dimension, generator=torch.Generator().manual_seed(SEED))
    recipes = []
    for place, (name, mu) in enumerate((("first", axes[0]), ("second", pair_direction(axes, rho)))):
        draw = torch.Generator().manual_seed(SEED + 1 + place)
        parts = []
        for count in (TRAIN_SAMPLES, TEST_SAMPLES):
            rows, labels = mix.draw(count, draw)
            whole = torch.repeat_interleave(rows, mix.repeats.long(), dim=1)
            parts.append((mix.table(axes, mu)[whole], labels))
        recipes.append(
            Recipe(
                model, hinge_loss, train=parts[0], test=parts[1], name=name, metric=sign_accuracy, lr=1.0, epochs=20,
                about=f"conceptual tokens, overlap {rho:g} of the two tasks",
            )
        )  # fmt: skip
    return recipes


def sign_accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Share of samples whose output has the label's sign.

    Args:
        output: shape (n,).
        target: +1 or -1, shape (n,).

    Returns:
        A scalar.
    """
    return (output * target > 0).double().mean()


def irrelevant() -> list[Recipe]:
    """Make two tasks of overlap 0.

    Returns:
        The recipes.
    """
    return conceptual_pair(0.0)


def aligned() -> list[Recipe]:
    """Make two tasks of positive overlap.

    Returns:
        The recipes.
    """
    return conceptual_pair(RHO)


def contradictory() -> list[Recipe]:
    """Make two tasks of negative overlap.

    Returns:
        The recipes.
    """
    return conceptual_pair(-RHO)
