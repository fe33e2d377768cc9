"""Merging run directories: what the file holds, what is refused, and how alpha is searched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from tvgrad.cli.main import main

from tvgrad import merging
from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorFile
from tvgrad.files.writing import write_stream, write_tensors
from tvgrad.merging import METHODS, merge_files
from tvgrad.merging.ada_merging import mean_entropy
from tvgrad.merging.evaluation import ALPHAS, Scorer, halves, search_alpha, shifted
from tvgrad.merging.runs import common_epoch, merge_runs
from tvgrad.merging.stack import first_difference
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import Recipe, accuracy
from tvgrad.problem.samples import Samples
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.store.run import Run

TASKS = """
import torch
from torch import nn
from tvgrad import Recipe
from tvgrad.problem.recipe import accuracy

def recipe():
    made = []
    for task in range(3):
        torch.manual_seed(7)
        encoder = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        frozen = nn.Linear(6, 6).requires_grad_(False)
        torch.manual_seed(100 + task)
        head = nn.Linear(6, 2 + task).requires_grad_(False)
        inputs = torch.randn(24, 5)
        targets = torch.randint(0, 2 + task, (24,))
        model = nn.Sequential(encoder, frozen, head)
        made.append(Recipe(model, nn.CrossEntropyLoss(), (inputs, targets), test=(inputs, targets), name=f"task{task}",
                           metric=accuracy, lr=0.5, epochs=2))
    return made
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """Three runs of three tasks that share an encoder, a frozen layer, and not the head."""
    place = tmp_path_factory.mktemp("runs")
    (place / "tasks.py").write_text(TASKS)
    command("trace", place / "tasks.py", "--out", place / "runs", "--quiet")
    return place


def command(*words: object) -> int:
    """Run the command line in this process; its exit code."""
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def runs(folder):
    return [Run.open(folder / "runs" / f"task{number}") for number in range(3)]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "analogy"])
def test_files_merge_as_vectors_do(folder, name):
    opened = runs(folder)[: METHODS[name].most]
    made = merge_runs(opened, 2, METHODS[name](), alpha=0.4, out=folder / f"{name}.safetensors")
    written = TensorFile(made.path).read_all()
    base = opened[0].weights(0)
    from tvgrad import merging

    truth = getattr(merging, name)([run.task_vector(2) for run in opened], alpha=0.4, base=base)
    assert set(made.merged) == set(base)
    assert all(torch.equal(written[key], truth[key]) for key in truth)
    # the frozen layer is the same in all runs and is written; heads are each task's own
    assert set(made.shared) == {"1.weight", "1.bias"}
    assert set(made.own) == {"2.weight", "2.bias"}
    assert set(written) == set(base) | set(made.shared)
    assert all(torch.equal(written[key], opened[0].static()[key]) for key in made.shared)


def test_the_command_merges_and_evaluates(folder, capsys):
    out = folder / "merged.safetensors"
    words = ("merge", folder / "runs", "--epoch", 1, "--method", "task_arithmetic", "--out", out)
    assert command(*words, "--alpha", "0.5") == 0
    fixed = TensorFile(out).read_all()
    shown = capsys.readouterr().out
    assert "2 tensors merged from 3 runs" in shown
    assert "each run's own: 2.bias, 2.weight" in shown
    out.unlink()
    assert command(*words, "--alpha", "search", "--evaluate", "--recipe", folder / "tasks.py") == 0
    shown = capsys.readouterr().out
    alpha = float(re.search(r"alpha (\S+): ", shown).group(1))
    assert alpha in ALPHAS
    assert "test half" in shown
    assert "normalised" in shown
    opened = runs(folder)
    exact = shifted(
        opened[0].weights(0),
        {n: sum(run.task_vector(1)[n] for run in opened) for n in opened[0].weights(0)},
        alpha,
    )
    searched = TensorFile(out).read_all()
    assert all(torch.equal(searched[name], exact[name]) for name in exact)
    assert set(fixed) == set(searched)


def test_what_a_user_may_get_wrong_is_one_sentence_and_exit_code_2(folder, tmp_path, capsys):
    all_runs = folder / "runs"
    out = tmp_path / "m.safetensors"
    target = folder / "tasks.py"
    poisoned = tmp_path / "poisoned"
    torch.manual_seed(0)
    other = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2).requires_grad_(False))
    wide = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2).requires_grad_(False))
    named = nn.Sequential(nn.Sequential(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 2).requires_grad_(False))
    data = torch.randn(8, 5), torch.arange(8) % 2
    for name, model in (("other", other), ("wide", wide), ("named", named)):
        recipe = Recipe(model, nn.CrossEntropyLoss(), data, name=name)
        trace(prepare(recipe, TraceOptions(epochs=1, lr=0.1)), tmp_path / name)
    _copy_with_nan(all_runs / "task1", poisoned)
    first = all_runs / "task0"
    cases = [
        (["--epoch", 9], "has no epoch 9"),
        (["--epoch", 0], "no task vector"),
        (["--alpha", "much"], "is no number"),
        (["--alpha", "nan"], "finite number"),
        (["--alpha", "search"], "give --recipe"),
        (["--evaluate"], "give --recipe"),
        (["--method", "average"], "no merging method 'average'"),
        (["--method", "mean", "--density", "0.1"], "mean has no density"),
        (["--method", "ties", "--density", "2"], "density must be"),
        (["--method", "analogy", tmp_path / "other"], "analogy takes 3 tasks, and 4 were given"),
        (["--method", "dare", "--seed", "-1"], "seed must be a whole number of at least 0"),
        (["--alpha", "1e300"], "does not fit into float32 at alpha 1e+300"),
        (["--recipe", target], "--recipe is for"),
        ([all_runs / "task1"], "task1 is given twice"),
    ]
    for words, message in cases:
        assert command("merge", all_runs, "--out", out, *words) == 2
        _one_sentence(capsys, message)
    for chosen, words, message in [
        ([first], ["--method", "ties"], "ties merges at least 2 tasks, and 1 was given"),
        ([first, tmp_path / "other"], ["--epoch", 1], "give files of the same model"),
        ([tmp_path / "other", tmp_path / "wide"], [], "has shape"),
        ([tmp_path / "other", tmp_path / "named"], [], "give files of the same model"),
        ([first, poisoned], ["--epoch", 1], "holds a NaN"),
        ([tmp_path / "nowhere"], [], "does not exist"),
        ([first], ["--recipe", "digits", "--evaluate"], "digits has no task called 'task0'"),
    ]:
        assert command("merge", *chosen, "--out", out, *words) == 2
        _one_sentence(capsys, message)
    assert not out.exists()
    assert command("merge", all_runs, "--out", out, "--recipe", target, "--evaluate") == 0
    capsys.readouterr()
    before = out.read_bytes()
    manifest = (first / "run.json").read_bytes()
    for place, message in [
        (tmp_path / "no" / "m.safetensors", "is no folder"),
        (tmp_path, "is a folder"),
        (tmp_path / "m.pt", "does not end in .safetensors"),
        (first / "run.json", "does not end in .safetensors"),
        (out, "exists: delete it"),
    ]:
        # refused before any work: the folder named as runs is not even looked at
        assert command("merge", tmp_path / "nowhere", "--out", place) == 2
        _one_sentence(capsys, message)
    assert out.read_bytes() == before
    assert (first / "run.json").read_bytes() == manifest
    with pytest.raises(TvgradError, match="is a folder"):
        merge_runs(runs(folder), 1, METHODS["mean"](), alpha=1.0, out=tmp_path)


def test_the_last_line_counts_what_the_file_holds(folder, capsys):
    words = ("--epoch", 1, "--method", "negation", "--out")
    assert command("merge", folder / "runs" / "task0", *words, folder / "forget.safetensors") == 0
    line = capsys.readouterr().out.strip()
    assert line.endswith("2 tensors merged from 1 run by negation at epoch 1, alpha 1; 4 frozen tensors beside them")
    assert command("merge", folder / "runs", *words, folder / "forget-all.safetensors") == 0
    line = capsys.readouterr().out.strip()
    assert "2 tensors merged from 3 runs by negation at epoch 1, alpha 1; 2 frozen tensors that all runs have" in line
    written = TensorFile(folder / "forget.safetensors").read_all()
    assert len(written) == 6


def test_different_pretrained_weights_are_refused(tmp_path):
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2).requires_grad_(False))
        recipe = Recipe(model, nn.CrossEntropyLoss(), (torch.randn(6, 3), torch.arange(6) % 2), name=f"t{seed}")
        made.append(trace(prepare(recipe, TraceOptions(epochs=1)), tmp_path / f"t{seed}"))
    with pytest.raises(TvgradError, match="different pretrained weights"):
        merge_runs(made, 1, METHODS["mean"](), alpha=1.0, out=tmp_path / "m.safetensors")
    assert common_epoch(made) == 1


def _copy_with_nan(source: Path, directory: Path) -> None:
    import shutil

    shutil.copytree(source, directory)
    path = directory / "weights" / "epoch-0001.safetensors"
    content = TensorFile(path).read_all()
    next(iter(content.values())).view(-1)[0] = float("nan")
    write_tensors(content, path)


def _one_sentence(capsys, message: str) -> None:
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("Error: ")
    assert "\n" not in error


def test_a_streamed_file_is_read_back_by_the_library(tmp_path):
    from safetensors.torch import load_file

    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.randn(5).to(torch.bfloat16),
        "empty": torch.empty(0, 2),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
    }
    places = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    made = write_stream(places, lambda name: tensors[name].flatten().split(3), tmp_path / "one.safetensors")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(made).items())
    index = write_stream(places, lambda name: [tensors[name].flatten()], tmp_path / "s.safetensors", max_shard_bytes=50)
    assert index.name == "s.safetensors.index.json"
    shards = TensorFile(index)
    assert all(torch.equal(shards.read(name), tensors[name]) for name in tensors)
    assert first_difference(TensorFile(made), shards) is None
    assert (
        first_difference(TensorFile(made), TensorFile(write_tensors({"a": tensors["a"]}, tmp_path / "a.safetensors")))
        == "b"
    )


def test_the_merged_model_has_the_pretrained_weights_types(tmp_path):
    start = {"w": torch.randn(4, 4).to(torch.bfloat16), "v": torch.randn(3)}
    write_tensors(start, tmp_path / "p.safetensors")
    tuned = []
    for number in range(2):
        weights = {name: (tensor + 0.1 * number).to(tensor.dtype) for name, tensor in start.items()}
        tuned.append(TensorFile(write_tensors(weights, tmp_path / f"{number}.safetensors")))
    out = merge_files(
        METHODS["mean"](), TensorFile(tmp_path / "p.safetensors"), tuned, alpha=1.0, out=tmp_path / "m.safetensors"
    )
    merged = TensorFile(out).read_all()
    assert {name: tensor.dtype for name, tensor in merged.items()} == {n: t.dtype for n, t in start.items()}
    with pytest.raises(TvgradError, match="no fine-tuned model"):
        merge_files(
            METHODS["mean"](), TensorFile(tmp_path / "p.safetensors"), [], alpha=1.0, out=tmp_path / "m.safetensors"
        )


def test_alpha_is_the_best_of_the_grid_and_the_smallest_among_equals():
    assert search_alpha(lambda alpha: -((alpha - 0.35) ** 2)) == (0.35, 0.0)
    assert search_alpha(lambda alpha: 1.0) == (0.0, 1.0)
    with pytest.raises(TvgradError, match="no alpha to try"):
        search_alpha(lambda alpha: alpha, ())


def test_halves_share_no_sample():
    samples = Samples((torch.arange(11), torch.arange(11)))
    left, right = (set(part.batch(0, 99)[0].tolist()) for part in halves(samples))
    assert left | right == set(range(11))
    assert not left & right
    with pytest.raises(TvgradError, match="fewer than two"):
        halves(Samples((torch.arange(1), torch.arange(1))))


def test_a_scorer_weighs_samples_and_leaves_the_recipe_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2).requires_grad_(False)).eval()
    inputs = torch.randn(1100, 3)
    targets = (inputs[:, 0] > 0).long()
    recipe = Recipe(model, nn.CrossEntropyLoss(), (inputs[:8], targets[:8]), test=(inputs, targets), metric=accuracy)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = {"0.weight": torch.randn(4, 3), "0.bias": torch.randn(4)}
    hidden = inputs.numpy() @ weights["0.weight"].numpy().T + weights["0.bias"].numpy()
    logits = hidden @ model[2].weight.detach().numpy().T + model[2].bias.numpy()
    assert Scorer(recipe).score(weights) == pytest.approx(np.mean(logits.argmax(axis=1) == targets.numpy()), abs=1e-9)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    each = Scorer(recipe).sample_scores(weights)
    assert each == (logits.argmax(axis=1) == targets.numpy()).astype(float).tolist()
    recipe.metric = lambda output, target: -nn.functional.cross_entropy(output, target)  # by the loss, sample by sample
    each = Scorer(recipe).sample_scores(weights)
    expected = nn.functional.cross_entropy(torch.from_numpy(logits), targets, reduction="none")
    np.testing.assert_allclose(each, -expected, rtol=1e-4, atol=1e-5)
    assert np.mean(each) == pytest.approx(Scorer(recipe).score(weights))
    no_test = Recipe(model, nn.CrossEntropyLoss(), (inputs[:8], targets[:8]))
    with pytest.raises(TvgradError, match="no metric or no test samples"):
        Scorer(no_test)


def test_methods_with_options_steps_and_data_on_the_command_line(folder, capsys):
    opened = runs(folder)
    vectors, base = [run.task_vector(2) for run in opened], opened[0].weights(0)
    recipes = load_recipes(str(folder / "tasks.py"))
    tests = [Objective(r.model, mean_entropy, r.test) for r in recipes]
    cases = {
        ("tsv-c", "--option", "share=0.5"): merging.tsv_c(vectors, share=0.5, base=base),
        ("lines", "--option", "first=0.5", "--option", "last=2"): merging.lines(vectors, first=0.5, last=2, base=base),
        ("fed_nova",): merging.fed_nova(vectors, steps=[2, 2, 2], base=base),
        ("fed_nova", "--option", "steps=1,2,4"): merging.fed_nova(vectors, steps=(1, 2, 4), base=base),
        ("ada_merging", "--option", "steps=3", "--option", "rate=0.1", "--recipe", folder / "tasks.py"):
            merging.ada_merging(vectors, tests, steps=3, rate=0.1, base=base),
        ("exact_gradient_matching", "--option", "prior=5", "--recipe", folder / "tasks.py"):
            merging.exact_gradient_matching(vectors, [r.objective() for r in recipes], prior=5.0, base=base),
    }  # fmt: skip
    for number, (words, truth) in enumerate(cases.items()):
        out = folder / f"with-options-{number}.safetensors"
        assert command("merge", folder / "runs", "--out", out, "--method", *words) == 0, capsys.readouterr().err
        written = TensorFile(out).read_all()
        assert all(torch.allclose(written[name], tensor, rtol=1e-5, atol=1e-7) for name, tensor in truth.items())
    capsys.readouterr()
    for words, said in (
        (("tsv_c", "--option", "share"), "'share' is not of the form NAME=NUMBER"),
        (("tsv_c", "--option", "share=much"), "is not of the form NAME=NUMBER"),
        (("tsv_c", "--option", "share=1", "--option", "share=0.5"), "share is given twice"),
        (("tsv_c", "--option", "rank=3"), "tsv_c has no rank (it has share): leave --option rank out"),
        (("tsv_c", "--option", "share=0.01"), "singular triplets of '0.0.weight' is none: give at least 0.2"),
        (("slerp",), "slerp takes 2 tasks, and 3 were given"),
        (("ada_merging",), "ada_merging needs the tasks' data: give --recipe TARGET"),
        (("ada_merging", "--option", "steps=0", "--recipe", folder / "tasks.py"), "steps must be a whole number"),
        (("none",), "there is no merging method 'none'"),
    ):
        out = folder / "refused.safetensors"
        assert command("merge", folder / "runs", "--out", out, "--method", *words) == 2
        shown = capsys.readouterr().err
        assert said in " ".join(shown.split())
        assert not out.exists()
