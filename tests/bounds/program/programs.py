"""Small programs of many kinds, random ones included, for the tests of program bounds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, *, causal: bool = False, act: Callable[..., torch.Tensor] | None = None):
        super().__init__()
        self.heads, self.causal, self.act = heads, causal, act or nn.functional.gelu
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        query, key, value = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.down(self.act(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Tokens of real numbers, blocks, mean pooling and a head."""

    def __init__(self, width: int = 4, heads: int = 2, depth: int = 1, classes: int = 3) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


class LanguageModel(nn.Module):
    """An embedding, positions, causal blocks, and an output matrix, tied to the embedding or not."""

    def __init__(self, words: int, width: int, length: int, depth: int = 2, *, tied: bool = False) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, 2, causal=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        places = torch.arange(tokens.shape[1])
        x = self.embed(tokens) + self.positions(places)
        return self.head(self.norm(self.blocks(x))).transpose(1, 2)


class Written(nn.Module):
    """Attention written by hand, a gate, a concatenation, a slice and a scaled skip."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.gate, self.mix, self.scale = (
            nn.Linear(width, width),
            nn.Linear(2 * width, 3),
            nn.Parameter(torch.ones(width)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(self.q(x) @ self.k(x).transpose(-2, -1) / 2.0, dim=-1)
        mixed = weights @ x * torch.sigmoid(self.gate(x)) - 0.5 * x
        joined = torch.cat([mixed, torch.tanh(x * self.scale)], dim=-1)
        return self.mix(joined[:, 1:]).sum(dim=1)


def random_program(seed: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Draw a program in float64 with data."""
    generator = torch.Generator().manual_seed(seed)
    kind = seed % 5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        acts = [nn.Tanh(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Sigmoid(), nn.Softplus(threshold=60.0)]
        if kind == 0:
            model: nn.Module = Transformer(4, 2, 1)
        elif kind == 1:
            model = LanguageModel(6, 4, 3, 1, tied=bool(seed % 2))
        elif kind == 2:
            model = Written()
        elif kind == 3:
            act = acts[seed % len(acts)]
            model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.LayerNorm(5), act, nn.Linear(5, 3), nn.Tanh())
        else:
            model = nn.Sequential(Block(4, 1, act=acts[seed // 5 % len(acts)]), nn.Flatten(), nn.Linear(12, 3))
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    if kind == 1:
        tokens = torch.randint(6, (5, 4), generator=generator)
        return model.double(), tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    inputs = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)
    return model.double(), inputs, torch.randint(3, (5,), generator=generator)
