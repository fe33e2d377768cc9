"""Numbers that are computed from frozen ones, alike for all samples, keep their rounding wherever they enter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from tvgrad.bounds import Program

LARGE = 1e20


class Frozen(nn.Module):
    """Numbers t, or `(b / 3 + b / 7) 21 - 10 b + t`, which is t, too, but with a rounding of 32 digits of b."""

    def __init__(self, numbers: torch.Tensor, *, rounded: bool) -> None:
        super().__init__()
        drawn = torch.rand(numbers.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        self.rounded = rounded
        self.register_buffer("t", numbers)
        self.register_buffer("b", LARGE * (1 + drawn))

    def forward(self) -> torch.Tensor:
        t, b = self.get_buffer("t"), self.get_buffer("b")
        return (b / 3.0 + b / 7.0) * 21.0 - b * 10.0 + t if self.rounded else t


Use = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


# of h (n, tokens, 4) and numbers of a shape
USES: dict[str, tuple[tuple[int, ...], Use]] = {
    "weight": ((4, 4), lambda h, c: functional.linear(h, c)),
    "bias": ((4,), lambda h, c: functional.linear(h, torch.eye(4, dtype=torch.float64), c)),
    "factor": ((4,), lambda h, c: h * c),
    "matrix": ((4, 4), lambda h, c: h @ c),
    "scale of a layer norm": ((4,), lambda h, c: functional.layer_norm(h, (4,), c, c)),
    "scale of an RMS norm": ((4,), lambda h, c: functional.rms_norm(h, (4,), c, 0.25)),
    "rows of a table": ((6, 4), lambda h, c: h * functional.embedding(torch.arange(5), c)),
    "queries": ((5, 4), lambda h, c: functional.scaled_dot_product_attention(0 * h + c, h, h)),
    "numbers of a frozen norm": (
        (4,),
        lambda h, c: (
            functional.batch_norm(
                h.mT, torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64), c, c, eps=0.5
            ).mT
        ),
    ),
    "slope and shift of a ReLU": ((4,), lambda h, c: functional.relu(h * c + c)),
    "through functions": ((4,), lambda h, c: h * functional.gelu(torch.softmax(c, -1) + torch.relu(c))),
}


class Model(nn.Module):
    def __init__(self, name: str, seed: int, *, rounded: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        shape, self.use = USES[name]
        self.first, self.second, self.third, self.head = (nn.Linear(4, size) for size in (4, 4, 4, 3))
        self.frozen = Frozen(torch.randn(shape, dtype=torch.float64), rounded=rounded)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.use(torch.tanh(self.first(x)), self.frozen())
        h = torch.tanh(self.second(h)).mean(1)
        for _ in range(2):  # so that there are cuts
            h = h + torch.tanh(self.third(torch.tanh(h)))
        return self.head(h)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", USES)
def test_the_rounding_of_frozen_numbers_is_in_the_bounds(name: str) -> None:
    found = []
    for rounded in (True, False):
        model = Model(name, 0, rounded=rounded).double()
        inputs = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        found.append(Program(model, "cross_entropy", inputs, torch.arange(3)).measure())
    far, near = found
    apart = (far.gradient.hi - near.gradient.hi) + (far.gradient.lo - near.gradient.lo)
    assert near.error < 1e-20 < float(apart.norm()) <= far.error + near.error < 1e-4
