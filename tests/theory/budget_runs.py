"""Small recorded runs for the tests of error budgets, and the training behind them written out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tvgrad
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.vectors.parameters import Weights

SAMPLES = 32


def recipe(samples: int = SAMPLES, activation: type[nn.Module] = nn.Tanh, seed: int = 0) -> tvgrad.Recipe:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 3))
    inputs, targets = torch.randn(samples, 6), torch.randint(0, 3, (samples,))
    return tvgrad.Recipe(model, nn.CrossEntropyLoss(), (inputs, targets), name="small", lr=1e-3, epochs=2)


def record(made: tvgrad.Recipe, folder: Path, **options: Any) -> tvgrad.Run:
    given = {"chunk_size": 12, "record": ("gradients", "batches") if "batch_size" in options else ("gradients",)}
    return trace(prepare(made, TraceOptions(**{**given, **options})), folder / "run")


@dataclass
class Seen:
    """What a step of a loop saw: weights before it, gradients as computed and as consumed, its rate and samples."""

    theta: Weights
    unclipped: Weights
    consumed: Weights
    rate: float
    batch: torch.Tensor


def clipped_run(
    made: tvgrad.Recipe,
    folder: Path,
    most: float,
    batch_size: int,
    optimizer_of: Callable[[Any], torch.optim.Optimizer],
    decay_of_rate: float = 1.0,
) -> tuple[tvgrad.Run, list[Seen]]:
    """A loop of the user's own, two epochs, that clips each gradient to a norm and notes the factor."""
    model, loss = copy.deepcopy(made.model), nn.CrossEntropyLoss()
    optimizer = optimizer_of(model.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay_of_rate)
    objective = tvgrad.Objective(model, loss, made.train, chunk_size=12)
    seen = []

    def copied(gradients: bool) -> Weights:
        named = model.named_parameters()
        return {name: (p.grad if gradients and p.grad is not None else p.detach()).clone() for name, p in named}

    with tvgrad.Recorder(folder / "clipped", model, optimizer, objective, record=("gradients", "batches")) as recorder:
        for epoch in range(2):
            order = torch.randperm(len(made.train), generator=torch.Generator().manual_seed(4 + epoch))
            for indices in order.split(batch_size):
                recorder.note_batch(indices)
                optimizer.zero_grad()
                inputs, targets = made.train.subset(indices).batch(0, len(indices))
                loss(model(inputs), targets).backward()
                theta, unclipped = copied(gradients=False), copied(gradients=True)
                total = torch.nn.utils.clip_grad_norm_(model.parameters(), most)
                factor = torch.clamp(most / (total + 1e-6), max=1.0)
                seen.append(Seen(theta, unclipped, copied(gradients=True), optimizer.param_groups[0]["lr"], indices))
                optimizer.step()
                scheduler.step()
                recorder.note_step(batch_size=len(indices), clip_factor=float(factor))
            recorder.end_epoch()
    return tvgrad.Run.open(folder / "clipped"), seen
