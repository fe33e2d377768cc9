"""Processes that share an objective: the numbers of one, whatever their number, and one sentence where one fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from datetime import timedelta
from pathlib import Path

import pytest
from tvgrad.cli import launcher_ranks
from tvgrad.cli.launcher_ranks import crew_of_launcher

from tests.problem import shared_recipes
from tvgrad import Run
from tvgrad.errors import TvgradError
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace

pytestmark = pytest.mark.timeout(600)

HEAD = """
import os, sys
import torch
from torch import distributed, nn
import tvgrad
torch.set_num_threads(1)
distributed.init_process_group("gloo")
rank, count, group = distributed.get_rank(), distributed.get_world_size(), distributed.group.WORLD
"""
MODELS = f"""
sys.path.insert(0, {str(Path(shared_recipes.__file__).parent)!r})
from shared_recipes import Gpt, tokens_of
from tvgrad.recipes.suite import VisionTransformer
torch.manual_seed(0)
ids = torch.randint(17, (13, 7))
targets = ids.roll(-1, 1).masked_fill(torch.rand(13, 7) < 0.3, -100)
targets[:2] = -100
CASES = {{
    "mlp": (nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), nn.CrossEntropyLoss(),
            (torch.randn(13, 5), torch.randint(3, (13,))), {{}}),
    "vit": (nn.Sequential(VisionTransformer(), nn.Linear(48, 10)), nn.CrossEntropyLoss(),
            (torch.randn(5, 1, 28, 28), torch.randint(10, (5,))), {{}}),
    "gpt": (Gpt(), nn.CrossEntropyLoss(ignore_index=-100), (ids, targets), {{"count": tokens_of}}),
}}
"""
LEAVE = """
sys.stdout.flush()
os._exit(0)  # gloo sometimes aborts a process that takes its leave the usual way after its peers
"""
COMPARE = """
def gamma(terms):
    return terms * 2**-53 / (1 - terms * 2**-53)

def sizes(x, y, chunk):
    # of what chunks add to the mean, by a loop of the test's own
    total, summed = 0.0, 0.0
    for start in range(0, len(x), chunk):
        batch = x[start:start + chunk], y[start:start + chunk]
        weight = float(tokens_of(batch)) if y.ndim > 1 else float(len(batch[1]))
        if weight:
            value = loss(model(batch[0]), batch[1])
            parts = torch.autograd.grad(value, list(model.parameters()))
            total, summed = total + weight * torch.cat([one.flatten() for one in parts]).abs(), summed + weight
    return total / summed

for name, (model, loss, (x, y), options) in CASES.items():
    model, x = model.double(), x.double() if x.is_floating_point() else x
    for chunk in (2, 100):
        alone = tvgrad.Objective(model, loss, (x, y), chunk_size=chunk, **options)
        shared = tvgrad.Objective(model, loss, (x, y), chunk_size=chunk, group=group, **options)
        vectors = [alone.gradient(), {n: torch.ones_like(p) for n, p in alone.initial.items()}]
        found = [shared.value_and_gradient(), shared.hvps(vectors)]
        value, gradient = alone.value_and_gradient()
        truth = torch.cat([t.flatten() for v in (gradient, *alone.hvps(vectors)) for t in v.values()])
        mine = torch.cat([t.flatten() for v in (found[0][1], *found[1]) for t in v.values()])
        everyones = [torch.empty_like(mine) for _ in range(count)]
        distributed.all_gather(everyones, mine)
        assert all(torch.equal(one, mine) for one in everyones), "every process has the same bits"
        off = max(float((mine - truth).norm() / truth.norm()), abs(found[0][0] - value) / abs(value))
        assert off < 1e-12, (name, chunk, off)
        assert abs(shared.value() - value) < 1e-12 * abs(value)
        bound = 2 * gamma(-(-len(x) // chunk) + 1) * sizes(x, y, chunk)  # two sums of the same terms
        apart = torch.cat([(found[0][1][name] - one).abs().flatten() for name, one in gradient.items()])
        assert bool((apart <= bound).all()), (name, chunk)
        assert torch.equal(shared.subset([1, 2]).gradient()[next(iter(gradient))],
                           alone.subset([1, 2]).gradient()[next(iter(gradient))])

seen = []
def noted(model, batch):
    seen.append(len(batch[0]))
    return model(batch[0])

model, loss, data, _ = CASES["mlp"]
shared = tvgrad.Objective(model, loss, (data[0].double(), data[1]), chunk_size=2, forward=noted, group=group)
shared.gradient()
for work in (shared.gradient, shared.value, lambda: shared.hvp(shared.initial)):
    seen.clear()
    work()
    total = torch.tensor(sum(seen))
    distributed.all_reduce(total)
    assert total == 13, "every sample is gone over by one process, and by one alone"
    assert len(seen) <= 7 // count + 1
print(f"done {rank}", flush=True)
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launched(count: int, *words: str, folder: Path) -> list[subprocess.Popen[str]]:
    """Processes with the environment that torchrun gives them; without torchrun, which would kill the others itself."""
    port = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, *words], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(count)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen[str]], seconds: float = 300) -> list[tuple[int, str, str]]:
    found = []
    for process in processes:
        out, err = process.communicate(timeout=seconds)
        found.append((process.returncode, out, err))
    return found


def script(folder: Path, body: str) -> Path:
    path = folder / "script.py"
    path.write_text(HEAD + textwrap.dedent(body) + LEAVE)
    return path


@pytest.mark.distributed
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_has_the_numbers_of_one(tmp_path: Path, count: int) -> None:
    for rank, (code, out, err) in enumerate(
        ended(launched(count, str(script(tmp_path, MODELS + COMPARE)), folder=tmp_path))
    ):
        assert code == 0, err
        assert out == f"done {rank}\n"


@pytest.mark.distributed
@pytest.mark.slow
def test_one_sentence_where_processes_differ_or_fail(tmp_path: Path) -> None:
    body = """
    def tried(make):
        try:
            make()
        except tvgrad.TvgradError as error:
            print(error, flush=True)
        except RuntimeError as error:
            print("own:", error, flush=True)

    torch.manual_seed(0)
    x, y = torch.randn(6, 3), torch.randint(2, (6,))
    model = nn.Linear(3, 2)
    other = nn.Linear(3, 2) if rank else model
    tried(lambda: tvgrad.Objective(other, nn.CrossEntropyLoss(), (x, y), chunk_size=2, group=group))
    tried(lambda: tvgrad.Objective(model, nn.CrossEntropyLoss(), (x + rank, y), chunk_size=2, group=group))

    smooth = nn.CrossEntropyLoss(label_smoothing=0.01 * rank)
    tried(lambda: tvgrad.Objective(model, smooth, (x, y), chunk_size=2, group=group))
    twice = lambda batch: len(batch[1]) * (1 + rank)
    tried(lambda: tvgrad.Objective(model, nn.CrossEntropyLoss(), (x, y), chunk_size=2, group=group, count=twice))

    class Failing(nn.Linear):
        broken = False
        def forward(self, x):
            if self.broken and rank == 1:
                raise RuntimeError("out of memory, say")
            return super().forward(x)

    failing = Failing(3, 2)
    failing.load_state_dict(model.state_dict())
    objective = tvgrad.Objective(failing, nn.CrossEntropyLoss(), (x, y), chunk_size=2, group=group)
    Failing.broken = True
    tried(objective.gradient)
    Failing.broken = False
    before = objective.gradient()
    assert all(torch.isfinite(one).all() for one in before.values()), "they go on together"
    """
    (code, first, err), (other_code, second, other_err) = ended(
        launched(2, str(script(tmp_path, body)), folder=tmp_path)
    )
    assert (code, other_code) == (0, 0), err + other_err
    models, data, loss, counted, failure = first.splitlines()
    assert loss.startswith("process 1 has another loss of the first samples than process 0 (")
    assert counted.endswith("of weight 6): all processes must build the same model, loss, forward and count")
    assert models.startswith("process 1 has another model or draw of its weights than process 0 (sha256:")
    assert data.startswith("process 1 has another data set than process 0 (sha256:")
    assert failure == "process 1 failed: out of memory, say"
    assert second.splitlines() == [models, data, loss, counted, "own: out of memory, say"]


TRACE = ("-m", "tvgrad", "trace", "digits", "--tasks", "low", "--optimizer", "gd", "--lr", "0.1", "--dtype", "float64")


def traced(folder: Path, count: int, *more: str) -> str:
    found = ended(launched(count, *TRACE, "--out", "shared", "--chunk-size", "100", *more, folder=folder))
    assert [code for code, _, _ in found] == [0] * count, found
    assert all(text == "" for _, *texts in found[1:] for text in texts), "the first process alone speaks"
    return found[0][1]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("resumed", [False, True])
def test_a_traced_recipe_is_shared_and_resumed_on_another_number(tmp_path: Path, resumed: bool) -> None:
    [low] = load_recipes("digits", ["low"])
    options = TraceOptions(optimizer="gd", lr=0.1, dtype="float64", epochs=3 if resumed else 2, chunk_size=100)
    alone = trace(prepare(low, options), tmp_path / "alone")
    assert "points, epoch 2" in traced(tmp_path, 2, "--epochs", "2")
    if resumed:
        assert "points, epoch 3" in traced(tmp_path, 3, "--epochs", "3", "--resume")
        wrong = ended(launched(2, *TRACE, "--out", "shared", folder=tmp_path))
        assert [code for code, _, _ in wrong] == [2, 0]
        assert "already holds a run" in wrong[0][2]
        assert wrong[1][1:] == ("", "")
    shared = Run.open(tmp_path / "shared")
    assert shared.epochs == alone.epochs
    for epoch in alone.epochs:
        for read in (Run.weights, Run.gradient):
            found = read(shared, epoch)
            for name, tensor in read(alone, epoch).items():
                assert float((found[name] - tensor).norm()) <= 1e-12 * float(tensor.norm())


RECIPE = """
import os
import torch, tvgrad
from torch import nn
rank = os.environ.get("RANK")
def recipe():
    torch.manual_seed(0)
    data = torch.randn(20, 3), torch.randint(0, 2, (20,))
    {differs}
    return tvgrad.Recipe(nn.Linear(3, 2), nn.CrossEntropyLoss(), data, name="mine", lr={rate}, epochs={epochs})
"""


def recipe_file(folder: Path, differs: str = "", rate: str = "0.1", epochs: int = 3) -> str:
    (folder / "mine.py").write_text(RECIPE.format(differs=differs, rate=rate, epochs=epochs))
    return str(folder / "mine.py")


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("differs", "rate", "said"),
    [
        (
            "", "0.1 if rank == '0' else 0.2",
            "process 1 has another recipe than process 0 (mine: gd, lr 0.2, 3 epochs, batch size all, 20 samples and "
            "mine: gd, lr 0.1, 3 epochs, batch size all, 20 samples): start all processes with the same files and the "
            "same installation",
        ),
        pytest.param("data = (data[0] + float(rank), data[1])", "0.1", "process 1 has another data set than process 0",
                     marks=pytest.mark.slow),
        pytest.param("assert rank == '0', 'no such file here'", "0.1", "process 1 failed: ", marks=pytest.mark.slow),
        pytest.param("assert rank == '1', 'no such file here'", "0.1", "no such file here", marks=pytest.mark.slow),
        pytest.param("import importlib.metadata as m; m.version = lambda name: '9.' + rank", "0.1",
                     "process 1 has another version of tvgrad than process 0 (9.1 and 9.0)", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_processes_that_disagree_end_with_one_sentence(tmp_path: Path, differs: str, rate: str, said: str) -> None:
    words = ("-m", "tvgrad", "trace", recipe_file(tmp_path, differs, rate), "--out", "run")
    found = ended(launched(2, *words, folder=tmp_path), seconds=120)
    assert [code for code, _, _ in found] == [2, 2], found
    assert said in found[0][2]
    assert len(found[0][2].strip().splitlines()) == 1
    assert found[1][1:] == ("", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.distributed
def test_a_full_disk_ends_all_and_leaves_finished_epochs(tmp_path: Path) -> None:
    small = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))"
    begun = ended(launched(2, "-m", "tvgrad", "trace", recipe_file(tmp_path), "--out", "run", folder=tmp_path))
    assert [code for code, _, _ in begun] == [0, 0], begun
    more = ("--epochs", "60", "--resume")
    full = f"import os, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n    if rank == '0': {small}"
    words = ("-m", "tvgrad", "trace", recipe_file(tmp_path, full), "--out", "run", *more)
    found = ended(launched(2, *words, folder=tmp_path), seconds=60)
    assert found[0][0] != 0
    assert "finished epochs are whole" in found[0][2]
    assert "Traceback" not in found[0][2] + found[1][2]
    run = Run.open(tmp_path / "run")
    assert run.epochs[:4] == [0, 1, 2, 3]
    assert not run.problems()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("Unknown c10d backend type GLOO"), "do not find each other: Unknown c10d backend type GLOO"),
        (RuntimeError("Distributed package doesn't have gloo built in"), "doesn't have gloo built in"),
    ],
)
def test_an_absent_backend_is_said(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.distributed.init_process_group", fails)
    with pytest.raises(TvgradError, match=said), crew_of_launcher():
        pass


@pytest.mark.distributed
def test_a_process_that_never_starts_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launcher_ranks.TOGETHER.total_seconds() == 600
    monkeypatch.setattr(launcher_ranks, "TOGETHER", timedelta(seconds=0.9))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    said = r"not all 2 processes of torchrun came within 0\.015 minutes \(.*1/2 clients joined\): start all of them"
    with pytest.raises(TvgradError, match=said), launcher_ranks.crew_of_launcher():
        pass


def test_a_torch_without_processes_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.distributed.is_available", lambda: False)
    with pytest.raises(TvgradError, match=r"was built without torch\.distributed"), crew_of_launcher():
        pass


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_process_is_killed_the_others_end(tmp_path: Path, killed: int) -> None:
    processes = launched(2, *TRACE, "--out", "run", "--epochs", "100000", folder=tmp_path)
    manifest = tmp_path / "run" / "run.json"
    while not manifest.is_file():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[killed].send_signal(signal.SIGKILL)
    (_, (code, _, err)) = (found := ended(processes, seconds=60))[killed], found[1 - killed]
    assert code == 2
    assert "Traceback" not in err
    if killed == 1:
        assert "the connection to another process is lost" in err
        assert "--resume" in err
