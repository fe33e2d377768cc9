"""Full-batch gradients of a loop by its own loader, against autograd over all samples at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tvgrad
from tvgrad import Run
from tvgrad.errors import TvgradError
from tvgrad.store.measured import ESTIMATE, EXACT, error_bar
from tvgrad.theory.verdicts import YES, verdict_rows
from tvgrad.vectors.algebra import difference
from tvgrad.vectors.parameters import norm

X = torch.randn(22, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def made(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2))


def trained(model: nn.Module, loader: Any, out: Path | None = None, loss: Any = None, **options: Any) -> list[Any]:
    """Two epochs of a loop, recorded or not; the weights after each."""
    torch.manual_seed(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    loss = loss or nn.CrossEntropyLoss()
    recorder = None
    if out is not None:
        recorder = tvgrad.Recorder(out, model, optimizer, data=loader, loss=loss, **options).__enter__()
    found = []
    for _ in range(2):
        for batch in loader:
            optimizer.zero_grad()
            loss(model(batch[0]), batch[1]).backward()
            optimizer.step()
        found.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        if recorder is not None:
            recorder.end_epoch()
    if recorder is not None:
        recorder.__exit__(None, None, None)
    return found


def apart(record: Run, epoch: int, loss: Any, model: nn.Module) -> float:
    """Relative distance of a recorded gradient from autograd's over all samples, in float64."""
    model = model.double()
    model.load_state_dict({name: tensor.double() for name, tensor in record.complete(epoch).items()})
    names, parameters = zip(*model.named_parameters(), strict=True)
    parts = torch.autograd.grad(loss(model(X.double()), Y), parameters)
    truth = dict(zip(names, parts, strict=True))
    return norm(difference(record.gradient(epoch), truth)) / norm(truth)


def shuffled(**options: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    return DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True, generator=generator, **options)


def test_the_full_batch_s_gradient_and_the_same_training(tmp_path: Path) -> None:
    alone = trained(made(), shuffled())
    watched = trained(made(), shuffled(), tmp_path / "run")
    for before, after in zip(alone, watched, strict=True):
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    record = Run.open(tmp_path / "run")
    assert record.having("gradient") == [0, 1, 2]
    for epoch in (0, 1, 2):
        assert apart(record, epoch, nn.CrossEntropyLoss(), made()) < 1e-6  # float32 batches
        kept = record.info["measured_gradients"][str(epoch)]
        assert (kept["kind"], kept["samples"], kept["data"], kept["weights"]) == (
            EXACT, 22, 22, "batches weighted by samples",
        )  # fmt: skip
    assert record.info["measured_gradients"]["2"]["reason"].startswith("exact as at the first point")
    whole = float(nn.functional.cross_entropy(made()(X), Y).detach())
    assert record.points[0].metrics["loss"] == pytest.approx(whole, rel=1e-6)


def test_a_loss_that_is_a_sum_is_added(tmp_path: Path) -> None:
    loss = nn.CrossEntropyLoss(reduction="sum")
    trained(made(), shuffled(), tmp_path / "run", loss)
    record = Run.open(tmp_path / "run")
    assert apart(record, 1, loss, made()) < 1e-6
    assert record.points[0].metrics["loss"] == pytest.approx(float(loss(made()(X), Y).detach()), rel=1e-6)
    assert "being a sum" in record.info["measured_gradients"]["1"]["weights"]


THREE = (X[:, 0] > 0).long() + (X[:, 1] > 0.5).long()
WEIGHT = torch.tensor([0.25, 4.0, 1.0])


@pytest.mark.parametrize(
    ("loss", "targets", "weights"),
    [
        (nn.CrossEntropyLoss(WEIGHT), THREE, "class weights of targets"),
        (nn.CrossEntropyLoss(WEIGHT, ignore_index=1, label_smoothing=0.1), THREE, "class weights of targets"),
        (nn.CrossEntropyLoss(ignore_index=2), THREE, "class weights of targets"),
        (nn.CrossEntropyLoss(ignore_index=0), THREE.sort().values, "class weights of targets"),  # all of a batch
        (nn.CrossEntropyLoss(WEIGHT), nn.functional.one_hot(THREE, 3).float(), "samples"),  # a mean over samples
        (nn.CrossEntropyLoss(WEIGHT, reduction="sum"), THREE, None),
    ],
)
def test_class_weights_and_ignored_targets_weigh_the_batches(
    tmp_path: Path, loss: nn.CrossEntropyLoss, targets: torch.Tensor, weights: str | None
) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    loader = DataLoader(TensorDataset(X, targets), batch_size=8)
    with tvgrad.Recorder(tmp_path / "run", model, data=loader, loss=loss):
        pass
    record = Run.open(tmp_path / "run")
    kept = record.info["measured_gradients"]["0"]
    said = "batches added, the loss being a sum" if weights is None else f"batches weighted by {weights}"
    assert (kept["kind"], kept["weights"]) == (EXACT, said)
    wide = model.double()
    value = loss.double()(wide(X.double()), targets.double() if targets.is_floating_point() else targets)
    truth = dict(zip(record.weights(0), torch.autograd.grad(value, list(wide.parameters())), strict=True))
    assert norm(difference(record.gradient(0), truth)) < 1e-6 * norm(truth)  # float32 batches
    assert record.points[0].metrics["loss"] == pytest.approx(float(value.detach()), rel=1e-6)


def test_a_loss_of_another_class_is_not_guessed(tmp_path: Path) -> None:
    class Own(nn.CrossEntropyLoss):
        """Divides by samples, whatever its weights."""

        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(output, target, self.weight, reduction="sum") / len(target)

    trained(made(), shuffled(), tmp_path / "run", Own(torch.tensor([0.25, 4.0])))
    kept = Run.open(tmp_path / "run").info["measured_gradients"]["0"]
    assert (kept["kind"], kept["weights"]) == (EXACT, "batches weighted by samples")


def test_dropout_is_an_estimate_with_an_error_bar(tmp_path: Path) -> None:
    alone = trained(made(0.2), shuffled())
    watched = trained(made(0.2), shuffled(), tmp_path / "run")
    assert all(torch.equal(tensor, watched[-1][name]) for name, tensor in alone[-1].items())
    record = Run.open(tmp_path / "run")
    kept = record.info["measured_gradients"]
    assert [kept[str(epoch)]["kind"] for epoch in (0, 1, 2)] == [ESTIMATE] * 3
    assert len({error_bar(record, epoch) for epoch in (0, 1, 2)}) == 3, "each point has its own"
    model = made(0.2).double()
    model.load_state_dict({name: tensor.double() for name, tensor in record.weights(0).items()})
    names, parameters = zip(*model.named_parameters(), strict=True)
    draws = [torch.autograd.grad(nn.functional.cross_entropy(model(X.double()), Y), parameters) for _ in range(300)]
    mean = {name: torch.stack(parts).mean(0) for name, parts in zip(names, zip(*draws, strict=True), strict=True)}
    off = norm(difference(record.gradient(0), mean)) / norm(mean)
    bar = error_bar(record, 0)
    assert bar is not None
    assert 0.1 * bar < off < 2 * bar


def test_batch_statistics_stay_what_they_were(tmp_path: Path) -> None:
    def model() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    alone = trained(model(), shuffled())
    watched = trained(model(), shuffled(), tmp_path / "run")
    assert all(torch.equal(tensor, watched[-1][name]) for name, tensor in alone[-1].items())
    kept = Run.open(tmp_path / "run").info["measured_gradients"]["0"]
    assert kept["kind"] == ESTIMATE
    assert "batch normalisation" in kept["reason"]


def test_gradient_descent_is_exact_by_its_own_loader(tmp_path: Path) -> None:
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvgrad.Recorder(tmp_path / "run", model, optimizer, data=(X, Y), loss=nn.CrossEntropyLoss()) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), Y).backward()
            optimizer.step()
            recorder.end_epoch()
    (row,) = verdict_rows(Run.open(tmp_path / "run"))
    assert (row.holds, row.gradient_holds) == ("exact", YES)


def test_modes_are_those_at_the_start_and_are_put_back(tmp_path: Path) -> None:
    model = made(0.2).eval()
    model[0].train()
    with tvgrad.Recorder(tmp_path / "run", model, data=shuffled(), loss=nn.CrossEntropyLoss()) as recorder:
        model.train()
        recorder.end_epoch()
        assert all(module.training for module in model.modules())
    kept = Run.open(tmp_path / "run").info["measured_gradients"]
    assert [kept[epoch]["kind"] for epoch in ("0", "1")] == [EXACT, EXACT]


def test_a_pass_inside_a_pass_with_workers(tmp_path: Path) -> None:
    """A point in the middle of an epoch, whose loader keeps its workers: the epoch goes on as it would have."""
    loader = shuffled(num_workers=1, persistent_workers=True)
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"record_at": "steps:1,2", "data": loader, "loss": nn.CrossEntropyLoss()}
    seen = []
    with tvgrad.Recorder(tmp_path / "run", model, optimizer, **options) as recorder:  # type: ignore[arg-type]
        for a, b in loader:
            seen.append(a)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(a), b).backward()
            optimizer.step()
            recorder.end_step()
    assert torch.equal(torch.cat(seen).sort(0).values, X.sort(0).values)
    assert Run.open(tmp_path / "run").having("gradient") == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": TensorDataset(X, Y), "loss": nn.CrossEntropyLoss()}, r"give data=DataLoader"),
        ({"data": iter([(X, Y)]), "loss": nn.CrossEntropyLoss()}, r"again and again"),
        ({"loss": nn.CrossEntropyLoss()}, r"pass data=, the loop's own loader, too"),
        ({"data": [], "loss": nn.CrossEntropyLoss()}, r"the data has none"),
        ({"data": [(X, Y)], "loss": nn.CrossEntropyLoss(reduction="none")}, r"it must be one number"),
        ({"data": [(X * float("inf"), Y)], "loss": nn.CrossEntropyLoss()}, r"not finite"),
    ],
)
def test_what_cannot_be_measured(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TvgradError, match=message), tvgrad.Recorder(tmp_path / "run", made(), **options):
        pytest.fail("the loop began")
