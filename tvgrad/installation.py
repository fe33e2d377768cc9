"""What this installation of Python, PyTorch and tvgrad can do: versions, devices, kernels, disk, optional packages.

The numerical checks are run, not looked up in a list of versions: what a kernel does depends on the build and on the
machine. Each compares PyTorch with plain arithmetic that shares no kernel with it.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement
from torch.nn.functional import scaled_dot_product_attention

from tvgrad.files.user_cache import cache_folder
from tvgrad.numerics.precision import full_precision
from tvgrad.results import Result
from tvgrad.update_rules.rounding import gradient_step_rounding_bound
from tvgrad.wording import bytes_in_words

OK, NOTE, WARNING, FAILED = "ok", "note", "warning", "failed"
LITTLE_ROOM = 1_000_000_000
WRONG = 1e-8
"""Rounding leaves a second derivative in float64 right to 1e-13 or so; a missing or wrong term is off by percents."""


@dataclass(frozen=True)
class Check(Result):
    """One thing that was looked at.

    Attributes:
        what: its name.
        state: ok, note (nothing to do), warning (avoid it) or failed (tvgrad's numbers cannot be relied on).
        words: what was found, and what to do.
    """

    what: str
    state: str
    words: str


def examine(device: torch.device, folder: Path) -> list[Check]:
    """Look at everything that tvgrad relies on.

    Args:
        device: where numbers will be computed.
        folder: where runs will be written.

    Returns:
        What was found, in the order in which it should be read.
    """
    return [
        _versions(),
        *map(_package, _requirements()),
        _device(device),
        _attention(device),
        *(_one_step(dtype, device) for dtype in (torch.float64, torch.float32, torch.bfloat16)),
        _fused(device),
        _room("disk", folder),
        _room("cache", cache_folder()),
        *map(_extra, metadata.metadata("tvgrad").get_all("Provides-Extra", [])),
    ]


def _versions() -> Check:
    system = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("versions", OK, f"tvgrad {metadata.version('tvgrad')}, {system}")


def _requirements(extra: str = "") -> list[Requirement]:
    """What the installed metadata asks for in any case, or for an extra alone."""
    every = [Requirement(line) for line in metadata.requires("tvgrad") or ()]
    return [one for one in every if (one.marker.evaluate({"extra": extra}) if one.marker else not extra)]


def _package(required: Requirement) -> Check:
    name, version = required.name, _version(required.name)
    if version is None:
        return Check(name, FAILED, f"is not installed: pip install {name}")
    if not required.specifier.contains(version, prereleases=True):
        return Check(name, FAILED, f"{version} is too old: pip install '{name}{required.specifier}'")
    return Check(name, OK, version)


def _extra(extra: str) -> Check:
    versions = {one.name: _version(one.name) for one in _requirements(extra)}
    missing = ", ".join(name for name, version in versions.items() if version is None)
    present = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    lacking = f"not installed: {missing} (pip install 'tvgrad[{extra}]')" if missing else ""
    return Check(f"extra {extra}", NOTE if missing else OK, "; ".join(part for part in (present, lacking) if part))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device(device: torch.device) -> Check:
    words = f"{device}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        words += f", {properties.name}, {bytes_in_words(properties.total_memory)}"
    elif torch.cuda.is_available():
        words += f"; {torch.cuda.device_count()} CUDA devices are there too"
    return Check("device", OK, words)


def _attention(device: torch.device) -> Check:
    """Second derivatives of attention under the MATH kernel, against the formula differentiated twice backward."""
    what = "attention, second derivatives"
    generator = torch.Generator().manual_seed(0)
    try:
        point, along = (torch.randn(3, 2, 5, 4, generator=generator, dtype=torch.float64).to(device) for _ in range(2))
    except (RuntimeError, TypeError):
        return Check(what, WARNING, f"{device} has no float64, so they were not checked: use --device cpu for those")
    try:
        with full_precision(device, second_order=True):
            found = torch.func.jvp(torch.func.grad(_of_kernel), (point,), (along,))[1]
            point.requires_grad_(True)
            (gradient,) = torch.autograd.grad(_of_formula(point), point, create_graph=True)
            (exact,) = torch.autograd.grad(gradient, point, along)
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        return Check(what, FAILED, f"the MATH kernel has none ({reason}): use a model with plain attention")
    off = float((found - exact).norm() / exact.norm())
    if not off <= WRONG:
        return Check(what, FAILED, f"the MATH kernel's are off by {off:.1g}: use a model with plain attention")
    return Check(what, OK, f"the MATH kernel has them, right to {off:.0e}")


def _of_kernel(point: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(point[0], point[1], point[2]).square().sum()


def _of_formula(point: torch.Tensor) -> torch.Tensor:
    scores = point[0] @ point[1].transpose(-1, -2) / math.sqrt(point.shape[-1])
    weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    return (weights @ point[2]).square().sum()


def _stepped(dtype: torch.dtype, device: torch.device, fused: bool) -> tuple[float, float]:
    """One step of SGD: worst ratio of a coordinate to its rounding bound, and share of coordinates left unmoved."""
    generator = torch.Generator().manual_seed(1)
    before, gradient = (torch.randn(4099, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    lr = 0.3
    parameter = torch.nn.Parameter(before.to(device, copy=True))
    parameter.grad = gradient.to(device)
    torch.optim.SGD([parameter], lr=lr, fused=fused).step()
    after = parameter.detach().cpu()
    step = lr * gradient.double()
    bound = gradient_step_rounding_bound(after.double(), before.double(), step, gradient.double(), dtype)
    deviation = (after.double() - before.double() + step).abs()
    return float((deviation / bound).max()), float((after == before).double().mean())


def _one_step(dtype: torch.dtype, device: torch.device) -> Check:
    name = str(dtype).removeprefix("torch.")
    what = f"one step in {name}"
    try:
        worst, _ = _stepped(dtype, device, fused=False)
    except (RuntimeError, TypeError) as error:
        return Check(what, WARNING, f"{device} cannot do it ({str(error).splitlines()[0]}): use another --dtype")
    if worst <= 1:
        return Check(what, OK, f"SGD stays within its rounding bound (worst ratio {worst:.3f})")
    words = f"SGD exceeds its rounding bound {worst:.3g} times"
    if device.type == "cpu":
        return Check(what, FAILED, f"{words}: `tvgrad verify` will not find exact runs here; use another torch")
    return Check(what, WARNING, f"{words}, which is derived for kernels of the CPU: verify may say `fails` for {name}")


def _fused(device: torch.device) -> Check:
    what = "SGD(fused=True) in bfloat16"
    try:
        worst, still = _stepped(torch.bfloat16, device, fused=True)
    except (RuntimeError, TypeError) as error:
        return Check(what, NOTE, f"is not available ({str(error).splitlines()[0]})")
    if worst <= 1:
        return Check(what, OK, "trains every coordinate")
    words = f"leaves {still:.0%} of the coordinates untrained, a defect of this PyTorch: use fused=False"
    return Check(what, WARNING, words)


def _room(what: str, folder: Path) -> Check:
    place = folder.absolute()
    existing = next(one for one in (place, *place.parents) if one.exists())
    free = shutil.disk_usage(existing).free
    words = f"{bytes_in_words(free)} free in {place}"
    if not _writable(existing):
        return Check(what, WARNING, f"{place} cannot be written: choose another folder")
    if free < LITTLE_ROOM:
        return Check(what, WARNING, f"{words}: little for runs of a large model")
    return Check(what, OK, words)


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as handle:
            handle.write(b"tvgrad")
            handle.flush()
    except OSError:  # it is a file, say
        return False
    return os.access(folder, os.W_OK)
