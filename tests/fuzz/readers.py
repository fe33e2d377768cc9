"""What is fuzzed: each reader with the bytes that it is given, and a few good inputs to begin with.

Acceptable is a result, or one sentence with exit code 1 or 2; anything else is raised as `Finding`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tvgrad.cli.main import main

import tvgrad
from tvgrad.checkpoints.adapter import open_adapter
from tvgrad.checkpoints.opening import open_checkpoint
from tvgrad.files.tensors import TensorFile
from tvgrad.record.options import TraceOptions
from tvgrad.record.recorder import Recorder
from tvgrad.record.training_loop import prepare, trace
from tvgrad.report.documents import FORMATS, write_tables
from tvgrad.report.tables import run_tables
from tvgrad.store import ledger
from tvgrad.store.journal import Journal
from tvgrad.store.layout import files_in
from tvgrad.store.run import Run

SECONDS = 10
"""Processor time that a reader may take beyond that of a good run's whole report, which it may have to make; one that
waits without taking any may take `WAITS` times that by the clock, because a machine has other work."""
WAITS = 60
RUN_COMMANDS = (  # what takes a tenth of a second: a whole report, with its figures, has turns of its own
    ["verify", "RUN"],
    ["verify", "RUN", "--json"],
    ["report", "RUN"],
    ["merge", "RUN", "--epoch", "1", "--method", "mean", "--out", "OUT.safetensors"],
    ["export", "RUN", "--epoch", "1", "--out", "OUT"],
)
WHOLE_REPORT = [
    "report",
    "RUN",
    "--out",
    "OUT",
    "--format",
    "csv",
    "--format",
    "md",
    "--format",
    "latex",
    "--format",
    "json",
]


class Finding(Exception):
    """A reader did something else than give a result or one sentence."""


class _Hang(BaseException):
    pass


@contextlib.contextmanager
def limited(seconds: int) -> Generator[None]:
    """Interrupt what takes longer than it may."""

    def ring(*_: object) -> None:
        raise _Hang

    before = [(number, signal.signal(number, ring)) for number in (signal.SIGALRM, signal.SIGPROF)]
    signal.alarm(WAITS * seconds)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    except _Hang:
        raise Finding(f"it took more than {seconds} s") from None
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in before:
            signal.signal(number, handler)


class Readers:
    """The readers, with a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.limit = SECONDS
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2).eval())
        data = torch.randn(6, 3), torch.arange(6) % 2
        recipe = tvgrad.Recipe(model, nn.CrossEntropyLoss(), data, name="small", lr=0.1)
        record = ("gradients", "epoch-gradients", "batches")
        options = TraceOptions(
            optimizer="momentum", epochs=2, batch_size=3, chunk_size=3, record=record, allow=("batchnorm",)
        )
        self.good, self.sketched, self.spread = (folder / name for name in ("good", "sketched", "spread"))
        trace(prepare(recipe, options), self.good)
        trace(prepare(recipe, replace(options, keep_gradients="sketch:256")), self.sketched)
        spread_weights(self.good, self.spread)
        self.model = recipe.model
        self.run = folder / "run"
        self.targets: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
            name: (self._in_run(good, relative), [(good / relative).read_bytes()])
            for name, good, relative in (
                ("run.json", self.good, "run.json"),
                ("weights", self.good, "weights/epoch-0001.safetensors"),
                ("gradients", self.good, "gradients/epoch-0000.safetensors"),
                ("batches", self.good, "batches/epoch-0001.safetensors"),
                ("buffers", self.good, "static.safetensors"),
                ("steps", self.good, "steps/epoch-0001.csv"),
                ("sketches", self.sketched, "gradient_sketches/epoch-0000.safetensors"),
                ("parts", self.spread, "weights/epoch-0001-00001-of-00002.safetensors"),
                ("index of parts", self.spread, "weights/epoch-0001.safetensors.index.json"),
            )
        }
        state = next((self.good / "state").glob("*.json")).relative_to(self.good).as_posix()
        for name, relative in (("state", state), ("state tensors", state.replace(".json", ".safetensors"))):
            self.targets[name] = self._resumed(relative), [(self.good / relative).read_bytes()]
        self.targets["report"] = self._report, [b"run.json\n" + (self.good / "run.json").read_bytes()]
        self.targets["results"] = (
            self._results,
            [
                json.dumps([{"epoch": 1, "error_norm": 0.5}]).encode(),
                json.dumps([{"epoch": 1, "term": "rest", "norm": 0.5, "cosine": "nan", "share": 1}]).encode(),
                json.dumps({"rows": [], "headline": "a"}).encode(),
            ],
        )
        self.targets["journal"] = self._journal, [self._good_journal()]
        self.targets["tensors"] = self._tensors, [(self.good / "weights/epoch-0000.safetensors").read_bytes()]
        index = {"metadata": {"total_size": 1}, "weight_map": {"0.weight": "a.safetensors", "0.bias": "a.safetensors"}}
        self.targets["index"] = self._index, [json.dumps(index).encode()]
        packed = io.BytesIO()
        torch.save(model.state_dict(), packed)
        old = io.BytesIO()
        torch.save({"state_dict": model.state_dict()}, old, _use_new_zipfile_serialization=False)
        self.targets["torch.save"] = self._packed, [packed.getvalue(), old.getvalue()]
        adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["0"], "bias": "none"}
        self.targets["adapter"] = self._adapter, [json.dumps(adapter).encode()]
        words = ["verify RUN", "report RUN --groups 0|1", "merge RUN --epoch 1 --method ties --alpha 0.5 --out OUT"]
        words += ["trace RECIPE --epochs 1 --lr 1e-3 --out OUT", "export RUN --epoch 2 --out OUT", "relate RUN RUN"]
        words += [
            "predict RECIPE --epochs 1",
            "bound RECIPE --epochs 1",
            "plan RECIPE --json",
            "explain RUN",
            "recipes",
        ]
        words += [
            "report --pretrained RUN RUN --format html --out OUT",
            "trace RECIPE --record-at steps:1,2 --keep all",
        ]
        self.targets["words"] = self._words, [line.encode() for line in words]
        (folder / "recipe.py").write_text(
            "import torch, tvgrad\nfrom torch import nn\ndef recipe():\n    torch.manual_seed(0)\n"
            "    return tvgrad.Recipe(nn.Linear(3, 2), nn.CrossEntropyLoss(), "
            "(torch.randn(6, 3), torch.arange(6) % 2), name='r', lr=.1, epochs=1)\n"
        )

    def warm(self, name: str) -> None:
        """Give a reader its good inputs, without its limit of time: whatever is imported first is."""
        before = time.process_time()
        for content in self.targets[name][1]:
            self.read(name, content, 60 * SECONDS)
        if name == "report":  # the command line may ask for a whole report, too
            self.limit = SECONDS + round(time.process_time() - before)

    def read(self, name: str, content: bytes, seconds: int | None = None) -> None:
        """Give a reader bytes.

        Raises:
            Finding: it did not end as it may.
        """
        try:
            with limited(seconds or self.limit):
                self.targets[name][0](content)
        except tvgrad.TvgradError as error:
            if not str(error) or len(str(error).splitlines()) != 1:
                raise Finding(f"the error is no sentence on one line: {error!r}") from None
        except Finding:
            raise
        except Exception as error:
            raise Finding(f"{type(error).__name__}: {error}") from error

    def _copy(self, good: Path | None = None) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(good or self.good, self.run)

    def _in_run(self, good: Path, relative: str) -> Callable[[bytes], object]:
        def read(content: bytes) -> None:
            self._change(relative, content, good)
            self._commands(content)
            run = Run.open(self.run)
            for number in run.epochs:
                run.complete(number)
                run.steps(number)
            for number in run.having("batches"):
                run.batches(number)

        return read

    def _change(self, relative: str, content: bytes, good: Path | None = None) -> None:
        """A new run, one file of which has this content."""
        self._copy(good)
        (self.run / relative).write_bytes(content)
        if relative != "run.json":
            self._relist(relative)

    def _commands(self, content: bytes) -> None:
        """Two commands that read a run, and the documents of a report without its figures; which, the content says."""
        pick = hashlib.sha256(content).digest()[0]
        self._call(RUN_COMMANDS[pick % 2])
        if pick % 4 == 3:
            write_tables(run_tables([Run.open(self.run)]).tables, self.folder / "OUT", FORMATS)
        else:
            self._call(RUN_COMMANDS[2 + pick % 4])

    def _report(self, content: bytes) -> None:
        """A whole report of a run; the first line says which of its files is changed."""
        first, _, rest = content.partition(b"\n")
        relative = first.decode("utf-8", "replace")
        if relative in files_in(self.good):
            self._change(relative, rest)
            self._call(WHOLE_REPORT)

    def _relist(self, relative: str) -> None:
        """Make run.json tell the checksum of the changed file, as a stranger would."""
        content = json.loads((self.run / "run.json").read_text())
        new = (self.run / relative).read_bytes()
        entries = [entry for point in content["points"] for entry in point["files"].values()]
        entries += [entry for entry in (content["static"], content["state"]) if entry]
        for entry in entries:
            entry["parts"] = [
                [path, hashlib.sha256(new).hexdigest(), len(new)] if path == relative else [path, digest, size]
                for path, digest, size in entry["parts"]
            ]
        (self.run / "run.json").write_text(json.dumps(content))

    def _call(self, words: list[str]) -> None:
        for left in self.folder.glob("OUT*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        places = {"RUN": str(self.run), "OUT": str(self.folder / "OUT"), "RECIPE": str(self.folder / "recipe.py")}
        places |= {"OUT.safetensors": str(self.folder / "OUT.safetensors")}
        out, err = io.StringIO(), io.StringIO()
        code: Any = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), tempfile.TemporaryDirectory() as here:
            before = os.getcwd()
            os.chdir(here)
            try:
                main([places.get(word, word) for word in words])
            except SystemExit as error:
                code = error.code or 0
            finally:
                told = _without_paths(out.getvalue())
                os.chdir(before)
        text = err.getvalue()
        if code not in (0, 1, 2):
            raise Finding(f"{words}: exit code {code} and {text!r}")
        if "Traceback" in text + out.getvalue():
            raise Finding(f"{words}: a traceback: {text!r}")
        if any(ord(one) < 32 and one not in "\n\t\r" for one in text + told):
            raise Finding(f"{words}: escapes reach the terminal: {text + told!r}")
        if code == 2 and "Error: " not in text:
            raise Finding(f"{words}: exit code 2 and no sentence: {text!r}")

    def _resumed(self, relative: str) -> Callable[[bytes], object]:
        def read(content: bytes) -> None:
            self._copy()
            (self.run / relative).write_bytes(content)
            self._relist(relative)
            generators = torch.get_rng_state()
            optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
            try:
                with Recorder(self.run, self.model, optimizer, resume=True, record=["epoch-gradients"]):
                    pass
            finally:
                torch.set_rng_state(generators)

        return read

    def _results(self, content: bytes) -> None:
        self._copy()
        (self.run / "results").mkdir()
        for name in ("second_order", "error_budget", "explain"):
            (self.run / "results" / f"{name}.json").write_bytes(content)
        self._call(["report", "RUN"])

    def _good_journal(self) -> bytes:
        self._copy()
        content = json.loads((self.run / "run.json").read_text())
        record = {"points": content["points"][-1:], "info": {"mine": 1}, "extended": {"epoch_endings": ["loader"]}}
        Journal(self.run).append({**record, "state": content["state"], "finished": False}, "0123456789abcdef")
        return (self.run / "journal.jsonl").read_bytes()

    def _journal(self, content: bytes) -> None:
        self._copy()
        described = json.loads((self.run / "run.json").read_text())
        described |= {"journal": "0123456789abcdef", "points": described["points"][:2], "finished": False}
        (self.run / "run.json").write_text(json.dumps(described))
        (self.run / "journal.jsonl").write_bytes(content)
        self._call(["verify", "RUN"])
        Run.open(self.run)

    def _tensors(self, content: bytes) -> None:
        path = self.folder / "x.safetensors"
        path.write_bytes(content)
        with TensorFile(path) as file:
            file.read_all()

    def _index(self, content: bytes) -> None:
        (self.folder / "model.safetensors.index.json").write_bytes(content)
        save_file({"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(2)}, self.folder / "a.safetensors")
        with TensorFile(self.folder / "model.safetensors.index.json") as file:
            file.read_all()

    def _packed(self, content: bytes) -> None:
        path = self.folder / "x.pt"
        path.write_bytes(content)
        with ExitStack() as stack:
            open_checkpoint(path, stack)

    def _adapter(self, content: bytes) -> None:
        place = self.folder / "adapter"
        place.mkdir(exist_ok=True)
        (place / "adapter_config.json").write_bytes(content)
        names = {"base_model.model.0.lora_A.weight": (2, 3), "base_model.model.0.lora_B.weight": (2, 2)}
        save_file({name: torch.ones(shape) for name, shape in names.items()}, place / "adapter_model.safetensors")
        with ExitStack() as stack:
            open_adapter(place, stack)

    def _words(self, content: bytes) -> None:
        words = content.decode("utf-8", "surrogateescape").replace("\0", "").split(" ")
        if not {"demo", "analyse", "--", "digits", "doctor"} & set(words):  # long work, and commands of one's own
            self._copy()
            self._call(words)


def spread_weights(run: Path, place: Path) -> None:
    """Copy a run, with the weights after an epoch in two parts behind an index, as several processes write them."""
    shutil.copytree(run, place)
    whole = place / "weights" / "epoch-0001.safetensors"
    tensors, files = load_file(whole), dict[str, str]()
    for number, name in enumerate(sorted(tensors)):
        files[name] = f"epoch-0001-{number % 2 + 1:05d}-of-00002.safetensors"
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, whole.with_name(file))
    whole.unlink()
    index = whole.with_name("epoch-0001.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    paths = [index, *(whole.with_name(file) for file in sorted(set(files.values())))]
    parts = [[f"weights/{one.name}", hashlib.sha256(one.read_bytes()).hexdigest(), one.stat().st_size] for one in paths]
    content = json.loads((place / "run.json").read_text())
    (point,) = (one for one in content["points"] if one["number"] == 1)
    point["files"]["weights"] = {"path": parts[0][0], "parts": parts}
    (place / "run.json").write_text(json.dumps(content))


def made(folder: Path) -> Readers:
    """The readers in a new folder; a run has a journal from its second point on."""
    ledger.WHOLE = 1
    return Readers(folder)


def _without_paths(text: str) -> str:
    """Leave out paths that stand alone in a pipe: they are for the program at its end, as `find` writes them.

    A path that holds line breaks stands on as many lines.
    """
    lines, kept = text.replace("\0", "").split("\n"), list[str]()
    while lines:
        for count in range(1, 6):
            path = "\n".join(lines[:count])
            if len(path) <= 4000 and os.path.lexists(path):
                del lines[:count]
                break
        else:
            kept.append(lines.pop(0))
    return "\n".join(kept)
