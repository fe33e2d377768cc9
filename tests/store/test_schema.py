"""A run.json, a state or a table that holds something else is refused in one sentence that names the file and place."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tvgrad import Recorder, Run
from tvgrad.errors import DamagedRun, TvgradError
from tvgrad.store.writer import RunWriter


def loop(directory: Path, epochs: int = 1, **options: Any) -> Run:
    torch.manual_seed(1)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    record = ["epoch-gradients", "batches"]
    with Recorder(directory, model, optimizer, scheduler=scheduler, record=record, **options) as recorder:
        for _ in range(epochs):
            recorder.note_batch([0])
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            recorder.note_step(batch_size=1)
            scheduler.step()
            recorder.end_epoch({"accuracy": 0.5})
    return Run.open(directory)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loop(tmp_path_factory.mktemp("runs") / "whole").root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def changed(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def put(*keys: str | int, value: Any) -> Callable[[Any], object]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


WEIGHTS = ("points", 1, "files", "weights")
CASES = [
    (("info", "rule"), {"name": "sgd", "lr": "fast"}, r"info\.rule is no update rule: .*'fast' is out of range"),
    (("info", "rule"), ["sgd"], r"info\.rule is \['sgd'\] and not an object"),
    (("info", "rule"), {"name": "nobody's"}, r"info\.rule is no update rule"),
    (("info", "allowed"), 3, r"info\.allowed is 3 and not a list"),
    (("info", "config"), [1], r"info\.config is \[1\] and not an object"),
    (("info", "recipe"), {"target": 5}, r"info\.recipe\.target is 5 and not text"),
    (("info", "recipe"), "digits", r"info\.recipe is 'digits' and not an object"),
    (("info", "dtype"), "load", r"info\.dtype is 'load' and not one of .*bfloat16"),
    (("info", "chunk_size"), 0, r"info\.chunk_size is 0 and not a whole number of 1 or more"),
    (("info", "batch_size"), 2.5, r"info\.batch_size is 2\.5"),
    (("info", "samples"), 10**19, r"info\.samples is 10000000000000000000 and not"),
    (("info", "options"), {"record": 1}, r"info\.options\.record is 1"),
    (("info", "measured_gradients"), {"0": {"kind": 1, "deviation": 0}}, r"info\.measured_gradients\.0\.kind"),
    (("info", "adapter"), {"name": "x"}, r"info\.adapter has no config"),
    (("info", "x"), ["\ud800"], "half a character"),
    (("info", "name"), "x" * 100_001, r"info\.name has 100,001 characters"),
    (("parameters", "weight", "shape"), [-1], r"parameters\.weight\.shape\[0\] is -1"),
    (("parameters", "weight", "shape"), [2**40, 2**40], r"parameters\.weight\.shape is .* and not a shape"),
    (("parameters", "weight", "shape"), [1] * 65, r"parameters\.weight\.shape has 65 values"),
    (("parameters", "weight", "dtype"), "hub", r"parameters\.weight\.dtype is 'hub'"),
    (("parameters", "weight", "group"), None, r"parameters\.weight\.group is None"),
    (("parameters",), [], r"parameters is \[\] and not an object"),
    (("unit",), "year", r"unit is 'year' and not one of epoch, step"),
    (("finished",), 1, "finished is 1 and not true or false"),
    (("points", 0, "number"), True, r"points\[0\]\.number is True"),
    (("points", 0, "number"), 1, "not in order"),
    (("points", 0, "metrics"), {"loss": [1]}, r"points\[0\]\.metrics\.loss is \[1\]"),
    (("points", 0, "metrics"), {"loss": "x"}, r"points\[0\]\.metrics\.loss is 'x'"),
    ((*WEIGHTS, "parts"), [["a", "b"]], r"files\.weights\.parts\[0\] is \['a', 'b'\] and not a path"),
    ((*WEIGHTS, "path"), "weights/epoch-0000.safetensors", "not among its own parts"),
    ((*WEIGHTS, "path"), "/etc/passwd", "outside the run directory"),
    ((*WEIGHTS, "path"), "weights/../../x", "outside the run directory"),
    ((*WEIGHTS, "path"), "weights//x", "outside the run directory"),
    ((*WEIGHTS, "path"), "weights/\x1b[2J", "outside the run directory"),
]


@pytest.mark.parametrize(("keys", "value", "words"), CASES)
def test_each_fact_is_checked(root: Path, keys: tuple[str | int, ...], value: Any, words: str) -> None:
    changed(root / "run.json", put(*keys, value=value))
    with pytest.raises(DamagedRun, match=r"run\.json .*" + words) as caught:
        Run.open(root)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["info", "unit", "parameters", "tied", "points", "static", "state", "finished"])
def test_a_name_that_is_missing(root: Path, name: str) -> None:
    changed(root / "run.json", lambda content: content.pop(name))
    with pytest.raises(DamagedRun, match=f"run.json is damaged .it has no {name}"):
        Run.open(root)


def test_facts_that_could_not_be_read_again_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(TvgradError, match=r"run\.json cannot keep this: info\.samples is 'many'"):
        loop(tmp_path / "new", info={"samples": "many"})
    assert not (tmp_path / "new").exists()
    run = loop(tmp_path / "new", info={"mine": {"any": [1, None]}, "samples": 3})
    writer = RunWriter.resume(run.root)
    with pytest.raises(TvgradError, match=r"info\.epochs is 'all'"):
        writer.update_info(epochs="all")
    writer.close()
    assert Run.open(run.root).info["mine"] == {"any": [1, None]}


STATES = [
    (("rng.python",), "x", r"rng\.python is 'x' and not a list"),
    (("rng.python",), [3, [1, 2], None], "no random-number generators"),
    (("rng.python",), [3, "abc", None], "no random-number generators"),
    (("rng.numpy",), ["MT19937", -5, 0, 0.0], r"rng\.numpy\[1\] is -5 and not a whole number from 0 to 624"),
    (("epoch",), "one", "epoch is 'one'"),
    (("optimizer",), {"0": 5}, r"optimizer\.0 is 5"),
    (("optimizer",), {"x": {}}, "another optimizer or scheduler"),
    (("groups",), [], "another optimizer or scheduler"),
    (("scheduler",), [1], r"scheduler is \[1\]"),
]


@pytest.mark.parametrize(("keys", "value", "words"), STATES)
def test_a_state_that_is_none(root: Path, keys: tuple[str | int, ...], value: Any, words: str) -> None:
    state = root / "state" / "epoch-0001.json"
    changed(state, put(*keys, value=value))
    data = state.read_bytes()
    relist(root, state, data)
    with pytest.raises(TvgradError, match=words) as caught:
        loop(root, 2, resume=True)
    assert str(root) in str(caught.value)


def relist(root: Path, path: Path, data: bytes) -> None:
    """Make run.json tell the checksum of the changed file, as a stranger would."""
    import hashlib

    digest, relative = hashlib.sha256(data).hexdigest(), path.relative_to(root).as_posix()
    text = (root / "run.json").read_text()
    content = json.loads(text)
    entries = [content["state"], *(entry for point in content["points"] for entry in point["files"].values())]
    for entry in entries:
        entry["parts"] = [[p, digest, len(data)] if p == relative else [p, d, n] for p, d, n in entry["parts"]]
    (root / "run.json").write_text(json.dumps(content))


def test_a_scheduler_gets_no_attribute_that_it_has_not(root: Path) -> None:
    state = root / "state" / "epoch-0001.json"
    changed(state, put("scheduler", "step", value="not a method"))
    relist(root, state, state.read_bytes())
    assert loop(root, 1, resume=True).epochs == [0, 1, 2]


TABLES = [
    ("lr,batch_size\n0.1,1\n", "step"),
    ("step,lr\nx,0.1\n", "x"),
    ("step,lr\n1,0.1,7\n", ""),
    ("step,lr\n1e400,0.1\n", ""),
    ('step,lr\n1,"' + "9" * 140_000 + '"\n', "field larger than field limit"),
    ("step" + "," * 4_000_001 + "\n", "more than 4,000,000 cells"),
    ("step\n" + "1\n" * 4_000_001, "more than 4,000,000 cells"),
    ("step" + ",a" * 10_000 + "\n", "10,001 columns, and at most 10,000 are read"),
    ("", "step"),
]


@pytest.mark.parametrize(("table", "words"), TABLES)
def test_a_table_of_steps_that_is_none(root: Path, table: str, words: str) -> None:
    (root / "steps" / "epoch-0001.csv").write_text(table)
    with pytest.raises(DamagedRun, match=rf"epoch-0001\.csv cannot be read \(.*{words}"):
        Run.open(root).steps()


@pytest.mark.parametrize(
    "content",
    [
        {"order": torch.zeros(2, 2, dtype=torch.int64), "sizes": torch.tensor([4])},
        {"order": torch.zeros(2), "sizes": torch.tensor([2])},
        {"order": torch.tensor([0, 1]), "sizes": torch.tensor([3, -1])},
        {"order": torch.tensor([0, 1]), "sizes": torch.tensor([1])},
        {"order": torch.tensor([0, 1])},
    ],
)
def test_batches_that_are_none(root: Path, content: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    path = "batches/epoch-0001.safetensors"
    save_file(content, root / path)
    digest = hashlib.sha256((root / path).read_bytes()).hexdigest()

    def as_written(manifest: Any) -> None:
        for point in manifest["points"]:
            for entry in point["files"].values():
                entry["parts"] = [
                    [path, digest, (root / path).stat().st_size] if part[0] == path else part for part in entry["parts"]
                ]

    changed(root / "run.json", as_written)
    with pytest.raises(DamagedRun, match=r"epoch-0001\.safetensors holds no batches"):
        Run.open(root).batches(1)


def test_shards_that_run_json_does_not_list(root: Path) -> None:
    index = root / "weights" / "epoch-0001.safetensors.index.json"
    data = json.dumps({"weight_map": {"weight": "epoch-0001.safetensors", "bias": "epoch-0001.safetensors"}}).encode()
    index.write_bytes(data)

    def relisted(content: Any) -> None:
        relative = index.relative_to(root).as_posix()
        content["points"][1]["files"]["weights"] = {"path": relative, "parts": [[relative, "0", len(data)]]}

    changed(root / "run.json", relisted)
    assert any("not among the run's files" in problem for problem in Run.open(root).problems(checksums=False))
