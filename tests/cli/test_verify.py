"""`tvgrad verify`: what it prints, and its exit codes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tvgrad.cli.main import main

from tests.traced_runs import Tampered, Traced, digits, digits_cache, tampered, traced
from tvgrad.store.run import Run

__all__ = ["digits", "digits_cache", "tampered", "traced"]

Called = Callable[..., tuple[int, str, str]]

RECIPE = """
from pathlib import Path
Path({marker!r}).touch()
import torch, tvgrad
from torch import nn

def recipe():
    torch.manual_seed(0)
    data = torch.randn(20, 3) + {shift}, torch.randint(0, 2, (20,))
    return tvgrad.Recipe(nn.Linear(3, 2), nn.CrossEntropyLoss(), data, name="planted", epochs=2)
"""


@pytest.fixture
def tvgrad(capsys: pytest.CaptureFixture[str]) -> Called:
    """tvgrad(words ...) -> exit code, output, errors."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            main([str(word) for word in words])
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def copied(traced: Traced, tmp_path: Path) -> Path:
    """A directory of two runs that may be damaged."""
    root = tmp_path / "runs"
    for task in ("low", "rotated"):
        shutil.copytree(traced(task).root, root / task)
    return root


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_clean_runs(tvgrad: Called, copied: Path) -> None:
    code, out, err = tvgrad("verify", copied)
    assert (code, err) == (0, "")
    first, *runs = (line for line in out.splitlines() if not line.startswith(" "))
    # three epochs cost the task rotated some accuracy, less than its few test samples can tell from chance
    both = "Task vector = -lr x full-batch gradient after the first epoch: yes for 2: "
    assert first.startswith(both)
    run_json = copied / "rotated" / "run.json"
    content = json.loads(run_json.read_text())
    content["info"]["test_samples"] *= 100
    run_json.write_text(json.dumps(content))
    hurt = tvgrad("verify", copied)[1].splitlines()[0]
    worse = r"Hurt by fine-tuning: rotated, it ends worse than the pretrained model \(accuracy 0\.\d+ after epoch 3, "
    assert re.match(worse + r"0\.\d+ before\)\. " + both, hurt)
    assert "Optimizer step: exact for every run" in first
    assert runs == [
        "low: 4 points whole",
        "rotated: 4 points whole",
        "All 2 runs pass.",
    ]
    exact = r"tau_1 = -lr g_0: exact \(worst ratio to the rounding bound [01]\.\d{3}\); every coordinate"
    assert len(re.findall(exact, out)) == 2


def test_a_run_named_twice_is_checked_once(tvgrad: Called, copied: Path) -> None:
    code, out, _ = tvgrad("verify", copied, copied / "low")
    assert code == 0
    assert out.count("low: 4 points whole") == 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda run: flip_last_byte(run / "weights/epoch-0002.safetensors"), "does not have the checksum"),
        (lambda run: flip_last_byte(run / "gradients/epoch-0003.safetensors"), "does not have the checksum"),
        (lambda run: (run / "weights/epoch-0001.safetensors").unlink(), "is missing"),
        (lambda run: (run / "weights/epoch-0000.safetensors").write_bytes(b"short"), "has 5 bytes instead of"),
        (lambda run: (run / "run.json").write_text("{"), "is not a run's description"),
        (lambda run: (run / "run.json").write_text('{"format": "tvgrad run", "version": 1}'), "is damaged"),
    ],
)
def test_a_damaged_run_is_named_and_the_others_are_still_checked(
    tvgrad: Called, copied: Path, damage: Callable[[Path], object], says: str
) -> None:
    damage(copied / "low")
    code, out, err = tvgrad("verify", copied)
    assert code == 1
    assert re.search(rf"low: damaged\n  .*{says}", out)
    assert "rotated: 4 points whole" in out
    assert err == "Error: 1 of 2 runs did not pass\n"


def test_json_carries_the_fields_of_the_report(tvgrad: Called, copied: Path, tmp_path: Path) -> None:
    code, out, err = tvgrad("verify", copied, "--json")
    found = json.loads(out, parse_constant=pytest.fail)
    assert (code, err) == (0, "")
    whole = {"points": 4, "problems": [], "replay": None, "chunks": None, "passed": True}
    assert found["runs"] == [{"run": name, **whole} for name in ("low", "rotated")]
    assert tvgrad("report", copied, "--out", tmp_path / "report", "--format", "json")[0] == 0
    assert found["equivalence"] == json.loads((tmp_path / "report/equivalence.json").read_text())


def test_json_of_a_damaged_run(tvgrad: Called, copied: Path) -> None:
    flip_last_byte(copied / "low/weights/epoch-0002.safetensors")
    (copied / "rotated/run.json").write_text("{")
    code, out, err = tvgrad("verify", copied, "--json")
    assert (code, err) == (1, "Error: 2 of 2 runs did not pass\n")
    low, rotated = json.loads(out)["runs"]
    assert (low["run"], low["passed"], len(low["problems"])) == ("low", False, 1)
    assert rotated["problems"][0].count("is not a run's description") == 1
    assert json.loads(out)["equivalence"] == []


def test_a_header_that_cannot_be_read(tvgrad: Called, copied: Path) -> None:
    path = copied / "low/weights/epoch-0001.safetensors"
    content = bytearray(path.read_bytes())
    content[8:20] = b"x" * 12
    path.write_bytes(content)
    code, out, _ = tvgrad("verify", copied)
    assert code == 1
    assert "low: damaged" in out
    assert "rotated: 4 points whole" in out


def edit(content: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    content["encoder.0.weight"][3, 4] += 1e-3
    return content


def test_edited_weights_with_a_checksum_that_fits(tvgrad: Called, traced: Traced, tampered: Tampered) -> None:
    run = tampered(traced("rotated"), "weights", 1, edit)
    code, out, err = tvgrad("verify", run.root)
    assert code == 1
    assert "tau_1 = -lr g_0: fails (worst ratio to the rounding bound" in out
    assert err == "Error: 1 of 1 runs did not pass\n"


def test_a_rule_that_does_not_apply_is_no_failure(tvgrad: Called, traced: Traced) -> None:
    code, out, _ = tvgrad("verify", traced("rotated", optimizer="sgd", batch_size=300).root)
    assert code == 0
    assert "tau_1 = -lr g_0: does not apply; epoch 1 took 3 steps" in out


@pytest.mark.parametrize("words", [("--replay",), ("--recipe", "digits")])
def test_replay_and_recipe_go_together(tvgrad: Called, copied: Path, words: tuple[str, ...]) -> None:
    code, out, err = tvgrad("verify", copied, *words)
    assert (code, out) == (2, "")
    assert err == "Error: --replay and --recipe go together: give `--replay --recipe TARGET`\n"


def test_replay(tvgrad: Called, copied: Path) -> None:
    code, out, _ = tvgrad("verify", copied, "--replay", "--recipe", "digits")
    assert code == 0
    assert out.count("replay: all 4 gradients have the same bits") == 2
    said = r"chunks: in chunks of \d+ in place of \d+ samples the gradient at epoch 0 differs by \S+ of its norm, "
    estimate = r"within \S+ \(an estimate: ten times the rounding that is measured against float64\)"
    assert len(re.findall(said + estimate, out)) == 2


def test_a_replay_that_differs_fails_once(tvgrad: Called, traced: Traced, tampered: Tampered) -> None:
    def stretch(content: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: 1.01 * tensor for name, tensor in content.items()}

    run = tampered(traced("rotated"), "gradient", 0, stretch)  # the first epoch is no longer exact, either
    code, out, err = tvgrad("verify", run.root, "--replay", "--recipe", "digits")
    assert code == 1
    assert "more than rounding" in out
    assert err == "Error: 1 of 1 runs did not pass\n"


def planted(folder: Path, shift: float = 0.0) -> tuple[Path, Path]:
    marker, path = folder / "marker", folder / f"planted{int(shift)}.py"
    path.write_text(RECIPE.format(marker=str(marker), shift=shift))
    return path, marker


def test_code_that_a_run_names_is_never_run(tvgrad: Called, tmp_path: Path) -> None:
    path, marker = planted(tmp_path)
    assert tvgrad("trace", path, "--out", tmp_path / "run", "--quiet")[0] == 0
    assert Run.open(tmp_path / "run").info["recipe"]["target"] == str(path)
    marker.unlink()
    assert tvgrad("verify", tmp_path / "run")[0] == 0
    assert tvgrad("report", tmp_path / "run")[0] == 0
    assert tvgrad("report", tmp_path / "run", "--out", tmp_path / "report")[0] == 0
    assert not marker.exists()
    assert tvgrad("verify", tmp_path / "run", "--replay", "--recipe", path)[0] == 0
    assert marker.exists()


def test_replay_with_other_data(tvgrad: Called, tmp_path: Path) -> None:
    path, _ = planted(tmp_path)
    other, _ = planted(tmp_path, shift=1.0)
    tvgrad("trace", path, "--out", tmp_path / "run", "--quiet")
    code, _, err = tvgrad("verify", tmp_path / "run", "--replay", "--recipe", other)
    assert code == 2
    assert re.fullmatch(r"Error: the recipe's training data is not what .* its fingerprint differs\n", err)


@pytest.mark.parametrize("place", ["nowhere", "empty", "file"])
def test_what_is_no_run(tvgrad: Called, tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    code, out, err = tvgrad("verify", tmp_path / place)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"Error: .*: give the --out of a `tvgrad trace`\n", err)


def test_a_run_of_another_format_version(tvgrad: Called, copied: Path) -> None:
    path = copied / "low/run.json"
    path.write_text(path.read_text().replace('"version": 1,', '"version": 99,', 1))
    code, _, err = tvgrad("verify", copied)
    assert code == 2
    assert "format version 99" in err
