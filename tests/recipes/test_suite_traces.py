"""The suite from fine-tuning to report: both encoders, full-batch descent and Adam, all six data sets."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pandas as pd
import pytest
from tvgrad.cli.main import main

from tvgrad.recipes.catalogue import BUILT_IN
from tvgrad.store.run import open_runs

PACKAGES = ("mlxtend", "animal-mnist", "tensorly", "scikit-image")


def installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(installed, PACKAGES)), reason="packages of the extra `suite` carry the data"),
]


@pytest.mark.parametrize("recipe", ["suite", "suite-vit"])
def test_traces_and_reports(
    recipe: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVGRAD_CACHE", str(tmp_path_factory.getbasetemp() / "suite-cache"))
    recorded = ["--record", "gradients,epoch-gradients", "--quiet"]
    main(["trace", recipe, "--out", str(tmp_path / "gd"), "--epochs", "4", *recorded])
    adam = ["--optimizer", "adam", "--lr", "1e-4", "--batch-size", "32", "--epochs", "2"]
    main(["trace", recipe, "--out", str(tmp_path / "adam"), *adam, *recorded])
    tasks = set(BUILT_IN[recipe].tasks)
    for optimizer in ("gd", "adam"):
        assert {run.name for run in open_runs([tmp_path / optimizer])} == tasks
    for run in open_runs([tmp_path / "gd"]):
        losses = list(run.metrics["loss"])
        assert losses == sorted(losses, reverse=True), run.name  # the suite's rate is one at which all tasks descend
    out = tmp_path / "report"
    main(["report", str(tmp_path / "gd"), str(tmp_path / "adam"), "--out", str(out)])
    verdicts = pd.read_csv(out / "equivalence.csv")
    exact = verdicts["run"].str.startswith("gd/")
    assert set(verdicts.loc[exact, "holds"]) == {"exact"}
    assert exact.sum() == len(tasks)
    norms = pd.read_csv(out / "norms.csv").query("group == 'all' and epoch == 0").set_index("run")
    assert norms["gradient_norm_share"].between(0, 1).all()
    assert norms["mean_batch_gradient_norm_share"].between(0, 1).all()
    both = norms[norms.index.str.startswith("gd/")]  # one step an epoch: the two quantities are one
    pd.testing.assert_series_equal(
        both["gradient_norm_share"], both["mean_batch_gradient_norm_share"], check_names=False, rtol=1e-5
    )
    assert "By the published measure, recorded for 12 runs" in (out / "report.html").read_text()
