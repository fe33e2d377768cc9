"""`tvgrad trace`: recipes of one's own, what it prints, and every wrong input as one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tvgrad.errors import DiskFull
from tvgrad.store.run import Run

Tvgrad = Callable[..., Any]
Refused = Callable[..., str]

# --- what works --------------------------------------------------------------------------------------------------


def test_a_recipe_of_ones_own(tvgrad: Tvgrad, recipes: Path, tmp_path: Path) -> None:
    outcome = tvgrad("trace", recipes, "--out", tmp_path / "run", "--lr", "0.05", "--dtype", "float64")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"{tmp_path / 'run'}: 4 points, epoch 3: loss ")
    run = Run.open(tmp_path / "run")
    assert (run.name, run.epochs, run.problems()) == ("mine", [0, 1, 2, 3], [])
    assert run.info["recipe"]["target"] == str(recipes)
    assert run.info["rule"] == {"name": "gd", "lr": 0.05}
    assert run.info["dtype"] == "float64"


def test_a_dataset_of_mappings_and_a_model_of_ones_own(tvgrad: Tvgrad, recipes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = tvgrad("trace", f"{recipes}:mapping", "--out", out, "--epochs", "2", "--groups", r"backbone\.\d+|head")
    assert (outcome.code, outcome.err) == (0, "")
    run = Run.open(out)
    assert run.name == "pictures"
    assert set(run.groups().values()) == {"backbone.1", "head", "other"}
    assert set(run.static()) == {"backbone.0.weight", "backbone.0.bias"}
    assert run.parameters["temperature"].shape == ()
    verified = tvgrad("verify", out, "--replay", "--recipe", f"{recipes}:mapping")
    assert verified.code == 0, verified
    assert ": exact" in verified.out
    assert "same bits" in verified.out


def test_several_tasks_have_a_directory_each(tvgrad: Tvgrad, recipes: Path, tmp_path: Path) -> None:
    outcome = tvgrad("trace", f"{recipes}:tasks", "--out", tmp_path / "runs", "--epochs", "1")
    assert outcome.code == 0
    *lines, last = outcome.out.splitlines()
    assert len(lines) == 2
    assert last.startswith(f"Next: `tvgrad verify {tmp_path / 'runs'}` checks it")
    one, two = (Run.open(tmp_path / "runs" / name) for name in ("one", "two"))
    assert all(torch.equal(tensor, two.weights(0)[name]) for name, tensor in one.weights(0).items())
    assert not torch.equal(one.weights(1)["0.weight"], two.weights(1)["0.weight"])
    picked = tvgrad("trace", f"{recipes}:tasks", "--out", tmp_path / "two", "--tasks", "two", "--epochs", "1")
    assert picked.code == 0
    assert Run.open(tmp_path / "two").name == "two"


def test_a_module_on_the_path(tvgrad: Tvgrad, recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes.rename(tmp_path / "recipe_module_of_a_test.py")
    monkeypatch.chdir(tmp_path)
    assert tvgrad("trace", "recipe_module_of_a_test:recipe", "--out", "run", "--epochs", "1").code == 0
    assert Run.open("run").epochs == [0, 1]


def test_a_recipe_file_imports_what_lies_beside_it(tvgrad: Tvgrad, recipes: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text("from mine import recipe\n")
    assert tvgrad("trace", tmp_path / "user.py", "--out", tmp_path / "run", "--epochs", "1").code == 0


def test_options_reach_the_run(tvgrad: Tvgrad, recipes: Path, tmp_path: Path) -> None:
    outcome = tvgrad(
        *(
            "trace",
            recipes,
            "--out",
            tmp_path,
            "--optimizer",
            "nesterov",
            "--momentum",
            "0.8",
            "--weight-decay",
            "0.01",
        ),
        *("--batch-size", "6", "--seed", "5", "--record", "gradients,epoch-gradients,batches", "--keep", "last:2"),
        *("--epochs", "5", "--chunk-size", "4", "--device", "cpu"),
    )
    # the recipe file lies in tmp_path: a directory with other files is no place for a run
    assert (outcome.code, outcome.err) == (
        2,
        f"Error: {tmp_path} holds other files (mine.py): choose an empty or new directory for --out\n",
    )
    outcome = tvgrad(
        *("trace", recipes, "--out", tmp_path / "run", "--optimizer", "nesterov", "--momentum", "0.8"),
        *("--batch-size", "6", "--seed", "5", "--record", "gradients,epoch-gradients,batches", "--keep", "last:2"),
        *("--epochs", "5", "--chunk-size", "4", "--device", "cpu", "--weight-decay", "0.01"),
    )
    assert (outcome.code, outcome.err) == (0, "")
    run = Run.open(tmp_path / "run")
    assert run.epochs == [0, 4, 5]
    assert run.having("batches") == [1, 2, 3, 4, 5]
    assert {key: run.info[key] for key in ("seed", "batch_size", "chunk_size", "device")} == {
        "seed": 5,
        "batch_size": 6,
        "chunk_size": 4,
        "device": "cpu",
    }
    assert run.info["rule"] == {
        "name": "nesterov",
        "lr": 0.1,
        "momentum": 0.8,
        "weight_decay": 0.01,
        "decoupled": False,
    }


def test_recording_by_step(tvgrad: Tvgrad, recipes: Path, tmp_path: Path) -> None:
    steps = ("--optimizer", "sgd", "--batch-size", "8", "--record-at", "steps:1,3")
    assert tvgrad("trace", recipes, "--out", tmp_path / "run", *steps).code == 0
    run = Run.open(tmp_path / "run")
    assert (run.unit, run.epochs) == ("step", [0, 1, 3])


def test_quiet_prints_nothing(tvgrad: Tvgrad, recipes: Path, tmp_path: Path) -> None:
    outcome = tvgrad("trace", recipes, "--out", tmp_path / "run", "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_a_progress_bar_is_for_terminals(
    tvgrad: Tvgrad, recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    shown = tvgrad("trace", recipes, "--out", tmp_path / "shown")
    assert "cos(task vector, -g0)" in shown.err
    assert "3/3" in shown.err
    quiet = tvgrad("trace", recipes, "--out", tmp_path / "quiet", "--quiet")
    assert (quiet.out, quiet.err) == ("", "")


def test_resume(tvgrad: Tvgrad, refused: Refused, recipes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert tvgrad("trace", recipes, "--out", out, "--resume").code == 0
    before = (out / "run.json").read_bytes()
    assert refused("trace", recipes, "--out", out) == (
        f"{out} already holds a run: choose another --out, go on with it by --resume, or replace it by --overwrite"
    )
    assert (out / "run.json").read_bytes() == before
    assert tvgrad("trace", recipes, "--out", out, "--resume", "--epochs", "5").code == 0
    assert Run.open(out).epochs == [0, 1, 2, 3, 4, 5]


def test_a_resume_without_the_options_goes_on_with_them(
    tvgrad: Tvgrad, refused: Refused, recipes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = "--optimizer adam --lr 0.003 --batch-size 8 --seed 5 --dtype float64 --record gradients,batches"
    tvgrad("trace", recipes, "--out", out, *options.split(), "--keep", "last:1", "--groups", "weight", "--epochs", "2")
    assert tvgrad("trace", recipes, "--out", out, "--resume", "--epochs", "4").code == 0
    run, whole = Run.open(out), tmp_path / "whole"
    tvgrad("trace", recipes, "--out", whole, *options.split(), "--epochs", "4")
    for name, tensor in Run.open(whole).weights(4).items():
        assert torch.equal(run.weights(4)[name], tensor)
    assert (run.epochs, run.rule.name, set(run.groups().values())) == ([0, 4], "adam", {"weight", "other"})
    assert run.having("batches") == [1, 2, 3, 4]
    # what is said again counts, also where it is the default
    assert "with another seed (5, now 0)" in refused("trace", recipes, "--out", out, "--resume", "--seed", "0")


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_in_the_middle(tvgrad: Tvgrad, recipes: Path, tmp_path: Path) -> None:
    outcome = tvgrad("trace", f"{recipes}:interrupted", "--out", tmp_path / "run")
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.strip() == "tvgrad: stopped; finished epochs are recorded"
    run = Run.open(tmp_path / "run")
    assert (run.epochs, run.problems(), run.manifest.finished) == ([0, 1, 2], [], False)


# --- what is refused ---------------------------------------------------------------------------------------------

FUNCTIONS = {
    "raises": "mine.py:raises failed: KeyError: 'the key' (mine.py, line ",
    "raises_inside_torch": "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x4 and 5x3) (mine.py, line ",
    "exits": "failed: it exits (bye) where it should return (mine.py, line ",
    "needs_arguments": "missing 1 required positional argument: 'size'",
    "something_else": "returned Sequential: return a tvgrad.Recipe, or a list of them",
    "words": "returned str: return a tvgrad.Recipe",
    "empty": "returned an empty list: return a tvgrad.Recipe, or a list of them",
    "mixed": "returned list: return a tvgrad.Recipe",
    "same_names": "has two tasks called 'mine': give each recipe a name of its own",
    "different_starts": "do not share one pretrained model: their values differ",
    "different_shapes": "do not share one pretrained model: '0.weight' is in one and not in the other",
    "frozen": "the model (Sequential) has no trainable parameters: set requires_grad on what is to be tuned",
    "no_model": "a recipe's model must be an nn.Module, not str",
    "vector_loss": "the loss is a tensor of shape (12,): it must be one number",
    "sum_loss": "is not the mean of the gradients of its parts weighted by samples",
    "nan_loss": "the loss at the pretrained weights is nan: check the data, the model and the loss",
    "no_data": "the data is empty: a mean over no samples does not exist",
    "unequal_data": "inputs and targets have different lengths (20, 7)",
    "dropout": "call model.eval() or set p=0, or allow 'dropout'",
    "batchnorm": "put it in eval mode, or allow 'batchnorm'",
    "zero_lr": "lr must be a positive number, not 0",
    "nan_lr": "lr must be a positive number, not nan",
    "no_epochs": "epochs must be a whole number of at least 1, not 0",
    "half_epochs": "epochs must be a whole number of at least 1, not 1.5",
    "no_batch": "batch_size must be a whole number of at least 1, not 0",
    "bad_optimizer": "unknown optimizer 'sgdm': choose from gd, sgd",
    "bad_name": "a task cannot be called '../elsewhere': its name becomes a folder's",
    "bad_allow": "nothing called 'everything' can be allowed: choose from dropout",
    "not_there": "mine.py has no function called 'not_there': define one that returns a tvgrad.Recipe",
    "not_callable": "mine.py has no function called 'not_callable'",
    "": "mine.py has no function called ''",
}


@pytest.mark.parametrize(("function", "words"), FUNCTIONS.items())
def test_a_recipe_that_is_wrong(refused: Refused, recipes: Path, tmp_path: Path, function: str, words: str) -> None:
    assert words in refused("trace", f"{recipes}:{function}", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


FILES = {
    "def recipe(:\n": "cannot be run: syntax error in line 1: ",
    "if True:\nrecipe = 1\n": "cannot be run: syntax error in line 2: ",
    "import no_such_module\n": "ModuleNotFoundError: No module named 'no_such_module' (broken.py, line 1)",
    "\n1 / 0\n": "cannot be run: ZeroDivisionError: division by zero (broken.py, line 2)",
    "raise SystemExit(4)\n": "cannot be run: it exits (4) where it should return (broken.py, line 1)",
    "import argparse\nargparse.ArgumentParser().parse_args(['--x'])\n": "it exits (2)",
    "raise ValueError('two\\nlines')\n": "ValueError: two lines (broken.py, line 1)",
    "x = 1\n": "a training script is recorded as it stands by `tvgrad trace --out DIR -- python ",
    "\0": "cannot be run",
    "caf\udce9": "cannot be run",
}


@pytest.mark.parametrize(("text", "words"), FILES.items())
def test_a_file_that_is_wrong(tvgrad: Tvgrad, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "broken.py"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    outcome = tvgrad("trace", path, "--out", tmp_path / "run")
    last = outcome.err.splitlines()[-1]
    assert (outcome.code, "Traceback" in outcome.err) == (2, False)
    assert last.startswith("Error: ")
    assert words in last
    assert "argparse" in text or outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nonsense", "unknown recipe 'nonsense': choose from digits"),
        ("missing.py", "missing.py does not exist: give the path of a Python file with a recipe function"),
        ("missing.py:recipe", "missing.py does not exist"),
        (
            "no.such.module:recipe",
            "module 'no.such.module' cannot be imported: ModuleNotFoundError: No module named 'no'",
        ),
        ("math:recipe", "math has no function called 'recipe'"),
        (":recipe", "module '' cannot be imported"),
        (".x:recipe", "module '.x' cannot be imported"),
    ],
)
def test_a_target_that_is_not_there(refused: Refused, tmp_path: Path, target: str, words: str) -> None:
    assert words in refused("trace", target, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


OPTIONS = {
    "--lr 0": "--lr must be a positive number, not 0.0",
    "--lr -1": "--lr must be a positive number, not -1.0",
    "--lr nan": "--lr must be a positive number, not nan",
    "--lr inf": "--lr must be a positive number, not inf",
    "--lr fast": "Invalid value for '--lr': 'fast' is not a valid float.",
    "--epochs 0": "--epochs must be a whole number of at least 1, not 0",
    "--epochs -3": "--epochs must be a whole number of at least 1, not -3",
    "--epochs 1.5": "Invalid value for '--epochs': '1.5' is not a valid integer.",
    "--optimizer sgd --batch-size 0": "--batch-size must be a whole number of at least 1, not 0",
    "--optimizer sgd --batch-size -2": "--batch-size must be a whole number of at least 1, not -2",
    "--batch-size 4": "gd is full-batch gradient descent: leave --batch-size out, or use --optimizer sgd",
    "--optimizer adam --momentum 0.9": "adam takes no momentum: leave the momentum out",
    "--weight-decay 0.1": "gd takes no weight decay",
    "--optimizer momentum --momentum 1": "momentum: momentum 1.0 is out of range",
    "--optimizer sgd --weight-decay -1": "weight_decay -1.0 is out of range",
    "--optimizer lbfgs": "Invalid value for '--optimizer': 'lbfgs' is not one of ",
    "--dtype float16": "Invalid value for '--dtype': 'float16' is not one of ",
    "--device abacus": "device 'abacus' is not available here",
    "--device cuda:99": "device 'cuda:99' is not available here",
    "--record everything": "nothing called 'everything' can be recorded: choose from gradients, ",
    "--record batches": "--record batches is for mini-batches: give --batch-size, or leave batches out",
    "--record-at sometimes": "--record-at 'sometimes' is not understood: use epochs, or steps:1,10,100",
    "--record-at steps:0": "--record-at 'steps:0' is not understood",
    "--record-at steps:9,7": "--record-at steps:9,7 names no step that is reached: 3 epochs of 1 steps are 3",
    "--keep few": "--keep 'few' is not understood: use all, last:N or epochs:0,1,5",
    "--keep last:0": "--keep 'last:0' is not understood",
    "--allow everything": "nothing called 'everything' can be allowed: choose from dropout",
    "--groups (": "--groups '(' is not a regular expression: ",
    "--chunk-size 0": "the chunk size must be at least 1, not 0",
    "--tasks other": "has no task called 'other': choose from mine",
}


@pytest.mark.parametrize(("options", "words"), OPTIONS.items())
def test_an_option_that_is_wrong(refused: Refused, recipes: Path, tmp_path: Path, options: str, words: str) -> None:
    assert words in refused("trace", recipes, "--out", tmp_path / "run", *options.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_absent(refused: Refused, recipes: Path, tmp_path: Path) -> None:
    assert "device 'cuda' is not available here (" in refused(
        "trace", recipes, "--out", tmp_path / "r", "--device", "cuda"
    )


def test_an_out_that_is_taken(refused: Refused, tvgrad: Tvgrad, recipes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        assert refused("trace", recipes, "--out", place) == f"{tmp_path / 'file'} is a file: choose another --out"
        assert "is a file" in refused("trace", recipes, "--out", place, "--resume")
    (tmp_path / "project" / "weights").mkdir(parents=True)
    (tmp_path / "project" / "weights" / "best.safetensors").write_text("precious")
    for resume in ([], ["--resume"]):
        words = refused("trace", recipes, "--out", tmp_path / "project", *resume)
        assert "holds other files (weights/best.safetensors): choose an empty or new directory" in words
    assert (tmp_path / "project" / "weights" / "best.safetensors").read_text() == "precious"
    # Of several tasks, the last one's place is looked at before the first is trained.
    (tmp_path / "runs" / "two").mkdir(parents=True)
    (tmp_path / "runs" / "two" / "thesis.tex").touch()
    assert "holds other files (thesis.tex)" in refused("trace", f"{recipes}:tasks", "--out", tmp_path / "runs")
    assert not (tmp_path / "runs" / "one").exists()
    assert tvgrad("trace", recipes, "--out", tmp_path / "single").code == 0
    words = refused("trace", f"{recipes}:tasks", "--out", tmp_path / "single")
    assert "holds the run of one task" in words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ([":other_model"], "records another model"),
        ([":other_start"], "records another model (0.weight differs)"),
        ([":other_data"], "was recorded with another data"),
        (["", "--lr", "0.2"], "was recorded with another update rule (name gd lr 0.1, now name gd lr 0.2)"),
        (["", "--optimizer", "adam"], "was recorded with another update rule"),
        (["", "--seed", "1"], "was recorded with another seed (0, now 1)"),
        (["", "--dtype", "float64"], "records another model"),
    ],
)
def test_a_resume_that_does_not_fit(
    refused: Refused, tvgrad: Tvgrad, recipes: Path, tmp_path: Path, change: list[str], words: str
) -> None:
    out = tmp_path / "run"
    assert tvgrad("trace", recipes, "--out", out).code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    target, *options = change
    assert words in refused("trace", f"{recipes}{target}", "--out", out, "--epochs", "9", *options, "--resume")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def rewritten(key: str, value: object) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), key: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:300], "is not a run's description"),
        (lambda _: "", "is not a run's description"),
        (lambda _: "epochs: 3", "is not a run's description"),
        (lambda _: "[]", "is not a run's description"),
        (rewritten("version", 2), "has format version 2 and this tvgrad reads version 1: use the tvgrad that wrote it"),
        (rewritten("points", {"a": 1}), "run.json is damaged"),
        (rewritten("parameters", 3), "run.json is damaged"),
        (rewritten("static", {"path": "../x", "parts": []}), "names a file outside the run directory"),
        (rewritten("static", {"path": "/x", "parts": []}), "names a file outside the run directory"),
    ],
)
def test_a_description_that_cannot_be_read(
    refused: Refused, tvgrad: Tvgrad, recipes: Path, tmp_path: Path, change: Callable[[str], str], words: str
) -> None:
    out = tmp_path / "run"
    assert tvgrad("trace", recipes, "--out", out).code == 0
    (out / "run.json").write_text(change((out / "run.json").read_text()))
    before = sorted(out.rglob("*"))
    assert words in refused("trace", recipes, "--out", out, "--resume")
    assert words in refused("export", out, "--out", tmp_path / "checkpoint")
    assert sorted(out.rglob("*")) == before


def test_a_truncated_file(refused: Refused, tvgrad: Tvgrad, recipes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert tvgrad("trace", recipes, "--out", out).code == 0
    path = out / "weights" / "epoch-0003.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    words = refused("trace", recipes, "--out", out, "--epochs", "5", "--resume")
    assert f"{out} cannot be resumed: weights/epoch-0003.safetensors has " in words
    assert "epoch-0003.safetensors is not a whole safetensors file" in refused("export", out, "--out", tmp_path / "c")
    verified = tvgrad("verify", out)
    assert (verified.code, "Traceback" in verified.err) == (1, False)
    assert "weights/epoch-0003.safetensors has " in verified.out


def test_divergence(tvgrad: Tvgrad, recipes: Path, tmp_path: Path) -> None:
    outcome = tvgrad("trace", f"{recipes}:wild", "--out", tmp_path / "run")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith("Error: the loss of mine is ")
    assert outcome.err.endswith(": lower --lr; all before is recorded\n")
    run = Run.open(tmp_path / "run")
    assert (len(run.epochs) > 1, run.problems(), run.manifest.finished) == (True, [], False)
    assert all(tensor.isfinite().all() for epoch in run.epochs for tensor in run.weights(epoch).values())


def test_a_full_disk(tvgrad: Tvgrad, recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from tvgrad.files import writing

    plain = writing._save_stream

    def full(*arguments: Any) -> None:
        if "epoch-0002" in arguments[-1].name:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(*arguments)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(writing, "_save_stream", full)
        outcome = tvgrad("trace", recipes, "--out", out)
    assert outcome.code == DiskFull.exit_code == 2
    assert outcome.err == (
        f"Error: no room on the disk for {out / 'weights' / 'epoch-0002.safetensors'}; free some space and go on with "
        "--resume: finished epochs are whole\n"
    )
    assert (Run.open(out).epochs, Run.open(out).problems()) == ([0, 1], [])
    assert tvgrad("trace", recipes, "--out", out, "--resume").code == 0
    assert (Run.open(out).epochs, Run.open(out).problems()) == ([0, 1, 2, 3], [])


def test_too_little_room_for_all_tasks_together(
    refused: Refused, recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    parameters = sum(p.numel() for p in nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).parameters())
    one = 4 * parameters * (2 * 7 + 4)  # five epochs: six points and one in the making, and the state
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(1.5 * one)))
    words = refused("trace", f"{recipes}:tasks", "--out", tmp_path / "runs", "--epochs", "5")
    assert "the run needs about " in words
    assert not (tmp_path / "runs").exists()


def test_overwrite_and_automatic_names(tvgrad: Tvgrad, refused: Refused, recipes: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "first"
    assert tvgrad("trace", recipes, "--out", out).code == 0
    assert tvgrad("trace", recipes, "--out", out, "--overwrite", "--epochs", "1").code == 0
    assert Run.open(out).epochs == [0, 1]
    assert "one of --resume and --overwrite" in refused("trace", recipes, "--out", out, "--overwrite", "--resume")
    for _ in range(2):
        assert tvgrad("trace", recipes, "--out", tmp_path / "runs", "--epochs", "1").code == 0
    assert tvgrad("trace", recipes, "--out", f"{out}/", "--resume", "--epochs", "2").code == 0
    assert Run.open(out).epochs == [0, 1, 2]  # a run's own directory, as the shell completes it
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["first", Run.open(out).name, f"{Run.open(out).name}-2"]
