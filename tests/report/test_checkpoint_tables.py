"""Tables of checkpoints without a run, against plain float64 arithmetic on the weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tvgrad.cli.main import main

from tvgrad.errors import TvgradError
from tvgrad.report.checkpoints import CHECKPOINT_COLUMNS, checkpoint_tables
from tvgrad.report.headings import heading
from tvgrad.report.summary import summary_of_checkpoints

Weights = dict[str, torch.Tensor]


def weights(seed: int, like: Weights | None = None) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed.weight": (7, 5), "blocks.10.weight": (5, 5), "blocks.9.weight": (5, 5), "head.bias": (3,)}
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return drawn if like is None else {name: like[name] + 0.01 * tensor for name, tensor in drawn.items()}


BASE = weights(0)
TUNED = {name: weights(seed, BASE) for seed, name in enumerate(("one", "two", "three"), start=1)}


def flat(content: Weights, prefix: str = "") -> np.ndarray:
    return np.concatenate([content[n].double().numpy().ravel() for n in sorted(BASE) if n.startswith(prefix)])


def write_single(content: Weights, folder: Path, name: str) -> Path:
    save_file(content, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def write_shards(content: Weights, folder: Path, name: str) -> Path:
    place = folder / name
    place.mkdir()
    shards = {f"model-{number}.safetensors": [key] for number, key in enumerate(content)}
    for shard, keys in shards.items():
        save_file({key: content[key] for key in keys}, place / shard)
    owners = {key: shard for shard, keys in shards.items() for key in keys}
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": owners}))
    return place


def write_pickle(content: Weights, folder: Path, name: str) -> Path:
    torch.save({"state_dict": content, "epoch": 3}, folder / f"{name}.pt")
    return folder / f"{name}.pt"


def write_compiled(content: Weights, folder: Path, name: str) -> Path:
    """As a compiled model names its parameters."""
    return write_single({f"_orig_mod.{key}": tensor for key, tensor in content.items()}, folder, name)


WRITERS = [write_single, write_shards, write_pickle, write_compiled]


@pytest.mark.parametrize("write", WRITERS, ids=[writer.__name__ for writer in WRITERS])
def test_numbers(write: Callable[[Weights, Path, str], Path], tmp_path: Path) -> None:
    base = write_single(BASE, tmp_path, "base")
    made = checkpoint_tables(base, [write(content, tmp_path, name) for name, content in TUNED.items()])
    assert made.names == ("one", "two", "three")
    assert made.parameters == 7 * 5 + 25 + 25 + 3
    assert made.left_out == ()
    assert {name: tuple(table.columns) for name, table in made.tables.items()} == CHECKPOINT_COLUMNS
    for group, prefix in (("all", ""), ("blocks.9", "blocks.9"), ("head", "head")):
        tau = {name: flat(content, prefix) - flat(BASE, prefix) for name, content in TUNED.items()}
        norms, directions, cross = (
            table[table["group"] == group].set_index(list(table.columns[:2] if "run_a" in table else ["run"]))
            for table in made.tables.values()
        )
        theta = flat(BASE, prefix)
        mean = sum(tau.values()) / 3
        for name, vector in tau.items():
            length, whole = math.sqrt(vector @ vector), math.sqrt(theta @ theta)
            assert norms.loc[name, "task_vector_norm"] == pytest.approx(length, rel=1e-7)
            assert norms.loc[name, "pretrained_norm"] == pytest.approx(whole, rel=1e-7)
            assert norms.loc[name, "relative_norm"] == pytest.approx(length / whole, rel=1e-7)
            expected = vector @ theta / length / whole
            assert directions.loc[name, "cos_task_vector_pretrained"] == pytest.approx(expected, abs=1e-7)
            expected = vector @ mean / length / math.sqrt(mean @ mean)
            assert directions.loc[name, "cos_task_vector_mean"] == pytest.approx(expected, abs=1e-7)
        for left, right in (("one", "two"), ("one", "three"), ("two", "three")):
            expected = tau[left] @ tau[right] / math.sqrt((tau[left] @ tau[left]) * (tau[right] @ tau[right]))
            assert cross.loc[(left, right), "cos_task_vectors"] == pytest.approx(expected, abs=1e-7)
            same = np.mean(np.sign(tau[left]) == np.sign(tau[right]))
            assert cross.loc[(left, right), "sign_agreement"] == pytest.approx(same)
        assert norms["epoch"].isna().all()


def test_blocks_follow_each_other_by_number(tmp_path: Path) -> None:
    base = write_single(BASE, tmp_path, "base")
    made = checkpoint_tables(base, [write_single(TUNED["one"], tmp_path, "one")])
    assert list(made.tables["norms"]["group"]) == ["all", "blocks.9", "blocks.10", "embed", "head"]


def test_names_say_which_is_which(tmp_path: Path) -> None:
    paths = []
    for place, content in zip(("base", "a", "b"), (BASE, TUNED["one"], TUNED["two"]), strict=True):
        (tmp_path / place).mkdir()
        paths.append(write_single(content, tmp_path / place, "model"))
    assert checkpoint_tables(tmp_path / "base", [tmp_path / "a", paths[2]]).names == ("a", "b")
    for place in ("a", "b"):
        write_single(TUNED["one"], tmp_path / place, "epoch-3")
    both = [tmp_path / place / "epoch-3.safetensors" for place in ("a", "b")]
    assert checkpoint_tables(paths[0], both).names == ("a/epoch-3", "b/epoch-3")
    with pytest.raises(TvgradError, match="given twice"):
        checkpoint_tables(paths[0], [both[0], both[0]])


def test_what_is_no_shared_parameter_is_left_out_by_name(tmp_path: Path) -> None:
    noise = {"bn.running_mean": torch.ones(4), "bn.num_batches_tracked": torch.tensor(5), "ids": torch.arange(3)}
    base = {**BASE, "bn.running_mean": torch.zeros(4), "pooler": torch.ones(2), "resized": torch.ones(3, 2)}
    tuned = {**TUNED["one"], **noise, "classifier": torch.ones(2), "resized": torch.ones(4, 2)}
    made = checkpoint_tables(write_single(base, tmp_path, "base"), [write_single(tuned, tmp_path, "one")])
    assert made.parameters == sum(tensor.numel() for tensor in BASE.values())
    assert made.left_out == (
        "3 left out: pooler, classifier, ids is not in every checkpoint",
        "1 left out: resized has another shape in one of them",
    )
    alone = checkpoint_tables(write_single(BASE, tmp_path, "b"), [write_single(TUNED["one"], tmp_path, "one")])
    pd.testing.assert_frame_equal(made.tables["norms"], alone.tables["norms"])


def test_tied_tensors_count_once(tmp_path: Path) -> None:
    def tied(content: Weights) -> Weights:
        return {**content, "lm_head.weight": content["embed.weight"]}

    paths = [write_pickle(tied(content), tmp_path, name) for name, content in {"base": BASE, **TUNED}.items()]
    made = checkpoint_tables(paths[0], paths[1:])
    plain = checkpoint_tables(
        write_single(BASE, tmp_path, "base"), [write_single(TUNED[name], tmp_path, name) for name in TUNED]
    )
    assert made.parameters == plain.parameters
    assert made.left_out == ("1 left out: lm_head.weight is tied to another and counts once",)
    pd.testing.assert_frame_equal(made.tables["cross_task"], plain.tables["cross_task"])
    # Untied by fine-tuning, they are two tensors.
    untied = write_pickle({**TUNED["one"], "lm_head.weight": TUNED["two"]["embed.weight"]}, tmp_path, "untied")
    assert checkpoint_tables(paths[0], [untied]).parameters == plain.parameters + 35


class Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must never be printed",)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    (folder / "empty").mkdir()
    (folder / "short.safetensors").write_bytes(b"short")
    torch.save({"weight": torch.ones(2), "harm": Harm()}, folder / "harm.pt")
    other = write_single({"else": torch.ones(3)}, folder, "other")
    infinite = write_single({**TUNED["one"], "head.bias": torch.full((3,), math.inf)}, folder, "infinite")
    return {
        "none": (folder / "none.pt", "does not exist"),
        "empty": (folder / "empty", "holds no checkpoint that is known"),
        "short": (folder / "short.safetensors", "is not a whole safetensors file"),
        "harm": (folder / "harm.pt", "holds more than tensors"),
        "other": (other, "have no parameter in common"),
        "infinite": (infinite, "infinite|NaN"),
    }


@pytest.mark.parametrize("case", ["none", "empty", "short", "harm", "other", "infinite"])
def test_bad_checkpoints(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, sentence = bad_files(tmp_path)[case]
    with pytest.raises(SystemExit) as left:
        main([
            "report",
            "--pretrained",
            str(write_single(BASE, tmp_path, "base")),
            str(path),
            "--out",
            str(tmp_path / "o"),
        ])
    out, err = capsys.readouterr()
    assert left.value.code == 2
    assert re.search(sentence, err)
    assert out == ""
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_single(BASE, tmp_path, "base")
    tuned = [str(write_pickle(content, tmp_path, name)) for name, content in TUNED.items()]
    out = tmp_path / "report"
    formats = [word for name in ("csv", "md", "latex", "json", "html") for word in ("--format", name)]
    main(["report", "--pretrained", str(base), *tuned, "--out", str(out), *formats])
    names = {path.name for path in out.iterdir()}
    assert names == {"figures", "report.html"} | {
        f"{table}.{ending}" for table in CHECKPOINT_COLUMNS for ending in ("csv", "md", "tex", "json")
    }
    figures = {path.stem for path in (out / "figures").iterdir()}
    assert figures == {"cross_task_cosines", "relative_norms"}
    page = (out / "report.html").read_text()
    assert "3 checkpoints tuned from" in page
    assert "--from-checkpoints BASE FINETUNED" in page
    table = pd.read_csv(out / "cross_task.csv")
    assert list(table.columns) == list(CHECKPOINT_COLUMNS["cross_task"])
    capsys.readouterr()
    main(["report", "--pretrained", str(base), *tuned])
    printed = capsys.readouterr().out
    assert heading("relative_norm") in printed
    assert heading("gradient_norm") not in printed  # nothing is known about it
    with pytest.raises(SystemExit) as left:
        main(["report", "--pretrained", str(base), *tuned, "--skip-damaged"])
    assert left.value.code == 2
    assert "--skip-damaged is about runs" in capsys.readouterr().err


def test_words(tmp_path: Path) -> None:
    base = write_single(BASE, tmp_path, "base")
    made = checkpoint_tables(base, [write_single(BASE, tmp_path, "same")])
    assert "same did not move at all" in summary_of_checkpoints(made.tables)[0]
    made = checkpoint_tables(base, [write_single(content, tmp_path, name) for name, content in TUNED.items()])
    text = " ".join(summary_of_checkpoints(made.tables))
    far = made.tables["norms"].query("group == 'all'").set_index("run")["relative_norm"]
    assert f"{far.min():.3g} ({far.idxmin()}) to {far.max():.3g} ({far.idxmax()}) times" in text
    assert "the cosine of task vectors is largest in size for" in text
