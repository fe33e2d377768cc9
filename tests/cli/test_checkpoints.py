"""`tvgrad merge --pretrained`, `tvgrad relate --pretrained` and what is said where the base model is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

Tvgrad = Callable[..., Any]
Refused = Callable[..., str]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    start = {"blocks.0.weight": torch.randn(6, 4), "head.bias": torch.randn(3)}
    for name, size in {"base": 0.0, "a": 0.1, "b": 0.1}.items():
        (tmp_path / name).mkdir()
        content = {key: tensor + size * torch.randn_like(tensor) for key, tensor in start.items()}
        save_file(content, tmp_path / name / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text('{"torch_dtype": "float32"}')
    return tmp_path


def adapter(folder: Path, rank: int, out: int = 6) -> Path:
    folder.mkdir()
    names = [f"base_model.model.blocks.0.lora_{letter}.weight" for letter in "AB"]
    content = {names[0]: torch.randn(rank, 4), names[1]: torch.randn(out, rank)}
    save_file(content, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "lora_alpha": 4, "base_model_name_or_path": "somebody/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_merge(tvgrad: Tvgrad, models: Path) -> None:
    lora = adapter(models / "lora", 2)
    paths = [models / "a", models / "b", lora]
    out = models / "out"
    outcome = tvgrad("merge", "--pretrained", models / "base", *paths, "--method", "ties", "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == (
        f"{out}: 2 tensors merged from 3 models (1 of them LoRA, in weight space) by ties, alpha 1; "
        "carried along: config.json\n"
    )
    assert set(load_file(out / "model.safetensors")) == {"blocks.0.weight", "head.bias"}
    again = tvgrad("merge", "--pretrained", models / "base", *paths, "--method", "ties", "--out", out)
    assert again.code == 0
    narrow = models / "narrow"
    done = tvgrad("merge", "--pretrained", models / "base", lora, "--dtype", "bfloat16", "--out", narrow)
    assert done.code == 0
    assert load_file(narrow / "model.safetensors")["head.bias"].dtype == torch.bfloat16


def test_a_bit_that_flipped_in_what_is_no_run_is_not_noticed(tvgrad: Tvgrad, models: Path) -> None:
    """As docs/concepts/trust.md says: these files hold no checksum. The result has the changed number."""
    path, words = models / "a" / "model.safetensors", ["merge", "--pretrained", models / "base", models / "a"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x80  # the sign of the last number
    for name in ("plain", "flipped"):
        assert tvgrad(*words, "--method", "mean", "--out", models / name).code == 0
        path.write_bytes(content)
    plain, flipped = (load_file(models / name / "model.safetensors") for name in ("plain", "flipped"))
    assert sum(int((plain[name] != flipped[name]).sum()) for name in plain) == 1


def test_relate(tvgrad: Tvgrad, models: Path) -> None:
    outcome = tvgrad("relate", "--pretrained", models / "base", models / "a", models / "b", "--out", models / "t.csv")
    assert outcome.code == 0
    assert "weight space; a = a, b = b" in outcome.out
    assert outcome.out.splitlines()[-1].startswith("The task vectors of a and b ")
    assert (models / "t.csv").read_text().startswith("run_a,run_b,group,cos_task_vectors,sign_agreement,")
    pair = adapter(models / "lora-2", 2), adapter(models / "lora-3", 3)
    alone = tvgrad("relate", *pair)
    assert alone.code == 0
    assert "adapters are compared in weight space (dW = s B A)" in alone.out
    assert "sign_agreement" not in alone.out
    assert tvgrad("relate", *pair, "--quiet").out == alone.out.splitlines()[-1] + "\n"


def test_refusals(tvgrad: Tvgrad, refused: Refused, models: Path) -> None:
    lora, base = adapter(models / "lora", 2), models / "base"
    taken = "which report, relate and merge take with --pretrained BASE, the model that it was trained from"
    out = ("--out", models / "merged.safetensors")
    assert refused("merge", lora, *out) == f"{lora} is an adapter without its base model, {taken}"
    assert refused("report", lora) == f"{lora} is an adapter without its base model, {taken}"
    assert refused("relate", lora, models / "a") == f"{lora} is an adapter without its base model, {taken}"
    assert refused("merge", models / "a", *out) == f"{models / 'a'} is a checkpoint and no run, {taken}"
    merge = ("merge", "--pretrained", base, models / "a")
    assert "is to be a folder with --pretrained" in refused(*merge, *out)
    assert "leave them out with --pretrained" in refused(*merge, "--epoch", "1", "--out", models / "m")
    assert "there is no --dtype 'int8'" in refused(*merge, "--dtype", "int8", "--out", models / "m")
    assert "--dtype is about checkpoints" in refused("merge", models / "a", "--dtype", "float32", *out)
    assert "ties merges at least 2 tasks" in refused(*merge, "--method", "ties", "--out", models / "m")
    other = adapter(models / "other", 2, out=5)
    assert "changes blocks.0.weight in shape (5, 4)" in refused("report", "--pretrained", base, other)
    assert "give two of one model" in refused("relate", lora, other)
    assert "is given twice" in refused("relate", lora, lora)
    assert not (models / "m").exists()
