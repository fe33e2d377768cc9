"""The same checkpoints merged by mergekit and here: equal to one rounding where the methods are the same.

mergekit computes in the checkpoints' own type; here differences are formed and merged in float64 and rounded once. So a
coordinate may come out as a neighbouring number, as far as the roundings of mergekit's own arithmetic reach.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("mergekit", reason="mergekit is not installed (pip install mergekit)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra hf)")

from mergekit.config import MergeConfiguration  # noqa: E402
from mergekit.merge import run_merge  # noqa: E402
from mergekit.options import MergeOptions  # noqa: E402

from tvgrad.merging import METHODS, merge_checkpoints  # noqa: E402

NAMES = ("a", "b", "c")
DENSITY, GAMMA = 0.25, 0.0625  # whole numbers of entries of every tensor: each library rounds down in its own way


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small Llama and three models near it, in float32."""
    root = tmp_path_factory.mktemp("models")
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = {}
    for name in ("base", *NAMES):
        if name != "base":
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    parameter.copy_(start[key] + 1e-3 * torch.randn(parameter.shape))
        found[name] = root / name
        model.save_pretrained(root / name)
    return found


def by_mergekit(folders: dict[str, Path], out: Path, method: str, shared: dict[str, Any], own: dict[str, Any]) -> Any:
    models = [{"model": str(folders[name]), "parameters": own} for name in NAMES]
    base = {} if method == "linear" else {"base_model": str(folders["base"])}
    config = {"merge_method": method, "models": models, "parameters": shared, "dtype": "float32", **base}
    run_merge(MergeConfiguration.model_validate(config), str(out), MergeOptions(copy_tokenizer=False, quiet=True))
    return load_file(out / "model.safetensors")


def by_tvgrad(folders: dict[str, Path], out: Path, method: Any, alpha: float) -> Any:
    made = merge_checkpoints(method, folders["base"], [folders[name] for name in NAMES], alpha=alpha, out=out)
    return load_file(made.path)


CASES = {
    "task_arithmetic": (METHODS["task_arithmetic"](), 0.4, {"normalize": False}, {"weight": 0.4}),
    "linear": (METHODS["mean"](), 1.0, {"normalize": True}, {"weight": 1.0}),
    "ties": (METHODS["ties"](density=DENSITY), 0.7, {"lambda": 0.7}, {"weight": 1.0, "density": DENSITY}),
    "breadcrumbs": (
        METHODS["breadcrumbs"](density=DENSITY + GAMMA, outliers=GAMMA),
        0.5,
        {},
        {"weight": 0.5, "density": DENSITY, "gamma": GAMMA},
    ),
    # mergekit sums the entries of the elected sign unless it is told to take their mean, which TIES is
    "breadcrumbs_ties": (
        METHODS["breadcrumbs_ties"](density=DENSITY + GAMMA, outliers=GAMMA),
        0.7,
        {"lambda": 0.7, "normalize": True},
        {"weight": 1.0, "density": DENSITY, "gamma": GAMMA},
    ),
    "dare_ties": (METHODS["dare_ties"](density=1.0), 0.7, {"lambda": 0.7, "normalize": True}, {"weight": 1.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_methods_of_both_give_the_same_to_one_rounding(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    method, alpha, shared, own = CASES[name]
    theirs = by_mergekit(folders, tmp_path / "theirs", name, shared, own)
    ours = by_tvgrad(folders, tmp_path / "ours", method, alpha)
    base, *tuned = (load_file(folders[one] / "model.safetensors") for one in ("base", *NAMES))
    assert set(theirs) == set(ours)
    for key, tensor in ours.items():
        away = (tensor.double() - theirs[key].double()).abs()
        # Half a unit for either result; mergekit also rounds each difference, its product with a weight, and the sums.
        changes = torch.stack([one[key].double() - base[key].double() for one in tuned]).abs().sum(0)
        size = tensor.double().abs() + (4 * changes if name != "linear" else 4 * base[key].double().abs())
        farther = int((away > torch.finfo(torch.float32).eps * size).sum())
        assert farther == 0, f"{farther} of {tensor.numel()} entries of {key} are more than one rounding away"


def test_dare_of_both_keeps_a_share_and_scales_differently(folders: dict[str, Path], tmp_path: Path) -> None:
    """Other random numbers, and mergekit scales to keep the sum of magnitudes: about 1 / density, not exactly."""
    theirs = by_mergekit(folders, tmp_path / "theirs", "dare_linear", {}, {"weight": 1.0, "density": 0.5})
    ours = by_tvgrad(folders, tmp_path / "ours", METHODS["dare"](density=0.5), 1.0)
    base = load_file(folders["base"] / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    changes = [one[name].double() - base[name].double() for one in (theirs, ours)]
    vectors = [load_file(folders[task] / "model.safetensors")[name].double() - base[name].double() for task in NAMES]
    spread = torch.stack(vectors).square().sum(0)  # the variance of each entry's sum at density one half
    for change in changes:
        away = (change - torch.stack(vectors).sum(0)).square().mean() / spread.mean()
        assert abs(float(away) - 1) < 0.15
        assert abs(float((change == 0).double().mean()) - 0.125) < 0.03  # dropped by all three tasks
    assert not torch.equal(*changes)


def test_dare_ties_of_both_keeps_the_same_shares(folders: dict[str, Path], tmp_path: Path) -> None:
    """Other random numbers: an entry is 0 where all three tasks dropped it, and of the elected sign elsewhere."""
    shared, own = {"normalize": True, "rescale": True}, {"weight": 1.0, "density": 0.5}
    theirs = by_mergekit(folders, tmp_path / "theirs", "dare_ties", shared, own)
    ours = by_tvgrad(folders, tmp_path / "ours", METHODS["dare_ties"](density=0.5), 1.0)
    base = load_file(folders["base"] / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    sizes = []
    for made in (theirs, ours):
        change = made[name].double() - base[name].double()
        assert abs(float((change == 0).double().mean()) - 0.125) < 0.03
        sizes.append(float(change.abs().mean()))
    assert abs(sizes[0] / sizes[1] - 1) < 0.1


def test_slerp_of_both_is_the_same_arc(tmp_path: Path) -> None:
    """mergekit turns one model into the other; here the arc is between task vectors: the same from a model of zeros.

    mergekit works in float32: the cosine of n entries is off by at most log2(n) units when it is summed in pairs, and
    its angle, sines and products by a few more.
    """
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=1.0,
    )  # fmt: skip
    torch.manual_seed(0)
    for name in ("a", "b", "base"):
        model = transformers.LlamaForCausalLM(config)
        if name == "base":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.zero_()
        model.save_pretrained(tmp_path / name)
    models = [{"model": str(tmp_path / name)} for name in ("a", "b")]
    told = {"merge_method": "slerp", "models": models, "base_model": str(tmp_path / "a"), "dtype": "float32"}
    settings = MergeConfiguration.model_validate({**told, "parameters": {"t": 0.3}})
    run_merge(settings, str(tmp_path / "theirs"), MergeOptions(copy_tokenizer=False, quiet=True))
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    made = merge_checkpoints(
        METHODS["slerp"](toward=0.3), tmp_path / "base", [tmp_path / "a", tmp_path / "b"], alpha=1.0, out=tmp_path / "o"
    )
    ours, parts = load_file(made.path), [load_file(tmp_path / name / "model.safetensors") for name in ("a", "b")]
    assert set(theirs) == set(ours)
    for key, tensor in ours.items():
        size = sum(part[key].double().abs() for part in parts)
        units = float(torch.tensor(float(tensor.numel())).log2()) + 8
        away = (tensor.double() - theirs[key].double()).abs()
        assert bool((away <= units * torch.finfo(torch.float32).eps * size).all()), key
    straight = 0.7 * parts[0]["lm_head.weight"] + 0.3 * parts[1]["lm_head.weight"]
    assert float((ours["lm_head.weight"] - straight).abs().max()) > 0.1
