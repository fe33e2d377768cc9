"""Runs of LoRA: exported as peft's adapters, merged and compared in weight space."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from tvgrad.cli.main import main

import tvgrad
from tvgrad.errors import TvgradError
from tvgrad.merging import METHODS
from tvgrad.merging.runs import merge_runs
from tvgrad.report.relation import relate_runs
from tvgrad.report.tables import run_tables
from tvgrad.store.export import export_checkpoint
from tvgrad.store.run import Run

peft = pytest.importorskip("peft", reason="peft is not installed")


class Network(nn.Module):
    """A body that is adapted, and a head that is trained whole."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(5, 6), nn.Linear(6, 6)])
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for layer in self.body:
            inputs = torch.tanh(layer(inputs))
        return self.head(inputs)


def network() -> Network:
    torch.manual_seed(0)
    return Network()


def trained(directory: Path, seed: int, **options: Any) -> tuple[Run, Any]:
    """A recorded run of three steps, and the model of peft that it left."""
    plain = network()
    torch.manual_seed(seed)
    choice = {"r": 2, "lora_alpha": 6, "target_modules": ["body.0", "body.1"], **options}
    model = peft.get_peft_model(plain, peft.LoraConfig(**choice))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    inputs, targets = torch.randn(12, 5), torch.randint(0, 3, (12,))
    with tvgrad.Recorder(directory, model, optimizer=optimizer) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            recorder.end_epoch()
    return Run.open(directory), model


def change(model: Any, name: str) -> torch.Tensor:
    module = model.base_model.model.get_submodule(name)
    product = module.lora_B["default"].weight.double() @ module.lora_A["default"].weight.double()
    return (module.scaling["default"] * product).detach()


INPUTS = torch.linspace(-1, 1, 20).reshape(4, 5)


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["head"]}, {"bias": "lora_only", "use_rslora": True}])
def test_the_exported_adapter_is_opened_by_peft(options: dict[str, Any], tmp_path: Path) -> None:
    run, model = trained(tmp_path / "run", 1, **options)
    written = export_checkpoint(run, 3, tmp_path / "adapter", "somebody/base")
    assert [path.name for path in written] == ["adapter_model.safetensors", "adapter_config.json"]
    opened = peft.PeftModel.from_pretrained(network(), tmp_path / "adapter")
    assert torch.equal(opened(INPUTS), model(INPUTS))
    model.save_pretrained(tmp_path / "own")
    expected, found = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("own", "adapter"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert peft.PeftConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path == "somebody/base"


def test_the_exported_merged_model_is_what_peft_merges(tmp_path: Path) -> None:
    run, model = trained(tmp_path / "run", 1, modules_to_save=["head"])
    assert [path.name for path in export_checkpoint(run, 3, tmp_path / "out", merged=True)] == ["model.safetensors"]
    found, expected = load_file(tmp_path / "out" / "model.safetensors"), copy.deepcopy(model).merge_and_unload()
    plain = network()
    plain.load_state_dict(found)  # strictly: every name, and no other
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(plain(INPUTS), model(INPUTS), rtol=1e-5, atol=1e-6)


def test_runs_are_merged_in_weight_space(tmp_path: Path) -> None:
    """Different ranks and targets."""
    one, first = trained(tmp_path / "one", 1)
    other, second = trained(tmp_path / "other", 2, r=3, target_modules=["body.1"])
    out = tmp_path / "merged.safetensors"
    made = merge_runs([one, other], 3, METHODS["task_arithmetic"](), alpha=0.5, out=out)
    start, found = network().state_dict(), load_file(made.path)
    assert set(made.merged) == {"body.0.weight", "body.1.weight"}
    assert set(made.shared) == {"body.0.bias", "body.1.bias", "head.weight", "head.bias"}
    assert made.own == ()
    expected = {
        "body.0.weight": change(first, "body.0"),
        "body.1.weight": change(first, "body.1") + change(second, "body.1"),
    }
    for name, tensor in start.items():
        exact = tensor.double() + 0.5 * expected.get(name, torch.zeros_like(tensor).double())
        torch.testing.assert_close(found[name], exact.float(), rtol=2e-7, atol=1e-8)


def test_the_relation_speaks_of_both_spaces(tmp_path: Path) -> None:
    one, first = trained(tmp_path / "one", 1)
    other, second = trained(tmp_path / "other", 2)
    relation = relate_runs(one, other)
    row = relation.table[(relation.table["group"] == "all") & (relation.table["epoch"] == 3)].iloc[0]
    vectors = [torch.cat([change(model, name).flatten() for name in ("body.0", "body.1")]) for model in (first, second)]
    expected = float(vectors[0] @ vectors[1] / vectors[0].norm() / vectors[1].norm())
    assert row["cos_weight_space"] == pytest.approx(expected, rel=1e-9)
    assert abs(row["cos_weight_space"] - row["cos_task_vectors"]) > 1e-3
    assert f"in weight space (dW = s B A) the cosine of the two is {expected:.3f}" in relation.reading
    groups = relation.table[relation.table["epoch"] == 3].set_index("group")["cos_weight_space"]
    for name in ("body.0", "body.1"):
        left, right = (change(model, name) for model in (first, second))
        exact = float((left * right).sum() / left.norm() / right.norm())
        (group,) = [one for one in groups.index if one.endswith(name)]
        assert groups[group] == pytest.approx(exact, rel=1e-9)
    start = relation.table[relation.table["epoch"] == 0]["cos_weight_space"]
    assert all(math.isnan(value) for value in start)


@pytest.mark.parametrize(
    ("options", "targets"),
    [({"r": 3, "lora_alpha": 9}, ("body.0", "body.1")), ({"target_modules": ["body.1"]}, ("body.1",))],
)
def test_runs_of_other_ranks_or_targets_are_related_in_weight_space(
    options: dict[str, Any], targets: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, first = trained(tmp_path / "one", 1)
    other, second = trained(tmp_path / "other", 2, **options)
    relation = relate_runs(one, other)
    assert (relation.table["epoch"].unique() == [1, 2, 3]).all()
    row = relation.table[(relation.table["group"] == "all") & (relation.table["epoch"] == 3)].iloc[0]
    still = {"body.0": torch.zeros(6, 5), "body.1": torch.zeros(6, 6)}
    both = {name: (change(first, name), change(second, name) if name in targets else still[name]) for name in still}
    left, right = (torch.cat([pair[side].double().flatten() for pair in both.values()]) for side in (0, 1))
    assert row["cos_weight_space"] == pytest.approx(float(left @ right / left.norm() / right.norm()), rel=1e-9)
    assert row["weight_change_norm_a"] == pytest.approx(float(left.norm()), rel=1e-9)
    assert row["weight_change_norm_b"] == pytest.approx(float(right.norm()), rel=1e-9)
    assert f"(cosine {row['cos_weight_space']:.3f}; chance among 66 coordinates" in relation.reading
    assert "compared in weight space alone" in relation.reading
    assert "start from different weights" not in relation.reading
    main(["relate", str(one.root), str(other.root)])
    assert "compared in weight space alone" in capsys.readouterr().out


def test_runs_that_adapt_other_weights_are_told_apart(tmp_path: Path) -> None:
    one, _ = trained(tmp_path / "one", 1)
    other, _ = trained(tmp_path / "other", 2, target_modules=["head"])
    with pytest.raises(TvgradError, match="change no weight in common"):
        relate_runs(one, other)


def test_the_report_has_norms_in_weight_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, model = trained(tmp_path / "one", 1)
    norms = run_tables([run]).tables["norms"]
    last = norms[norms["epoch"] == 3].set_index("group")["weight_change_norm"]
    moved = {name: float(change(model, name).norm()) for name in ("body.0", "body.1")}
    assert last["all"] == pytest.approx(math.hypot(*moved.values()), rel=1e-9)
    for name, length in moved.items():
        (group,) = [one for one in last.index if one.endswith(name)]
        assert last[group] == pytest.approx(length, rel=1e-9)
    assert set(norms[norms["epoch"] == 0]["weight_change_norm"]) == {0.0}
    main(["report", str(tmp_path / "one")])
    printed = capsys.readouterr().out
    assert "-eta s^2 G A'A" in printed
    assert "weight_change_norm" in printed
    dora, _ = trained(tmp_path / "dora", 1, use_dora=True)
    assert run_tables([dora]).tables["norms"]["weight_change_norm"].isna().all()


def test_refusals(tmp_path: Path) -> None:
    run, _ = trained(tmp_path / "run", 1)
    dora, _ = trained(tmp_path / "dora", 1, use_dora=True)
    with pytest.raises(TvgradError, match=r"use_dora is set|no factor of plain LoRA"):
        export_checkpoint(dora, 3, tmp_path / "out")
    with pytest.raises(TvgradError, match=r"use_dora is set|no factor of plain LoRA"):
        merge_runs([run, dora], 3, METHODS["mean"](), alpha=1.0, out=tmp_path / "m.safetensors")
    model = network()
    with tvgrad.Recorder(tmp_path / "plain", model) as recorder:
        recorder.end_epoch()
    plain = Run.open(tmp_path / "plain")
    with pytest.raises(TvgradError, match="trained no adapter, and others did"):
        merge_runs([run, plain], 1, METHODS["mean"](), alpha=1.0, out=tmp_path / "m.safetensors")
    with pytest.raises(TvgradError, match="no LoRA adapter that could be merged"):
        export_checkpoint(plain, 1, tmp_path / "out", merged=True)
    assert not (tmp_path / "out").exists()
