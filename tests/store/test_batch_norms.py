"""Mean norms of batch gradients: before clipping is the published quantity, after it is what was consumed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import tvgrad
from tvgrad import Run
from tvgrad.report.tables import run_tables
from tvgrad.store.batch_norms import batch_norms


def recorded(folder: Path, rows: Sequence[Mapping[str, float]], norms: Sequence[float], **info: bool) -> Run:
    """A run of one epoch whose steps consumed gradients of these norms, with what was noted of them."""
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvgrad.Recorder(folder / "run", model, optimizer, info=info) as recorder:
        for row, norm in zip(rows, norms, strict=True):
            model.weight.grad = torch.tensor([[norm, 0.0]])
            optimizer.step()
            recorder.note_step(**row)
        recorder.end_epoch()
    return Run.open(folder / "run")


def test_a_clipped_norm_is_restored_by_its_factor(tmp_path: Path) -> None:
    run = recorded(tmp_path, [{"clip_factor": 0.25}, {"clip_factor": 1.0}, {}], [10.0, 4.0, 1.0])
    assert batch_norms(run, 1) == pytest.approx(((40 + 4 + 1) / 3, 5.0))
    table = run_tables([run]).tables["norms"].set_index(["group", "epoch"])
    assert table.loc[("all", 0), "mean_batch_gradient_norm"] == pytest.approx(15.0)
    assert table.loc[("all", 0), "mean_consumed_gradient_norm"] == pytest.approx(5.0)
    assert table.loc[("all", 0), "mean_batch_gradient_norm_share"] == 1.0
    assert table.drop(index=("all", 0))["mean_consumed_gradient_norm"].isna().all()


def test_the_recorded_norm_goes_before_the_restored_one_and_skipped_steps_do_not_count(tmp_path: Path) -> None:
    rows = [{"clip_factor": 0.5, "gradient_norm_before_clipping": 185.0}, {"skipped": 1, "clip_factor": 0.0}]
    assert batch_norms(recorded(tmp_path, rows, [10.0, math.inf]), 1) == (185.0, 10.0)


def test_the_consumed_norm_follows_from_the_one_before(tmp_path: Path) -> None:
    run = recorded(
        tmp_path, [{"clip_factor": 0.5, "gradient_norm_before_clipping": 8.0, "gradient_norm": math.nan}], [4]
    )
    assert batch_norms(run, 1) == (8.0, 4.0)


@pytest.mark.parametrize(
    ("rows", "info"), [([{"clipped_in_parts": 2}, {}], {}), ([{}, {}], {"clipping_unrecorded": True})]
)
def test_a_norm_before_an_unknown_clipping_is_not_known(
    tmp_path: Path, rows: list[dict[str, float]], info: dict[str, bool]
) -> None:
    before, consumed = batch_norms(recorded(tmp_path, rows, [3.0, 5.0], **info), 1)
    assert math.isnan(before)
    assert consumed == pytest.approx(4.0)
