"""What `tvgrad doctor` finds, on this machine and where something is wrong."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from tvgrad import installation
from tvgrad.installation import FAILED, NOTE, OK, WARNING, Check, examine

CPU = torch.device("cpu")


def found(tmp_path: Path) -> dict[str, Check]:
    checks = examine(CPU, tmp_path)
    assert len({check.what for check in checks}) == len(checks)
    return {check.what: check for check in checks}


def test_this_machine(tmp_path: Path) -> None:
    checks = found(tmp_path)
    assert not [check for check in checks.values() if check.state == FAILED]
    assert checks["torch"] == Check("torch", OK, metadata.version("torch"))
    assert {f"extra {name}" for name in ("hf", "lightning", "suite", "docs", "dev")} <= set(checks)
    assert checks["extra dev"].words.startswith("build ")
    for name in ("float64", "float32", "bfloat16"):
        assert checks[f"one step in {name}"].words.startswith("SGD stays within its rounding bound (worst ratio 0.")
    assert checks["attention, second derivatives"].words.startswith("the MATH kernel has them, right to ")


def test_the_fused_kernel_is_told_as_it_is(tmp_path: Path) -> None:
    """An oracle of its own: coordinates that a step of half their own size leaves where they are."""
    parameter = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD([parameter], lr=0.5, fused=True).step()
    check = found(tmp_path)["SGD(fused=True) in bfloat16"]
    if bool((parameter == 1).any()):
        assert check.state == WARNING
        assert check.words.endswith("of the coordinates untrained, a defect of this PyTorch: use fused=False")
    else:
        assert check == Check(check.what, OK, "trains every coordinate")


def test_a_kernel_with_a_wrong_second_derivative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = installation.scaled_dot_product_attention

    class Frozen(torch.autograd.Function):
        """The right first derivative, whose own derivative is taken to be half of what it is."""

        @staticmethod
        def forward(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient.detach() / 2 + gradient / 2

        @staticmethod
        def jvp(ctx: Any, tangent: torch.Tensor) -> torch.Tensor:
            return tangent / 2

    monkeypatch.setattr(installation, "scaled_dot_product_attention", lambda *parts: Frozen.apply(exact(*parts)))
    check = found(tmp_path)["attention, second derivatives"]
    assert check.state == FAILED
    assert check.words.startswith("the MATH kernel")
    assert check.words.endswith(": use a model with plain attention")


def test_a_kernel_without_second_derivatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("the derivative for aten::attention is not implemented\nsee the documentation")

    monkeypatch.setattr(installation, "scaled_dot_product_attention", lacking)
    check = found(tmp_path)["attention, second derivatives"]
    assert check.state == FAILED
    assert "has none (the derivative for aten::attention is not implemented): use" in check.words


def test_an_optimizer_that_rounds_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Coarse(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                group["lr"] *= 1.01
            super().step(closure)

    monkeypatch.setattr(torch.optim, "SGD", Coarse)
    checks = found(tmp_path)
    for name in ("float64", "float32", "bfloat16"):
        assert checks[f"one step in {name}"].state == FAILED
        assert "exceeds its rounding bound" in checks[f"one step in {name}"].words


def test_packages_that_are_old_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.5.1", "numpy": None, "pytest": None}
    real = installation._version
    monkeypatch.setattr(installation, "_version", lambda name: versions.get(name, real(name)))
    checks = found(tmp_path)
    assert checks["torch"] == Check("torch", FAILED, "2.5.1 is too old: pip install 'torch>=2.6'")
    assert checks["numpy"] == Check("numpy", FAILED, "is not installed: pip install numpy")
    assert checks["extra dev"].state == NOTE
    assert checks["extra dev"].words.endswith("; not installed: pytest (pip install 'tvgrad[dev]')")


def test_little_room_and_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    (tmp_path / "file").touch()
    monkeypatch.setenv("TVGRAD_CACHE", str(tmp_path / "file"))
    checks = found(tmp_path / "not" / "there")
    there = tmp_path / "not" / "there"
    assert checks["disk"] == Check("disk", WARNING, f"3 MB free in {there}: little for runs of a large model")
    words = f"{tmp_path / 'file'} cannot be written: choose another folder"
    assert checks["cache"] == Check("cache", WARNING, words)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_gpu_is_examined(tmp_path: Path) -> None:
    checks = {check.what: check for check in examine(torch.device("cuda", 0), tmp_path)}
    assert torch.cuda.get_device_name(0) in checks["device"].words
    assert checks["attention, second derivatives"].state == OK
