"""Numbers that are hard on a program: every command gives a right result, or one sentence with exit code 1 or 2."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integrations.script.script_runs import TRACE, run, warm
from tvgrad.store.run import Run

Tvgrad = Callable[..., Any]

RECIPES = '''
import torch
from torch import nn
import tvgrad

X, Y = torch.linspace(-1, 1, 40).reshape(8, 5), torch.arange(8) % 3


class Net(nn.Module):
    """A linear model with parameters of other shapes and formats beside it."""

    def __init__(self, *, dtype=torch.float32, **beside):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(5, 3, dtype=dtype)
        for name, tensor in beside.items():
            trained = tensor.is_floating_point() or tensor.is_complex()
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=trained))

    def forward(self, x):
        output = self.linear(x.to(self.linear.weight.dtype))
        for name, tensor in self._parameters.items():
            if tensor.numel() and tensor.is_floating_point():
                output = output + tensor.mean().to(output.dtype)
        return output


class Affine(nn.Module):
    """One parameter."""

    def __init__(self, value=1.5, of=lambda w, x: w * x):
        super().__init__()
        self.w, self.of = nn.Parameter(torch.tensor([value])), of

    def forward(self, x):
        return self.of(self.w, x)


class Mixed(nn.Module):
    """Layers of two formats, as a model with a head in float32 has them."""

    def __init__(self, narrow):
        super().__init__()
        torch.manual_seed(0)
        self.low, self.high = nn.Linear(5, 4, dtype=narrow), nn.Linear(4, 3)

    def forward(self, x):
        return self.high(torch.tanh(self.low(x.to(self.low.weight.dtype)).float()))


def tasks(model, loss=nn.CrossEntropyLoss(), data=(X, Y), other=None, lr=0.1):
    other = data if other is None else other
    return [tvgrad.Recipe(model, loss, each, name=name, lr=lr) for name, each in (("one", data), ("two", other))]


def of(loss, model, scale=1.0, lr=0.1, x=X[:, :1], y=X[:, 1:2]):
    return tasks(model, loss, (x, scale * y), (x, -scale * y), lr)


def usual(model, lr=0.1):
    return tasks(model, data=(X, Y), other=(X, (Y + 1) % 3), lr=lr)


def plain(): return usual(Net())
def one_sample(): return tasks(Net(), data=(X[:1], Y[:1]), other=(X[1:2], Y[1:2]))
def one_parameter(): return of(nn.MSELoss(), Affine())
def scalar(): return usual(Net(beside=torch.tensor(0.5)))
def zero_size(): return usual(Net(beside=torch.zeros(0, 3)))
def float16(): return usual(Net(dtype=torch.float16))
def bfloat16(): return usual(Net(dtype=torch.bfloat16))
def mixed_half(): return usual(Mixed(torch.bfloat16))
def mixed_double(): return usual(Mixed(torch.float64))
def integer(): return usual(Net(beside=torch.arange(3)))
def zero_gradients(): return of(nn.MSELoss(), Affine(0.0), 0.0)
def denormal(): return of(nn.MSELoss(), Affine(1e-41, lambda w, x: w * 1e-3 * x), 1e-35)
def huge(): return of(nn.MSELoss(), Affine(1e15))
def loss_overflows(): return of(nn.MSELoss(), Affine(1.0), lr=1e18)
def loss_is_no_number(): return of(nn.MSELoss(), Affine(0.5, lambda w, x: torch.log(w) * x), 5.0, lr=9.0)
def gradient_is_no_number(): return of(nn.MSELoss(), Affine(0.0, lambda w, x: torch.sqrt(w) * x))
def half_overflows(): return usual(Net(dtype=torch.float16), lr=1e6)
def long_names(): return usual(Net(**{"n" * 10_000: torch.zeros(2), "m" * 10_000: torch.ones(3)}))
def complex_parameter(): return usual(Net(beside=torch.zeros(3, dtype=torch.complex64)))
def infinite(): return usual(Net(beside=torch.tensor([1.0, float("inf")])))
def no_number(): return usual(Net(beside=torch.tensor(float("nan"))))
def many(): return usual(Net(**{f"p{i}": torch.full((2,), i / 2000) for i in range(2000)}))
'''

FINE = ["one_sample", "one_parameter", "scalar", "zero_size", "float16", "bfloat16", "mixed_half", "mixed_double"]
FINE += ["integer", "zero_gradients", "denormal", "huge", "long_names", "many"]
REFUSED = {
    "complex_parameter": "beside is a complex parameter",
    "half_overflows": "--lr 1e+06 is beyond the largest float16 number: lower it",
    "infinite": "beside of the pretrained weights is not finite (inf): check how they are made or loaded",
    "no_number": "beside of the pretrained weights is not finite (nan): check how they are made or loaded",
    "gradient_is_no_number": "the gradient of a batch is not finite at the pretrained weights",
}
STOPPED = {
    "loss_overflows": "the loss of one is inf after epoch 2",
    "loss_is_no_number": "the loss of two is nan after",
}
OTHERWISE = {
    # A model whose code casts to float32 has no float64 gradient.
    "explain": dict.fromkeys(FINE[6:8], r"the model of one does not run in float64 \(mat1 and mat2 .*--dtype"),
    "bound": dict.fromkeys(FINE, "the model|layer"),
    "export": {},
}
"""Command -> kinds of model for which it says in a sentence what it cannot do."""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "hard.py"
    path.write_text(RECIPES)
    return path


def acceptable(outcome: Any) -> str:
    """The sentence of an error, empty where there is none; anything else than a result or one fails."""
    assert outcome.code in (0, 1, 2), outcome
    assert "Traceback" not in outcome.err
    assert "Warning" not in outcome.err
    errors = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == (outcome.code != 0), outcome
    return errors[0] if errors else ""


def raw(root: Path, epoch: int) -> dict[str, torch.Tensor]:
    return load_file(root / "weights" / f"epoch-{epoch:04d}.safetensors")


def commands(target: str, out: Path, beside: Path) -> dict[str, list[Any]]:
    recipe, pair = ["--recipe", target], [out / "one", out / "two"]
    return {
        "verify": ["verify", out],
        "replay": ["verify", out, "--replay", *recipe],
        "report": ["report", out],
        "explain": ["explain", out, *recipe, "--no-bounds"],
        "predict": ["predict", target],
        "bound": ["bound", target, "--epochs", 2],
        "plan": ["plan", target],
        "plan of runs": ["plan", *pair, *recipe],
        "relate": ["relate", *pair],
        "relate recipes": ["relate", target],
        "merge": ["merge", *pair, "--method", "mean", "--out", beside / "merged.safetensors"],
        "export": ["export", out / "one", "--out", beside / "exported"],
    }


def check_numbers(out: Path, beside: Path) -> None:
    """The truth from raw files: the first step, the merge and the export."""
    roots = [out / "one", out / "two"]
    for root in roots:
        before, after = raw(root, 0), raw(root, 1)
        gradient = load_file(root / "gradients" / "epoch-0000.safetensors")
        for name, step in gradient.items():
            eps = torch.finfo(step.dtype)
            expected = before[name].double() - Run.open(root).info["rule"]["lr"] * step.double()
            # a product and a difference, each rounded once; what is below the smallest normal number, by a multiple
            allowed = eps.eps * (before[name].double().abs() + 2 * expected.abs()) + 2 * eps.tiny * eps.eps
            assert ((after[name].double() - expected).abs() <= allowed).all(), name
    merged = load_file(beside / "merged.safetensors")
    last = [Run.open(root).epochs[-1] for root in roots]
    first = raw(roots[0], 0)
    for name, tensor in merged.items():
        if name in first:
            ends = [raw(root, epoch)[name].double() for root, epoch in zip(roots, last, strict=True)]
            expected = first[name].double() + sum(end - first[name].double() for end in ends) / 2
            eps = torch.finfo(tensor.dtype)
            assert ((tensor.double() - expected).abs() <= eps.eps * expected.abs() + eps.tiny * eps.eps).all(), name
    exported = load_file(beside / "exported" / "model.safetensors")
    for name, tensor in raw(roots[0], last[0]).items():
        assert torch.equal(exported[name], tensor), name


def test_layers_of_two_formats_are_replayed_in_theirs(tvgrad: Tvgrad, target: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    assert tvgrad("trace", f"{target}:mixed_half", "--out", out, "--epochs", 1, "--quiet").code == 0
    assert {one.dtype for one in Run.open(out / "one").parameters.values()} == {"float32", "bfloat16"}
    done = tvgrad("verify", out, "--replay", "--recipe", f"{target}:mixed_half")
    assert acceptable(done) == ""
    assert done.out.count("replay: all 2 gradients have the same bits") == 2
    assert re.search(
        OTHERWISE["explain"]["mixed_half"], acceptable(tvgrad("explain", out, "--recipe", f"{target}:mixed_half"))
    )


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_training_can_begin_with(tvgrad: Tvgrad, target: Path, tmp_path: Path, kind: str) -> None:
    for words in (["trace", "--out", tmp_path / "out"], ["predict"]):
        done = tvgrad(words[0], f"{target}:{kind}", *words[1:])
        assert done.code == 2
        assert REFUSED[kind] in acceptable(done)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", FINE)
def test_every_command(tvgrad: Tvgrad, target: Path, tmp_path: Path, kind: str) -> None:
    out, of = tmp_path / "runs", f"{target}:{kind}"
    done = tvgrad("trace", of, "--out", out, "--epochs", 2, "--record", "gradients,epoch-gradients", "--quiet")
    assert acceptable(done) == ""
    for command, words in commands(of, out, tmp_path).items():
        said = acceptable(tvgrad(*words))
        expected = OTHERWISE.get(command, {}).get(kind)
        assert said == "" or (expected and re.search(expected, said)), (command, said)
    check_numbers(out, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", STOPPED)
def test_a_training_that_leaves_the_numbers(tvgrad: Tvgrad, target: Path, tmp_path: Path, kind: str) -> None:
    """What was recorded before is whole, and every command reads it or says in a sentence what it lacks."""
    out, of = tmp_path / "runs", f"{target}:{kind}"
    done = tvgrad("trace", of, "--out", out, "--epochs", 3, "--quiet")
    assert done.code == 2
    assert STOPPED[kind] in acceptable(done)
    assert "all before is recorded" in done.err
    for words in commands(of, out, tmp_path).values():
        acceptable(tvgrad(*words))
    assert tvgrad("verify", out).code == 0


SCRIPT = """
import sys
import torch
sys.path.insert(0, {folder!r})
import hard
one = hard.{kind}()[0]
optimizer = torch.optim.SGD(
    [parameter for parameter in one.model.parameters() if parameter.requires_grad], lr=one.lr
)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*one.train.batch(0, len(one.train), "cpu")), 4)
for epoch in range(2):
    for inputs, targets in loader:
        optimizer.zero_grad()
        one.loss(one.model(inputs), targets).backward()
        optimizer.step()
torch.save(one.model.state_dict(), {saved!r})
"""


def test_a_script_that_begins_with_no_numbers(tmp_path: Path) -> None:
    """It trains as without a recorder; what is said of it is which of its weights are none."""
    out, script = tmp_path / "run", tmp_path / "script.py"
    script.write_text(
        "import torch\nmodel = torch.nn.Linear(3, 2)\nmodel.bias.data[1] = float('inf')\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "for inputs in torch.utils.data.DataLoader(torch.ones(6, 3), 3):\n"
        "    optimizer.zero_grad()\n    model(inputs).square().mean().backward()\n    optimizer.step()\n"
    )
    done = run([*TRACE, "--out", str(out), "--", *warm(str(script))], starts=4)
    assert done.returncode == 0, done.stderr
    assert "tvgrad: bias of the weights that the training begins with is not finite" in done.stderr
    assert Run.open(out).epochs == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*FINE, *STOPPED])
def test_an_unchanged_script(tvgrad: Tvgrad, target: Path, tmp_path: Path, kind: str) -> None:
    out, saved, script = tmp_path / "run", tmp_path / "end.pt", tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(tmp_path), kind=kind, saved=str(saved)))
    done = run([*TRACE, "--out", str(out), "--", *warm(str(script))], starts=4)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    trained = torch.load(saved, weights_only=True)
    recorded = Run.open(out)
    assert recorded.epochs == [0, 1, 2]
    for name, tensor in recorded.weights(2).items():
        assert torch.equal(tensor.nan_to_num(7), trained[name].nan_to_num(7)), name
    for words in (["verify", out], ["report", out], ["relate", out, out], ["export", out, "--out", tmp_path / "e"]):
        acceptable(tvgrad(*words))
    acceptable(tvgrad("merge", out, out, "--method", "mean", "--out", tmp_path / "m.safetensors"))


GROWTH = """
import os, sys, threading
import torch
import tvgrad
from torch import nn
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace

os.fsync = lambda _: None


def held():
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), threading.active_count()


def note(epoch):
    if epoch % 500 == 0:
        print(epoch, *held(), flush=True)

torch.manual_seed(0)
x, y = torch.randn(6, 3), torch.arange(6) % 2
model = nn.Linear(3, 2)
if sys.argv[1] == "recipe":
    recipe = tvgrad.Recipe(model, nn.CrossEntropyLoss(), (x, y), name="long", lr=1e-3)
    options = TraceOptions(epochs=2000, chunk_size=6, keep="last:1")
    trace(prepare(recipe, options), __import__("pathlib").Path(sys.argv[2]), lambda progress: note(progress.epoch))
else:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=3)
    for epoch in range(2000):
        for a, b in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(a), b).backward()
            optimizer.step()
        note(epoch + 1)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="it is read from /proc")
@pytest.mark.parametrize("way", ["recipe", "script"])
def test_nothing_grows_over_2000_epochs(tvgrad: Tvgrad, tmp_path: Path, way: str) -> None:
    """But for an epoch's entry, of some 2 kB: memory, descriptors and threads are those of epoch 500."""
    script, out = tmp_path / "grow.py", tmp_path / "run"
    script.write_text(GROWTH)
    command = [sys.executable, str(script), way, str(out)]
    whole = command if way == "recipe" else [*TRACE, "--out", str(out), "--keep", "last:1", "--", *command]
    done = run(whole, starts=8)
    assert done.returncode == 0, done.stderr
    rows = [list(map(int, line.split())) for line in done.stdout.splitlines() if re.fullmatch(r"\d+( \d+){3}", line)]
    print(way, rows)
    assert [row[0] for row in rows] == [500, 1000, 1500, 2000]
    (_, begun, files, threads), (_, ended, *_) = rows[0], rows[-1]
    assert ended - begun < 1500 * 5_000 + 8e6  # an allocator's own steps
    assert all(row[2] <= files + 1 and row[3] <= threads + 1 for row in rows)
    for words in (["verify", out], ["report", out], ["export", out, "--out", tmp_path / "e"]):
        assert acceptable(tvgrad(*words)) == ""
    assert len(Run.open(out).points) == 2001
