"""The command line in this process, and a recipe file of a user's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tvgrad.cli.main import main


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVGRAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing matters when the power fails, which no test can try; waiting for it is most of the time they take."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def tvgrad(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """A function that runs `tvgrad` with the arguments it is given."""

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = 1000 if not isinstance(error.code, int) else error.code
        return Outcome(code, *capfd.readouterr())

    return run


@pytest.fixture
def refused(tvgrad: Callable[..., Outcome]) -> Callable[..., str]:
    """A function that runs `tvgrad`, expects a refusal in one sentence, and returns it."""

    def run(*arguments: object) -> str:
        outcome = tvgrad(*arguments)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        assert "Traceback" not in outcome.err
        lines = outcome.err.splitlines()
        sentence = lines[-1]
        assert sentence.startswith("Error: ")
        # click shows the usage above its own sentences
        assert len(lines) == 1 or lines[0].startswith("Usage: tvgrad"), outcome.err
        return sentence.removeprefix("Error: ")

    return run


RECIPES = '''
import math

import torch
from torch import nn
from torch.utils.data import Dataset

import tvgrad

torch.manual_seed(0)
INPUTS, TARGETS = torch.randn(20, 5), torch.randint(0, 3, (20,))


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def make(model=model, loss=nn.CrossEntropyLoss(), data=(INPUTS, TARGETS), **options):
    made = model if isinstance(model, (nn.Module, str)) else model()
    return tvgrad.Recipe(made, loss, data, **{"name": "mine", "lr": 0.1, **options})


def recipe():
    return make(epochs=3)


def tasks():
    return [make(name=name, data=(INPUTS * scale, TARGETS)) for name, scale in (("one", 1), ("two", 2))]


def tasks_again():
    return tasks()


class Pictures(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return {"pixels": INPUTS[index], "mask": torch.ones(5), "labels": int(TARGETS[index])}


class Network(nn.Module):
    """A model of one's own: keyword arguments, a frozen part, statistics, a parameter of dimension 0."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])
        self.backbone[0].requires_grad_(False)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 3)
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, pixels, mask):
        for layer in self.backbone:
            pixels = torch.relu(layer(pixels * mask))
        return self.head(self.norm(pixels)) / self.temperature


def mapping():
    torch.manual_seed(1)
    return make(model=Network(), data=Pictures(), name="pictures")


def interrupted():
    import signal

    calls = []

    def metric(output, target):
        calls.append(1)
        if len(calls) == 4:  # the pretrained weights, and after epochs 1, 2 and 3
            signal.raise_signal(signal.SIGINT)
        return 0.5

    return make(test=(INPUTS[:4], TARGETS[:4]), metric=metric, epochs=9)


def wild():
    return make(loss=lambda output, target: output.pow(4).mean(), lr=1e3, epochs=50)


def other_model():
    return make(model=lambda: nn.Linear(5, 3))


def other_start():
    return make(model=lambda: model(1))


def other_data():
    return make(data=(INPUTS + 1, TARGETS))


# what is wrong

def raises():
    return {}["the key"]


def raises_inside_torch():
    return nn.Linear(5, 3)(torch.zeros(2, 4))


def exits():
    import sys

    sys.exit("bye")


def needs_arguments(size):
    return make()


def something_else():
    return model()


def words():
    return "mine"


def empty():
    return []


def mixed():
    return [make(), 3]


def same_names():
    return [make(), make()]


def different_starts():
    return [make(name="one"), make(name="two", model=lambda: model(1))]


def different_shapes():
    return [make(name="one"), make(name="two", model=nn.Linear(5, 3))]


def frozen():
    return make(model=model().requires_grad_(False))


def no_model():
    return tvgrad.Recipe("resnet", nn.CrossEntropyLoss(), (INPUTS, TARGETS))


def vector_loss():
    return make(loss=nn.CrossEntropyLoss(reduction="none"))


def sum_loss():
    return make(loss=nn.CrossEntropyLoss(reduction="sum"))


def nan_loss():
    return make(loss=lambda output, target: output.mean() * math.nan)


def no_data():
    return make(data=(INPUTS[:0], TARGETS[:0]))


def unequal_data():
    return make(data=(INPUTS, TARGETS[:7]))


def dropout():
    return make(model=lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)))


def batchnorm():
    return make(model=lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)))


def zero_lr():
    return make(lr=0)


def nan_lr():
    return make(lr=math.nan)


def no_epochs():
    return make(epochs=0)


def half_epochs():
    return make(epochs=1.5)


def no_batch():
    return make(batch_size=0)


def bad_optimizer():
    return make(optimizer="sgdm")


def bad_name():
    return make(name="../elsewhere")


def bad_allow():
    return make(allow=("everything",))


not_callable = 3
'''


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """A recipe file with tasks that work and tasks that are wrong in one way each."""
    path = tmp_path / "mine.py"
    path.write_text(RECIPES)
    return path
