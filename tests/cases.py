"""Models, losses and data on which every full-batch quantity is checked, and those that must be refused.

Each problem carries its own truth: the unnormalised loss of every sample as a plain function of a model, and the
divisor of their sum. Nothing of it goes through tvgrad.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from tvgrad.errors import TvgradError, UnsupportedModel

N, FEATURES, CLASSES = 7, 5, 3
IGNORED = -100


@dataclass
class Problem:
    """A model with a loss on data, as a user would hand them over, and the loss of each sample on its own."""

    model: nn.Module
    loss: Callable[[Any, Any], torch.Tensor] | None
    data: Any
    pieces: list[Callable[[nn.Module], torch.Tensor]]
    divisor: float = N
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], Problem]
    dtype: torch.dtype = torch.float64
    step: float = 1e-2  # finite differences; small where kinks are near
    forward_mode: bool = True
    oracle_hvp: bool = True  # whether PyTorch's own second derivative is right

    def build(self, dtype: torch.dtype | None = None) -> Problem:
        """The problem in a dtype; drawn in float64, so that dtypes differ by rounding alone."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(20)
                problem = self.make()
        finally:
            torch.set_default_dtype(before)
        dtype = dtype or self.dtype
        if dtype != torch.float64:
            problem.model.to(dtype)
            problem.data = tuple(part.to(dtype) if part.is_floating_point() else part for part in problem.data)
        return problem


def classification(n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, FEATURES), torch.arange(n) % CLASSES


def supervised(model: nn.Module, x: torch.Tensor | None = None, data: Any = None, **options: Any) -> Problem:
    drawn, y = classification()
    x = drawn if x is None else x
    pieces = [
        lambda net, i=i: F.cross_entropy(net(x[i : i + 1].to(next(net.parameters()).dtype)), y[i : i + 1])
        for i in range(N)
    ]
    return Problem(model, F.cross_entropy, (x, y) if data is None else data, pieces, options=options)


def mlp(activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, 6), activation(), nn.Linear(6, 6), activation(), nn.Linear(6, CLASSES))


class Attention(nn.Module):
    """A transformer block over FEATURES tokens of width 4."""

    def __init__(self, direct: bool, checkpointed: bool | None = None) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 4)
        self.before = nn.LayerNorm(4)
        self.attention = None if direct else nn.MultiheadAttention(4, 2, batch_first=True)
        self.qkv = nn.Linear(4, 12) if direct else None
        self.after = nn.LayerNorm(4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.head = nn.Linear(4, CLASSES)
        self.checkpointed = checkpointed

    def block(self, h: torch.Tensor) -> torch.Tensor:
        normed = self.before(h)
        if self.qkv is not None:
            q, k, v = self.qkv(normed).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
            h = h + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        else:
            h = h + self.attention(normed, normed, normed, need_weights=False)[0]
        return h + self.mlp(self.after(h))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x.unsqueeze(-1))
        kept = self.checkpointed is None
        h = self.block(h) if kept else checkpoint(self.block, h, use_reentrant=self.checkpointed)
        return self.head(h.mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(FEATURES, FEATURES, bias=False)
        self.outward = nn.Linear(FEATURES, FEATURES, bias=False)
        self.outward.weight = self.inward.weight
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.outward(torch.tanh(self.inward(x)))))


class Counting(nn.Module):
    """Counts its calls in an integer buffer, in every mode, and draws its scale from a float buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.net(x) * self.scale


class TokenModel(nn.Module):
    """Ten tokens in, ten logits at each position out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(torch.tanh(self.embed(ids)).cumsum(1)))


@dataclass
class LanguageOutput:
    loss: torch.Tensor


class LikeHuggingFace(nn.Module):
    """Takes keywords, returns an object with `.loss`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TokenModel()

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> LanguageOutput:
        return LanguageOutput(token_loss(self.net(input_ids), labels))


class Rows(Dataset):
    """A map-style data set of whatever rows it is given."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def token_rows() -> list[dict[str, torch.Tensor]]:
    """Sequences with 4, 3, 2, 0, 4, 1 and 4 tokens that count; the fourth is ignored whole."""
    rows = []
    for kept in (4, 3, 2, 0, 4, 1, 4):
        ids = torch.randint(0, 10, (4,))
        labels = torch.randint(0, 10, (4,))
        labels[kept:] = IGNORED
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def kept_tokens(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return (batch["labels"] != IGNORED).sum()


def stacked(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def language(hugging_face: bool) -> Problem:
    rows = token_rows()

    def piece(row: dict[str, torch.Tensor]) -> Callable[[nn.Module], torch.Tensor]:
        def summed(net: nn.Module) -> torch.Tensor:
            logits = (net.net if hugging_face else net)(row["input_ids"][None])
            return F.cross_entropy(logits[0], row["labels"], ignore_index=IGNORED, reduction="sum")

        return summed

    if hugging_face:
        return Problem(LikeHuggingFace(), None, Rows(rows), [piece(r) for r in rows], 18, {"count": kept_tokens})
    options = {"count": kept_tokens, "collate": stacked, "forward": lambda net, batch: net(batch["input_ids"])}
    return Problem(TokenModel(), token_loss, Rows(rows), [piece(r) for r in rows], 18, options)


def class_weighted() -> Problem:
    weights = torch.tensor([1.0, 4.0, 0.25])
    x, y = classification()
    pieces = [lambda net, i=i: weights[y[i]] * F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]) for i in range(N)]
    loss = nn.CrossEntropyLoss(weight=weights)
    return Problem(
        mlp(), loss, (x, y), pieces, float(weights[y].sum()), {"count": lambda batch: weights[batch[1]].sum()}
    )


def eval_batch_norm() -> Problem:
    norm = nn.BatchNorm1d(6)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return supervised(nn.Sequential(nn.Linear(FEATURES, 6), norm, nn.Tanh(), nn.Linear(6, CLASSES)).eval())


def partly_frozen() -> Problem:
    model = mlp()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return supervised(model)


def unused_parameter() -> Problem:
    """One parameter has no part in the loss: its gradient and products are zero."""
    model = mlp()
    model.register_parameter("spare", nn.Parameter(torch.ones(2, 2)))
    return supervised(model)


def linear_regression() -> Problem:
    """A quadratic loss: finite differences are exact, and the bias enters the gradient of no curvature but its own."""
    x, _ = classification()
    y = torch.randn(N, 2)
    pieces = [lambda net, i=i: F.mse_loss(net(x[i : i + 1]), y[i : i + 1]) for i in range(N)]
    return Problem(nn.Linear(FEATURES, 2), F.mse_loss, (x, y), pieces)


def custom_rows() -> Problem:
    x, y = classification()
    rows = Rows([{"picture": x[i].tolist(), "label": int(y[i])} for i in range(N)])

    def collate(picked: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        pictures = torch.tensor([row["picture"] for row in picked], dtype=torch.float64)
        return pictures, torch.tensor([row["label"] for row in picked])

    return supervised(mlp(), x, rows, collate=collate)


def in_order_loader() -> Problem:
    x, y = classification()
    return supervised(mlp(nn.SiLU), x, DataLoader(TensorDataset(x, y), batch_size=2))


CASES = [
    Case("mlp tanh", lambda: supervised(mlp())),
    Case("mlp gelu", lambda: supervised(mlp(nn.GELU))),
    Case("mlp relu", lambda: supervised(mlp(nn.ReLU)), step=1e-4),
    Case("transformer, MultiheadAttention", lambda: supervised(Attention(direct=False))),
    Case("transformer, MultiheadAttention in eval mode", lambda: supervised(Attention(direct=False).eval())),
    Case("transformer, scaled_dot_product_attention", lambda: supervised(Attention(direct=True))),
    Case(
        "transformer, checkpointed", lambda: supervised(Attention(direct=True, checkpointed=False)), forward_mode=False
    ),
    Case("batchnorm in eval mode", eval_batch_norm),
    Case("tied weights", lambda: supervised(Tied())),
    Case(
        "weight norm",
        lambda: supervised(
            nn.Sequential(parametrizations.weight_norm(nn.Linear(FEATURES, 6)), nn.Tanh(), nn.Linear(6, 3))
        ),
        oracle_hvp=False,
    ),
    Case(
        "orthogonal parametrization",
        lambda: supervised(
            nn.Sequential(parametrizations.orthogonal(nn.Linear(FEATURES, 5)), nn.Tanh(), nn.Linear(5, 3))
        ),
    ),
    Case("class weights", class_weighted),
    Case("language model, dict batches", lambda: language(hugging_face=False)),
    Case("language model, output with .loss", lambda: language(hugging_face=True)),
    Case("dataset with collate", custom_rows),
    Case("sequential DataLoader", in_order_loader),
    Case("integer buffer", lambda: supervised(Counting())),
    Case("partly frozen", partly_frozen),
    Case("unused parameter", unused_parameter),
    Case("linear regression", linear_regression, forward_mode=False),
    Case("mlp tanh, float32", lambda: supervised(mlp()), dtype=torch.float32),
    Case("transformer, float32", lambda: supervised(Attention(direct=True)), dtype=torch.float32),
]


@dataclass(frozen=True)
class MustFail:
    """What is refused, with the class of the error and words of its sentence: a cause and a remedy."""

    name: str
    make: Callable[[], dict[str, Any]]
    error: type[TvgradError]
    cause: str
    remedy: str


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(FEATURES), 0


class Noisy(Dataset):
    """Random augmentation, from one of three generators of random numbers."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        drawn = {"torch": lambda: torch.rand(()).item(), "numpy": np.random.rand, "python": random.random}[self.source]  # noqa: NPY002
        return torch.full((FEATURES,), drawn()), index % CLASSES


class OtherOrder(SequentialSampler):
    """A sampler that is called sequential and is not."""

    def __iter__(self) -> Iterator[int]:
        return iter([0, 0, 1])


class Drops(nn.Module):
    """Dropout that no module announces."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.dropout(x, 0.5))


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(FEATURES, CLASSES)

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


def objective_parts(model: nn.Module | None = None, data: Any = None, **rest: Any) -> dict[str, Any]:
    x, y = torch.randn(N, FEATURES), torch.arange(N) % CLASSES
    given = {"model": model or mlp().float(), "loss": F.cross_entropy, "data": (x, y) if data is None else data}
    return given | rest


def loader(**options: Any) -> dict[str, Any]:
    return objective_parts(data=DataLoader(Rows([(torch.zeros(FEATURES), 0)] * N), **options))


def sorted_classes() -> dict[str, Any]:
    """The first dozen samples are all of one class, so that they alone would not show the missing count."""
    x, y = torch.randn(60, FEATURES), torch.arange(60) // 20
    return objective_parts(data=(x, y), loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 9.0])))


def frozen_model() -> nn.Module:
    return nn.Linear(FEATURES, CLASSES).requires_grad_(False)


def token_parts(**rest: Any) -> dict[str, Any]:
    parts = {"model": TokenModel(), "loss": token_loss, "data": Rows(token_rows())}
    return parts | {"forward": lambda net, batch: net(batch["input_ids"])} | rest


REFUSED = [
    MustFail(
        "dropout in train mode",
        lambda: objective_parts(nn.Sequential(nn.Linear(FEATURES, 9), nn.Dropout(0.5), nn.Linear(9, CLASSES))),
        UnsupportedModel,
        r"dropout in train mode \(model\.1\)|dropout in train mode \(1\)",
        r"model\.eval\(\)",
    ),
    MustFail("functional dropout", lambda: objective_parts(Drops()), UnsupportedModel, "differs between", "eval"),
    MustFail(
        "batchnorm in train mode",
        lambda: objective_parts(nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.BatchNorm1d(CLASSES))),
        UnsupportedModel,
        "1 is a BatchNorm",
        "eval mode",
    ),
    MustFail(
        "batchnorm without running statistics",
        lambda: objective_parts(
            nn.Sequential(nn.BatchNorm1d(FEATURES, track_running_stats=False), mlp().float()).eval()
        ),
        UnsupportedModel,
        "0 is a BatchNorm",
        "allow 'batchnorm'",
    ),
    MustFail("shuffling loader", lambda: loader(shuffle=True), TvgradError, "shuffles", r"its dataset \(Rows\)"),
    MustFail("drop_last", lambda: loader(batch_size=2, drop_last=True), TvgradError, "drops", r"its dataset \(Rows\)"),
    MustFail(
        "sampling with replacement",
        lambda: loader(sampler=RandomSampler(range(N), replacement=True)),
        TvgradError,
        "with replacement",
        "its dataset",
    ),
    MustFail(
        "weighted sampler",
        lambda: loader(sampler=WeightedRandomSampler([1.0] * N, N)),
        TvgradError,
        "with replacement",
        "its dataset",
    ),
    MustFail(
        "sampler over a part", lambda: loader(sampler=SequentialSampler(range(3))), TvgradError, "samples", "dataset"
    ),
    MustFail(
        "odd sequential sampler", lambda: loader(sampler=OtherOrder(range(N))), TvgradError, "OtherOrder", "dataset"
    ),
    MustFail(
        "batch sampler",
        lambda: loader(batch_sampler=BatchSampler(SequentialSampler(range(N)), 2, False)),
        TvgradError,
        "batch sampler",
        "its dataset",
    ),
    MustFail(
        "iterable data", lambda: objective_parts(data=Stream()), TvgradError, "Stream is an iterable", "map-style"
    ),
    MustFail(
        "loader of iterable data",
        lambda: objective_parts(data=DataLoader(Stream())),
        TvgradError,
        "Stream is an iterable",
        "map-style",
    ),
    *[
        MustFail(
            f"augmentation drawn by {source}",
            lambda source=source: objective_parts(data=Noisy(source)),
            UnsupportedModel,
            "random augmentation",
            "turn the augmentation off",
        )
        for source in ("torch", "numpy", "python")
    ],
    MustFail(
        "class weights without count",
        lambda: objective_parts(loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 9.0]))),
        UnsupportedModel,
        "weighted by samples",
        "pass count=",
    ),
    MustFail("class weights on sorted data", sorted_classes, UnsupportedModel, "weighted by samples", "pass count="),
    MustFail("token loss without count", token_parts, UnsupportedModel, "weighted by samples", "unignored tokens"),
    MustFail(
        "count that does not add up",
        lambda: token_parts(count=lambda batch: 1.0),
        UnsupportedModel,
        "gives 1 for a batch and 2 for its parts",
        "must add up",
    ),
    MustFail(
        "negative count",
        lambda: token_parts(count=lambda batch: -1.0),
        TvgradError,
        r"returned -1\.0",
        "weight of a batch",
    ),
    MustFail("count of nothing", lambda: token_parts(count=lambda batch: 0), TvgradError, "count.* is 0", "take out"),
    MustFail(
        "sum instead of mean",
        lambda: objective_parts(loss=nn.CrossEntropyLoss(reduction="sum")),
        UnsupportedModel,
        "not the mean",
        "reduction='mean'",
    ),
    MustFail(
        "two samples, summed",
        lambda: objective_parts(
            data=(torch.randn(2, FEATURES), torch.tensor([0, 1])), loss=nn.CrossEntropyLoss(reduction="sum")
        ),
        UnsupportedModel,
        "not the mean",
        "reduction='mean'",
    ),
    MustFail(
        "loss per sample",
        lambda: objective_parts(loss=nn.CrossEntropyLoss(reduction="none")),
        TvgradError,
        r"shape \(7,\)",
        "reduction='mean'",
    ),
    MustFail("loss of a number", lambda: objective_parts(loss=lambda out, y: 1.0), TvgradError, "float", "one number"),
    MustFail(
        "loss that is not finite",
        lambda: objective_parts(loss=lambda out, y: out.sum() * float("nan")),
        TvgradError,
        "loss at the pretrained weights is nan",
        "check the data",
    ),
    MustFail(
        "no dependence on weights", lambda: objective_parts(Detached()), UnsupportedModel, "not depend", "no_grad"
    ),
    MustFail(
        "empty data", lambda: objective_parts(data=(torch.zeros(0, 5), torch.zeros(0))), TvgradError, "empty", "mean"
    ),
    MustFail("empty dataset", lambda: objective_parts(data=Rows([])), TvgradError, "data is empty", "mean"),
    MustFail("no data", lambda: objective_parts(data=3), TvgradError, "data is a int", r"\(inputs, targets\)"),
    MustFail(
        "different lengths",
        lambda: objective_parts(data=(torch.zeros(7, 5), torch.zeros(6))),
        TvgradError,
        "different lengths",
        "one target for each",
    ),
    MustFail(
        "array of objects",
        lambda: objective_parts(data=(np.array([object()] * 3), np.zeros(3))),
        TvgradError,
        "array of object",
        "numbers",
    ),
    MustFail(
        "three columns",
        lambda: objective_parts(data=(torch.zeros(7, FEATURES), torch.ones(7), torch.zeros(7).long())),
        TvgradError,
        "3 parts",
        "forward",
    ),
    MustFail(
        "no target",
        lambda: objective_parts(
            data=Rows([{"x": torch.zeros(FEATURES)}] * N), forward=lambda net, batch: net(batch["x"])
        ),
        TvgradError,
        r"has no entry called labels.*\(it has x\)",
        "loss=None",
    ),
    MustFail("nothing to train", lambda: objective_parts(frozen_model()), TvgradError, "no trainable", "requires_grad"),
    MustFail("unknown device", lambda: objective_parts(device="abacus"), TvgradError, "'abacus'", "not available"),
    MustFail("no device", lambda: objective_parts(device=None), TvgradError, "'None'", "not available"),
    MustFail("meta device", lambda: objective_parts(device="meta"), TvgradError, "'meta'", "another device"),
    MustFail("absent device", lambda: objective_parts(device="cuda:99"), TvgradError, "cuda:99", "not available"),
    MustFail("chunk size", lambda: objective_parts(chunk_size=0), TvgradError, "chunk size", "at least 1"),
    MustFail("unknown check", lambda: objective_parts(allow=["noise"]), TvgradError, "'noise'", "dropout, batchnorm"),
]
