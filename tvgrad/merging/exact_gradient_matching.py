r"""Gradient matching with whole Hessians, by conjugate gradients on their products (arXiv 2310.12808)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from tvgrad.errors import TvgradError
from tvgrad.merging.conjugate_gradients import conjugate_gradients
from tvgrad.merging.method import Method, checked_number
from tvgrad.merging.with_objectives import Given, ObjectiveMethod
from tvgrad.vectors.algebra import combination
from tvgrad.vectors.parameters import Weights, inner_product

if TYPE_CHECKING:
    from tvgrad.merging.stack import Stack


@dataclass(frozen=True)
class ExactGradientMatching(ObjectiveMethod):
    r"""The solution m of $(H_0 + \sum_s H_s) m = \sum_t (H_0 + H_t) \tau_t$.

    $H_t$ is the Hessian of loss t at its own tuned weights.

    $H_0$, of the pretraining, is `prior` times the mean of the curvatures along the task vectors, in all directions.
    T products for each step. The sum must be positive definite, which a larger prior makes it.
    """

    prior: float = 0.1

    name: ClassVar[str] = "exact_gradient_matching"

    def __post_init__(self) -> None:
        object.__setattr__(self, "prior", checked_number(self.prior, "prior", least=0))

    @override
    def prepared(self, stack: Stack) -> Method:
        vectors = list(self.vectors(stack))
        points = [
            combination((1.0, one.initial), (1.0, vector)) for one, vector in zip(self.objectives, vectors, strict=True)
        ]

        def product(task: int, vector: Weights) -> Weights:
            found = self.objectives[task].hvp(vector, points[task])
            return {name: part.double() for name, part in found.items()}

        curved = [product(task, vector) for task, vector in enumerate(vectors)]
        along = [
            inner_product(vector, part) / square
            for vector, part in zip(vectors, curved, strict=True)
            if (square := inner_product(vector, vector)) > 0
        ]
        prior = self.prior * sum(along) / len(along) if along else 0.0
        if prior < 0:
            mean = sum(along) / len(along)
            raise TvgradError(
                f"the losses are curved downwards along the task vectors ({mean:.3g} on average), so "
                "that gradients cannot be matched: use gradient_matching, or train on"
            )
        right = combination(*((1.0, part) for part in curved), *((prior, vector) for vector in vectors))

        def total(vector: Weights) -> Weights:
            return combination((prior, vector), *((1.0, product(task, vector)) for task in range(stack.tasks)))

        start = combination(*((1 / stack.tasks, vector) for vector in vectors))
        return Given(conjugate_gradients(total, right, start))
