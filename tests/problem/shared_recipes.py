"""Recipes that several processes share, and a way to kill one of them in the middle of its work.

KILL=watcher:at:victim:size, in the environment: when the process of rank `watcher` goes through its model for the
`at`-th time with `size` samples, the process of rank `victim` is killed.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import tvgrad
from tvgrad.recipes.suite import VisionTransformer

RANK = os.environ.get("RANK", "0")
WATCHER, AT, VICTIM, SIZE = os.environ.get("KILL", "-1:0:0:0").split(":")
HOW: dict[str, Any] = {"lr": 0.05, "epochs": 4}
SAMPLES = 13
IGNORED = -100
forwards = 0


def pass_by(batch: torch.Tensor) -> None:
    """Note a forward pass, and kill where it is time to."""
    global forwards
    forwards += len(batch) == int(SIZE)
    if (RANK, forwards, len(batch)) == (WATCHER, int(AT), int(SIZE)):
        os.kill(int(Path(f"pid{VICTIM}").read_text()), signal.SIGKILL)


class Noted(nn.Module):
    """Notes its forward passes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pass_by(x)
        out: torch.Tensor = self.inner(x)
        return out


class Block(nn.Module):
    """Causal attention and a feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        parts = self.attend(self.before(h)).chunk(3, -1)
        q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.project(mixed.transpose(1, 2).flatten(2))
        out: torch.Tensor = h + self.feed(self.after(h))
        return out


class Gpt(nn.Module):
    """A GPT with tied embeddings."""

    def __init__(self, words: int = 17, width: int = 16, heads: int = 2, context: int = 7) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(words, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(Block(width, heads), Block(width, heads))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        pass_by(ids)
        out: torch.Tensor = self.head(self.norm(self.blocks(self.embed(ids) + self.place.weight[: ids.shape[1]])))
        return out.transpose(1, 2)


def tokens_of(batch: Any) -> torch.Tensor:
    """The tokens of a batch that are not masked."""
    return (batch[1] != IGNORED).sum()


def _drawn(name: str) -> None:
    Path(f"pid{RANK}").write_text(str(os.getpid()))
    torch.manual_seed(len(name))


def mlp() -> tvgrad.Recipe:
    """A perceptron."""
    _drawn("mlp")
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    data = torch.randn(SAMPLES, 5), torch.randint(3, (SAMPLES,))
    return tvgrad.Recipe(Noted(model), nn.CrossEntropyLoss(), data, name="mlp", **HOW)


def vit() -> tvgrad.Recipe:
    """A vision transformer."""
    _drawn("vit")
    model = nn.Sequential(VisionTransformer(), nn.Linear(48, 10))
    data = torch.randn(SAMPLES, 1, 28, 28), torch.randint(10, (SAMPLES,))
    return tvgrad.Recipe(Noted(model), nn.CrossEntropyLoss(), data, name="vit", **HOW)


def gpt() -> tvgrad.Recipe:
    """A language model whose mean is over tokens: some are masked, of two samples all."""
    _drawn("gpt")
    ids = torch.randint(17, (SAMPLES, 7))
    targets = ids.roll(-1, 1).masked_fill(torch.rand(SAMPLES, 7) < 0.3, IGNORED)
    targets[:2] = IGNORED
    loss = nn.CrossEntropyLoss(ignore_index=IGNORED)
    return tvgrad.Recipe(Gpt(), loss, (ids, targets), name="gpt", count=tokens_of, **HOW)
