"""Gradients at weights that exist already: of a script's run, and of checkpoint files."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from tvgrad.cli.main import main

from tvgrad import Recorder, Run, TvgradError
from tvgrad.integrations.checkpoints import add_gradients, read_checkpoint

RECIPE = """
import torch
from torch import nn
import tvgrad

def recipe():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(12, 3, dtype=torch.float64)
    return tvgrad.Recipe(model, nn.functional.mse_loss, (x, x.sum(1, keepdim=True)), name="sums")
"""


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "task.py").write_text(RECIPE)
    return str(tmp_path / "task.py")


def model_and_data() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    return model, torch.randn(12, 3, dtype=torch.float64)


def gradient_of(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    loss = nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


def test_gradients_are_added_to_a_run(tmp_path: Path, target: str) -> None:
    model, x = model_and_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    exact = [gradient_of(model, x)]
    with Recorder(tmp_path / "run", model, optimizer) as recorder:
        for _ in range(2):
            for name, gradient in gradient_of(model, x).items():
                model.get_parameter(name).grad = gradient
            optimizer.step()
            recorder.end_epoch()
            exact.append(gradient_of(model, x))
    run = add_gradients(tmp_path / "run", target)
    assert not run.problems()
    assert run.having("gradient") == [0, 1, 2]
    assert run.having("epoch_gradient") == [1, 2]
    for epoch, truth in enumerate(exact):
        for name, tensor in run.gradient(epoch).items():
            torch.testing.assert_close(tensor, truth[name], rtol=1e-12, atol=1e-14)
    assert run.info["recipe"]["task"] == "sums"
    assert run.info["record"] == ["gradients", "epoch-gradients"]


def test_checkpoints_on_the_command_line(tmp_path: Path, target: str) -> None:
    model, x = model_and_data()
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    exact = [gradient_of(model, x)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    exact.append(gradient_of(model, x))
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "tuned.pt")
    files = [str(tmp_path / "base.safetensors"), str(tmp_path / "tuned.pt")]
    main(["trace", "--from-checkpoints", *files, "--recipe", target, "--out", str(tmp_path / "run")])
    run = Run.open(tmp_path / "run")
    assert run.epochs == [0, 1]
    for epoch, truth in enumerate(exact):
        for name, tensor in run.gradient(epoch).items():
            torch.testing.assert_close(tensor, truth[name], rtol=1e-12, atol=1e-14)
    assert torch.equal(run.weights(1)["0.weight"], model[0].weight)


class Trap:
    """Does something when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("the trap has sprung",)


def test_code_in_a_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(tmp_path / "plain.pt", "wb") as handle:
        pickle.dump(Trap(), handle)
    torch.save({"state_dict": Trap()}, tmp_path / "new.pt")
    for name in ("plain.pt", "new.pt"):
        with pytest.raises(TvgradError, match="holds more than tensors"):
            read_checkpoint(tmp_path / name)
    assert "sprung" not in capsys.readouterr().out


@pytest.mark.parametrize("change", ["missing", "strange", "shape"])
def test_a_checkpoint_of_another_model(
    tmp_path: Path, target: str, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = model_and_data()[0].state_dict()
    if change == "missing":
        del content["0.bias"]
    elif change == "strange":
        content["more"] = torch.zeros(2)
    else:
        content["0.bias"] = torch.zeros(5)
    save_file(content, tmp_path / "other.safetensors")
    arguments = ["trace", "--from-checkpoints", str(tmp_path / "other.safetensors"), "--recipe", target]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "does not fit the recipe's model" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TvgradError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pt")
