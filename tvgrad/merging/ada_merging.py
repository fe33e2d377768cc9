r"""AdaMerging: coefficients that make the merged model sure of its answers on unlabelled inputs (arXiv 2310.02575)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.method import Method, checked_number, checked_whole
from tvgrad.merging.weighted import Weighted
from tvgrad.merging.with_objectives import ObjectiveMethod
from tvgrad.vectors.algebra import combination
from tvgrad.vectors.parameters import inner_product

if TYPE_CHECKING:
    from tvgrad.merging.stack import Stack


def mean_entropy(outputs: torch.Tensor, target: object = None) -> torch.Tensor:
    """Evaluate how unsure a classifier is, as a loss that looks at no target.

    Args:
        outputs: logits, classes in dimension 1.
        target: anything.

    Returns:
        The mean over samples (and positions) of the entropy of softmax(outputs), in nats.
    """
    logs = outputs.log_softmax(1)
    return -(logs.exp() * logs).sum(1).mean()


@dataclass(frozen=True)
class AdaMerging(ObjectiveMethod):
    r"""$\sum_t a_t \tau_t$, $a_t$ as `steps` steps of Adam at `rate` leave them, for the summed entropy.

    Coefficients begin at `start`.

    Objectives are of `mean_entropy` on unlabelled inputs, each with its task's own head. The derivative of entropy by
    $a_t$ is its gradient's inner product with $\tau_t$: a gradient a task for each step. As published it is stopped
    after some steps and not at a minimum, which there often is none of; batches are the whole data here.

    Examples:
        >>> import torch, tvgrad
        >>> from tvgrad.merging import AdaMerging, merge_vectors
        >>> from tvgrad.merging.ada_merging import mean_entropy
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> objective = tvgrad.Objective(model, mean_entropy, (torch.eye(2), torch.zeros(2)))
        >>> method = AdaMerging((objective,), start=0.5, steps=1, rate=0.0)
        >>> merge_vectors(method, [{"weight": torch.tensor([[2.0, 0.0], [0.0, 4.0]])}])["weight"].diagonal().tolist()
        [1.0, 2.0]
    """

    start: float = 0.3
    rate: float = 1e-3
    steps: int = 500

    name: ClassVar[str] = "ada_merging"

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", checked_number(self.start, "start"))
        object.__setattr__(self, "rate", checked_number(self.rate, "rate", least=0))
        checked_whole(self.steps, "steps", least=1)

    @override
    def prepared(self, stack: Stack) -> Method:
        vectors = list(self.vectors(stack))
        base = {name: one.double() for name, one in self.objectives[0].initial.items()}
        coefficients = torch.full((stack.tasks,), self.start, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([coefficients], lr=self.rate)
        for _ in range(self.steps):
            point = combination((1.0, base), *zip(coefficients.tolist(), vectors, strict=True))
            slopes = torch.zeros(stack.tasks, dtype=torch.float64)
            for objective in self.objectives:
                gradient = objective.gradient(point)
                slopes += torch.tensor([inner_product(gradient, vector) for vector in vectors], dtype=torch.float64)
            coefficients.grad = slopes
            optimizer.step()
        return Weighted(tuple(coefficients.tolist()))
