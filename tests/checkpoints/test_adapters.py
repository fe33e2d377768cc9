"""LoRA adapters as peft writes them: read, compared and merged in weight space, against peft's own merge."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tvgrad.errors import TvgradError
from tvgrad.merging import METHODS, merge_checkpoints, merge_vectors
from tvgrad.report.checkpoint_relation import relate_adapters, relate_checkpoints
from tvgrad.report.checkpoints import checkpoint_tables

peft = pytest.importorskip("peft", reason="peft is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra hf)")

EPS = torch.finfo(torch.float32).eps


def tiny_llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config)


def tiny_gpt2() -> Any:
    """Its layers keep their weights transposed."""
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    )


def adapted(model: Any, seed: int, **options: Any) -> Any:
    """A copy of the model with an adapter whose factors are random."""
    torch.manual_seed(seed)
    made = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**options))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]},
    "patterns": {
        "r": 2,
        "use_rslora": True,
        "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {"down_proj": 4},
        "alpha_pattern": {"layers.0.mlp.down_proj": 7},
    },
    "embedding": {"r": 2, "target_modules": ["embed_tokens", "o_proj"], "modules_to_save": ["norm"]},
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def merged_by_peft(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in copy.deepcopy(model).merge_and_unload().state_dict().items()}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_one_adapter_merged_is_what_peft_merges(kind: str, base: Path, tmp_path: Path) -> None:
    model = adapted(tiny_llama(), 1, **ADAPTERS[kind])
    folder = saved(model, tmp_path / kind)
    made = merge_checkpoints(METHODS["task_arithmetic"](), base, [folder], alpha=1.0, out=tmp_path / "out")
    assert made.adapters == 1
    expected, found = merged_by_peft(model), load_file(made.path)
    start = load_file(base / "model.safetensors")
    moved = 0
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=4 * EPS, atol=4 * EPS)
        moved += not torch.equal(tensor, start[name])
    assert moved >= 4
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(opened(tokens).logits, model.eval()(tokens).logits, rtol=1e-4, atol=1e-5)


def test_layers_that_keep_their_weights_transposed(tmp_path: Path) -> None:
    model = adapted(tiny_gpt2(), 1, r=3, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    tiny_gpt2().save_pretrained(tmp_path / "base")
    folder = saved(model, tmp_path / "adapter")
    made = merge_checkpoints(METHODS["task_arithmetic"](), tmp_path / "base", [folder], alpha=1.0, out=tmp_path / "out")
    expected = merged_by_peft(model)
    for name, tensor in load_file(made.path).items():
        torch.testing.assert_close(tensor, expected[name], rtol=4 * EPS, atol=4 * EPS)


def changes(model: Any, start: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`dW` in float64, by peft's factors multiplied out whole."""
    found = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in start.items()}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            product = module.lora_B["default"].weight.double() @ module.lora_A["default"].weight.double()
            found[f"{name}.weight"] = (module.scaling["default"] * product).detach()
    return found


def test_adapters_and_a_checkpoint_are_merged_in_weight_space(base: Path, tmp_path: Path) -> None:
    """Different ranks and targets, and a model that was tuned whole."""
    start = load_file(base / "model.safetensors")
    models = [adapted(tiny_llama(), seed, **ADAPTERS[kind]) for seed, kind in enumerate(("plain", "patterns"), start=1)]
    paths = [saved(model, tmp_path / f"adapter-{number}") for number, model in enumerate(models)]
    torch.manual_seed(5)
    whole = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in start.items()}
    save_file(whole, tmp_path / "whole.safetensors")
    vectors = [changes(model, start) for model in models]
    vectors.append({name: whole[name].double() - start[name].double() for name in start})
    for method in ("ties", "mean", "tsv_m"):
        made = merge_checkpoints(
            METHODS[method](), base, [*paths, tmp_path / "whole.safetensors"], alpha=0.5, out=tmp_path / method
        )
        expected = merge_vectors(METHODS[method](), vectors, 0.5, base=start)
        for name, tensor in load_file(made.path).items():
            torch.testing.assert_close(tensor, expected[name], rtol=2 * EPS, atol=2 * EPS)


def cosine(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    product, one, other = (
        math.fsum(float((a[name] * b[name]).sum()) for name in a)
        for a, b in ((left, right), (left, left), (right, right))
    )
    return product / math.sqrt(one * other)


def test_relation_in_weight_space_with_and_without_the_base(base: Path, tmp_path: Path) -> None:
    start = load_file(base / "model.safetensors")
    models = [adapted(tiny_llama(), seed, **ADAPTERS[kind]) for seed, kind in enumerate(("plain", "patterns"), start=1)]
    pair = saved(models[0], tmp_path / "a"), saved(models[1], tmp_path / "b")
    vectors = [changes(model, start) for model in models]
    expected = cosine(*vectors)
    assert abs(expected) > 1e-4
    without = relate_adapters(*pair)
    whole = without.table[without.table["group"] == "all"].iloc[0]
    assert whole["cos_task_vectors"] == pytest.approx(expected, rel=1e-12)
    for side, vector in zip("ab", vectors, strict=True):
        length = math.sqrt(math.fsum(float(tensor.square().sum()) for tensor in vector.values()))
        assert whole[f"task_vector_norm_{side}"] == pytest.approx(length, rel=1e-12)
    by_base = relate_checkpoints(base, pair)
    row = by_base.table[by_base.table["group"] == "all"].iloc[0]
    assert row["cos_task_vectors"] == pytest.approx(expected, rel=1e-5)
    one, other = (torch.cat([tensor.flatten() for tensor in vector.values()]) for vector in vectors)
    both = (one != 0) & (other != 0)
    agreement = float((one[both].sign() == other[both].sign()).double().mean())
    assert row["sign_agreement"] == pytest.approx(agreement, abs=1e-12)
    assert "dW = s B A" in without.reading
    assert "dW = s B A" in by_base.reading


def test_report_takes_adapters(base: Path, tmp_path: Path) -> None:
    start = load_file(base / "model.safetensors")
    model = adapted(tiny_llama(), 1, **ADAPTERS["plain"])
    made = checkpoint_tables(base, [saved(model, tmp_path / "mine")])
    norms = made.tables["norms"].set_index("group")
    expected = math.sqrt(math.fsum(float(t.square().sum()) for t in changes(model, start).values()))
    assert norms.loc["all", "task_vector_norm"] == pytest.approx(expected, rel=1e-6)
    assert norms.loc["model.embed_tokens", "task_vector_norm"] == 0
    assert set(made.tables["norms"]["run"]) == {"mine"}


def test_one_step_from_zero_is_the_gradient_projected_on_the_rows_of_a() -> None:
    """`dW = -eta s^2 G A'A` after one step of gradient descent in the factors from B = 0, to float64 rounding."""
    torch.manual_seed(0)
    rank, alpha, rate = 3, 7, 0.05
    layer = torch.nn.Sequential(torch.nn.Linear(8, 6, bias=False)).double()
    inputs, targets = torch.randn(20, 8).double(), torch.randn(20, 6).double()
    weight = layer[0].weight
    (gradient,) = torch.autograd.grad((layer(inputs) - targets).square().mean(), weight)
    model = peft.get_peft_model(layer, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"])).double()
    module = model.base_model.model[0]
    first = module.lora_A["default"].weight.detach().clone()
    assert not module.lora_B["default"].weight.any()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    (model(inputs) - targets).square().mean().backward()
    optimizer.step()
    change = alpha / rank * (module.lora_B["default"].weight @ module.lora_A["default"].weight).detach()
    expected = -rate * (alpha / rank) ** 2 * gradient @ first.T @ first
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-14 * float(expected.abs().max()) * 8)
    assert torch.equal(module.lora_A["default"].weight, first)  # its gradient is zero while B is
    against = float((change * -gradient).sum() / change.norm() / gradient.norm())
    assert against < 0.99  # in weight space it is not along -G


def test_refusals(base: Path, tmp_path: Path) -> None:
    folder = saved(adapted(tiny_llama(), 1, **ADAPTERS["plain"]), tmp_path / "good")

    def refused(path: Path, pretrained: Path = base) -> str:
        with pytest.raises(TvgradError) as caught:
            merge_checkpoints(METHODS["mean"](), pretrained, [path], alpha=1.0, out=tmp_path / "out")
        return str(caught.value)

    def changed(name: str, **values: object) -> Path:
        copied = Path(shutil.copytree(folder, tmp_path / name))
        config = json.loads((copied / "adapter_config.json").read_text())
        (copied / "adapter_config.json").write_text(json.dumps(config | values))
        return copied

    assert "use_dora is set" in refused(changed("dora", use_dora=True))
    assert "lora_bias is set" in refused(changed("bias", lora_bias=True))
    assert "kind IA3" in refused(changed("ia3", peft_type="IA3"))
    assert "begun by pissa_niter_4" in refused(changed("pissa", init_lora_weights="pissa_niter_4"))
    assert "lora_alpha of the adapter" in refused(changed("alpha", lora_alpha="much"))
    empty = changed("empty")
    (empty / "adapter_model.safetensors").unlink()
    assert "none of adapter_model.safetensors" in refused(empty)
    half = changed("half")
    content = load_file(half / "adapter_model.safetensors")
    save_file({k: v for k, v in content.items() if "lora_B" not in k}, half / "adapter_model.safetensors")
    assert "one factor of" in refused(half)
    tiny_gpt2().save_pretrained(tmp_path / "other")
    assert "does not have: give --pretrained the model" in refused(folder, tmp_path / "other")
    assert "is an adapter, and here a whole model is needed" in refused(folder, folder)
    wide = tiny_llama().config
    wide.hidden_size = 32
    transformers.LlamaForCausalLM(wide).save_pretrained(tmp_path / "wide")
    assert "in shape (16, 16)" in refused(folder, tmp_path / "wide")
    assert not (tmp_path / "out").exists()
