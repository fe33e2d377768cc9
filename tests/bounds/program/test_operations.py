"""Operations of convolutional and gated programs: gradients against 60 digits, on code that is written on its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import nn

from tvgrad.bounds import Program, UnsupportedProgram

Weights = Mapping[str, Any]
_tanh = np.vectorize(mp.tanh, otypes=[object])


def convolved(x: Any, w: Any, b: Any, *, stride: int, pad: int, dilation: int, groups: int) -> Any:
    """A convolution of (C, H, W) by its definition, in numbers of any kind."""
    channels, height, width = x.shape
    padded = np.full((channels, height + 2 * pad, width + 2 * pad), mp.mpf(0), dtype=object)
    padded[:, pad : pad + height, pad : pad + width] = x
    rows, columns = ((padded.shape[axis] - dilation * (w.shape[axis + 1] - 1) - 1) // stride + 1 for axis in (1, 2))
    out = np.empty((len(w), rows, columns), dtype=object)
    for o, i, j in np.ndindex(out.shape):
        first = o // (len(w) // groups) * w.shape[1]
        out[o, i, j] = b[o] + sum(
            w[o, c, k, m] * padded[first + c, i * stride + k * dilation, j * stride + m * dilation]
            for c, k, m in np.ndindex(w.shape[1:])
        )
    return out


class Convolutional(nn.Module):
    """Grouped, strided and dilated convolutions, a frozen batch norm, a group norm and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, 2, 1, groups=2), nn.Conv2d(4, 2, 2, dilation=2)
        self.norm, self.groups, self.head = nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Linear(2, 2)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.3, 3.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.groups(self.norm(self.first(x))))
        return self.head(nn.functional.avg_pool2d(self.second(h), (2, 1)).mean((2, 3)))

    def exact(self, w: Weights, x: Any) -> Any:
        h = convolved(x, w["first.weight"], w["first.bias"], stride=2, pad=1, dilation=1, groups=2)
        for c in range(4):
            scale = w["norm.weight"][c] / mp.sqrt(w["norm.running_var"][c] + mp.mpf(1e-5))
            h[c] = (h[c] - w["norm.running_mean"][c]) * scale + w["norm.bias"][c]
        for pair in (slice(0, 2), slice(2, 4)):
            part = h[pair] - h[pair].mean()
            h[pair] = part / mp.sqrt((part * part).mean() + mp.mpf(1e-5))
        h = np.stack([h[c] * w["groups.weight"][c] + w["groups.bias"][c] for c in range(4)])
        h = convolved(_tanh(h), w["second.weight"], w["second.bias"], stride=1, pad=0, dilation=2, groups=1)
        return w["head.weight"] @ h[:, :2].mean(axis=(1, 2)) + w["head.bias"]


class Gated(nn.Module):
    """Root mean squares as a module and by hand, and the parts of a split."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.joined, self.out = nn.RMSNorm(3, eps=1e-3), nn.Linear(3, 7), nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate, rest = self.joined(self.norm(x)).split([3, 3, 1], -1)
        h = value * torch.tanh(gate) + rest * x.chunk(3, -1)[1]
        return self.out(self.scale * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-3)))

    def exact(self, w: Weights, x: Any) -> Any:
        def normalised(h: Any) -> Any:
            return h / mp.sqrt((h * h).mean() + mp.mpf(1e-3))

        joined = w["joined.weight"] @ (normalised(x) * w["norm.weight"]) + w["joined.bias"]
        h = joined[:3] * _tanh(joined[3:6]) + joined[6] * x[1]
        return w["out.weight"] @ (w["scale"] * normalised(h)) + w["out.bias"]


def logistic(z: Any, y: Any) -> Any:
    return sum(mp.log(1 + mp.exp(a)) - b * a for a, b in zip(z, y, strict=True)) / len(z)


def squared(z: Any, y: Any) -> Any:
    return ((z - y) ** 2).mean()


def exactly(tensor: torch.Tensor) -> Any:
    return np.vectorize(mp.mpf, otypes=[object])(tensor.detach().double().numpy())


@pytest.mark.parametrize(
    ("kind", "shape", "loss", "exact_loss"),
    [(Convolutional, (2, 7, 6), "bce", logistic), (Gated, (3,), "bce", logistic), (Gated, (3,), "mse", squared)],
)
def test_gradients_lie_within_their_errors_of_the_exact_ones(
    kind: type[Any], shape: tuple[int, ...], loss: str, exact_loss: Callable[[Any, Any], Any]
) -> None:
    """Central differences with 60 digits, 1e-20 apart, are exact to 38."""
    torch.manual_seed(0)
    model = kind().double().eval()
    inputs, targets = torch.randn(2, *shape, dtype=torch.float64), torch.rand(2, 2, dtype=torch.float64)
    program = Program(model, loss, inputs, targets)
    found, error = program.measure().gradient, program.measure().error
    assert error < 1e-22
    with mp.workdps(60):
        weights = {
            name: exactly(one)
            for name, one in [*model.named_parameters(), *model.named_buffers()]
            if one.is_floating_point()
        }
        pairs = [(exactly(a), exactly(b)) for a, b in zip(inputs, targets, strict=True)]
        step, apart, place = mp.mpf(10) ** -20, mp.mpf(0), 0
        for name, _ in model.named_parameters():
            flat = weights[name].reshape(-1)  # a view
            for number in range(len(flat)):
                values, centre = [], flat[number]
                for sign in (1, -1):
                    flat[number] = centre + sign * step
                    values.append(sum(exact_loss(model.exact(weights, x), y) for x, y in pairs) / len(pairs))
                flat[number] = centre
                true = (values[0] - values[1]) / (2 * step)
                mine = mp.mpf(float(found.hi[place])) + mp.mpf(float(found.lo[place]))
                apart, place = apart + (true - mine) ** 2, place + 1
        assert mp.sqrt(apart) <= error + 1e-30


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(2, 4, 3, padding="same"), (2, 5)),
        (nn.Conv3d(1, 2, 2, stride=(1, 2, 1)), (1, 3, 4, 3)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (4, 3, 3)),
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.AvgPool2d(2, 1)), (1, 3, 3)),
        (nn.Sequential(nn.Conv1d(1, 2, 1), nn.AvgPool1d(3, 2)), (1, 7)),
    ],
)
def test_convolutions_of_every_kind_have_the_gradients_of_autograd(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    inputs, targets = torch.randn(3, *shape, dtype=torch.float64), torch.tensor([0, 1, 2])
    model(inputs)
    own = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), targets), list(model.parameters()))
    program = Program(model, "cross_entropy", inputs, targets)
    flat = torch.cat([one.flatten() for one in own])
    assert (program.gradient.value - flat).norm() <= 1e-13 * (1 + flat.norm())


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (nn.ConvTranspose2d(1, 2, 2), "transposed"),
        (nn.AvgPool2d(2, padding=1), "with padding"),
        (nn.AvgPool2d(2, ceil_mode=True), "ceil_mode"),
        (nn.RMSNorm(5), "give it an eps"),
    ],
)
def test_what_has_no_bounds_among_them_is_refused(layer: nn.Module, told: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), layer, nn.Flatten(), nn.LazyLinear(3)).double()
    inputs = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    model(inputs)
    with pytest.raises(UnsupportedProgram, match=told):
        Program(model, "cross_entropy", inputs, torch.tensor([0, 1]))
