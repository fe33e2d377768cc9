"""Programs drawn from the set of operations, for PyTorch and for the tape: the same program in two languages."""

from __future__ import annotations

from typing import Any

import mpmath as mp
import numpy as np
import torch
from torch import nn

from tests.bounds.program import tape
from tests.bounds.program.tape import Node

KINDS = (
    "linear", "tied", "act", "act_in_place", "layer_norm", "rms_norm", "rms_by_hand", "attention", "causal", "gate",
    "skip", "skip_in_place", "scale", "concat", "softmax", "conv", "square", "flip", "written_attention", "group_norm",
)  # fmt: skip
EPS = 0.05


class Drawn(nn.Module):
    """A sequence of operations on (n, tokens, width), then a mean over the tokens and a head.

    Attributes:
        plan: (kind, name of an activation) in order.
    """

    def __init__(self, seed: int, *, width: int = 4, tokens: int = 3, length: int = 5, classes: int = 3) -> None:
        super().__init__()
        draw = np.random.default_rng(seed)
        acts = list(tape.ACTIVATIONS)
        self.width, self.tokens = width, tokens
        self.plan = [(str(draw.choice(KINDS)), str(draw.choice(acts))) for _ in range(length)]
        self.shared = nn.Linear(width, width)
        sizes = {"gate": 2 * width, "concat": width, "attention": 3 * width, "causal": 3 * width}
        for number, (kind, _) in enumerate(self.plan):
            if kind in ("linear", "gate", "attention", "causal", "written_attention"):
                self.add_module(f"a{number}", nn.Linear(width, sizes.get(kind, width), bias=bool(draw.integers(2))))
            elif kind == "concat":
                self.add_module(f"a{number}", nn.Linear(2 * width, width))
            elif kind == "conv":
                self.add_module(f"a{number}", nn.Conv1d(width, width, 3, padding=1, groups=int(draw.choice([1, 2]))))
            elif kind in ("layer_norm", "group_norm"):
                made = nn.LayerNorm(width, EPS) if kind == "layer_norm" else nn.GroupNorm(2, width, EPS)
                self.add_module(f"a{number}", made)
            elif kind == "rms_norm":
                self.add_module(f"a{number}", nn.RMSNorm(width, EPS))
            elif kind == "scale":
                self.register_parameter(f"a{number}", nn.Parameter(torch.randn(width)))
        self.head = nn.Linear(width, classes)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data += 0.4 * torch.randn(parameter.shape, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        old = x
        for number, (kind, act) in enumerate(self.plan):
            before = x
            x = self._step(kind, act, getattr(self, f"a{number}", None), x, old)
            old = before
        return self.head(x.mean(dim=1))

    def _step(self, kind: str, act: str, a: Any, x: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        if kind in ("linear", "layer_norm", "rms_norm"):
            return a(x)
        if kind == "tied":
            return self.shared(x)
        if kind in ("act", "act_in_place"):
            return self._act(act, x, in_place=kind == "act_in_place")
        if kind == "rms_by_hand":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)
        if kind in ("attention", "causal"):
            parts = (one.unflatten(-1, (2, -1)).transpose(1, 2) for one in a(x).chunk(3, -1))
            mixed = nn.functional.scaled_dot_product_attention(*parts, is_causal=kind == "causal")
            return x + mixed.transpose(1, 2).flatten(2)
        if kind == "written_attention":
            return torch.softmax(0.5 * (a(x) @ x.mT), -1) @ x
        if kind == "gate":
            value, gate = a(x).split(self.width, -1)
            return value * torch.sigmoid(gate)
        if kind in ("skip", "skip_in_place"):
            h = torch.tanh(x) + 0.0
            return h.add_(old, alpha=0.5) if kind == "skip_in_place" else h + 0.5 * old
        if kind == "scale":
            return x * a
        if kind == "concat":
            return a(torch.cat([x, torch.tanh(old)], -1))
        if kind == "softmax":
            return x + torch.softmax(x, 1)
        if kind in ("conv", "group_norm"):
            return a(x.mT).mT
        return 0.3 * x**2 + x if kind == "square" else x.flip(1)

    def _act(self, act: str, x: torch.Tensor, *, in_place: bool) -> torch.Tensor:
        if act == "softplus":
            return nn.functional.softplus(x, threshold=200.0)
        if in_place and act in ("tanh", "sigmoid"):
            return getattr(x.clone(), f"{act}_")()
        return getattr(torch if act in ("tanh", "sigmoid") else nn.functional, act)(x)

    def exact_gradient(self, inputs: torch.Tensor, targets: torch.Tensor) -> list[Any]:
        """Of the mean cross-entropy, in numbers of mpmath, flat."""
        weights = {name: Node(tape.numbers(one.detach().double().numpy())) for name, one in self.named_parameters()}
        for x, label in zip(inputs.double().numpy(), targets.tolist(), strict=True):
            node = old = Node(tape.numbers(x))
            for number, (kind, act) in enumerate(self.plan):
                before = node
                node = self._exactly(kind, act, number, node, old, weights)
                old = before
            z = _linear(node.mean(0), weights, "head")
            p = tape.softmax(z).value
            p[0, label] -= 1
            Node(z.value, (z, lambda _, p=p: p / len(targets))).backward()
        return [
            entry for one in weights.values() for entry in (_zeros(one) if one.slope is None else one.slope).flatten()
        ]

    def _exactly(self, kind: str, act: str, number: int, x: Node, old: Node, w: dict[str, Node]) -> Node:
        name = f"a{number}"
        if kind in ("linear", "tied"):
            return _linear(x, w, name if kind == "linear" else "shared")
        if kind in ("act", "act_in_place"):
            return x.apply(*tape.ACTIVATIONS[act])
        if kind in ("layer_norm", "rms_norm", "rms_by_hand"):
            y = tape.normalised(x, EPS, centred=kind == "layer_norm")
            y = y if kind == "rms_by_hand" else y * w[f"{name}.weight"]
            return y + w[f"{name}.bias"] if kind == "layer_norm" else y
        if kind in ("attention", "causal"):
            qkv, size, seen = _linear(x, w, name), self.width // 2, None
            if kind == "causal":
                seen = tape.numbers(np.tril(np.ones((self.tokens, self.tokens))))
            heads = []
            for head in range(2):
                q, k, v = (qkv[:, self.width * i + size * head : self.width * i + size * (head + 1)] for i in range(3))
                # the scale is the float64 number that stands in the graph
                heads.append(tape.softmax((q @ k.turned()).scaled(mp.mpf(float(size) ** -0.5)), seen) @ v)
            return x + tape.joined(heads, -1)
        if kind == "written_attention":
            return tape.softmax((_linear(x, w, name) @ x.turned()).scaled(mp.mpf(0.5))) @ x
        if kind == "gate":
            both = _linear(x, w, name)
            return both[:, : self.width] * both[:, self.width :].apply(*tape.ACTIVATIONS["sigmoid"])
        if kind in ("skip", "skip_in_place"):
            return x.apply(*tape.ACTIVATIONS["tanh"]) + old.scaled(mp.mpf(0.5))
        if kind == "scale":
            return x * w[name]
        if kind == "concat":
            return _linear(tape.joined([x, old.apply(*tape.ACTIVATIONS["tanh"])], -1), w, name)
        if kind == "softmax":
            return x + tape.softmax(x.turned()).turned()
        if kind == "conv":
            return self._convolved(x, w, name)
        if kind == "group_norm":
            size = self.width // 2
            flat = [_reshaped(x[:, size * i : size * (i + 1)], (1, -1)) for i in range(2)]
            parts = [_reshaped(tape.normalised(one, EPS, centred=True), (self.tokens, size)) for one in flat]
            return tape.joined(parts, -1) * w[f"{name}.weight"] + w[f"{name}.bias"]
        return (x * x).scaled(mp.mpf(0.3)) + x if kind == "square" else x[::-1]

    def _convolved(self, x: Node, w: dict[str, Node], name: str) -> Node:
        layer, kernel = getattr(self, name), w[f"{name}.weight"]
        zeros = Node(tape.numbers(np.zeros((1, self.width))))
        padded, each = tape.joined([zeros, x, zeros], 0), self.width // layer.groups
        parts = []
        for group in range(layer.groups):
            at = slice(group * each, (group + 1) * each)
            taps = [padded[tap : tap + self.tokens, at] @ kernel[at, :, tap].turned() for tap in range(3)]
            parts.append(taps[0] + taps[1] + taps[2])
        return tape.joined(parts, -1) + w[f"{name}.bias"]


def _zeros(one: Node) -> Any:
    return tape.numbers(np.zeros(one.value.shape))


def _reshaped(x: Node, shape: tuple[int, ...]) -> Node:
    before = x.value.shape
    return Node(x.value.reshape(shape), (x, lambda g: g.reshape(before)))


def _linear(x: Node, w: dict[str, Node], name: str) -> Node:
    found = x @ w[f"{name}.weight"].turned()
    return found + w[f"{name}.bias"] if f"{name}.bias" in w else found


def drawn(seed: int, **sizes: int) -> tuple[Drawn, torch.Tensor, torch.Tensor]:
    """A program in a format of its own, with data."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Drawn(seed, **sizes)
    model = model.to((torch.float64, torch.float32, torch.bfloat16)[seed % 3])
    scale = (0.1, 1.0, 4.0)[seed // 3 % 3]
    inputs = scale * torch.randn(2, model.tokens, model.width, generator=generator, dtype=torch.float64)
    return model, inputs.to(next(model.parameters()).dtype), torch.randint(3, (2,), generator=generator)
