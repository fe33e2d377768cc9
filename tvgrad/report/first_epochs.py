"""The first epoch's share in a sum of gradient norms, against an even share 1/K and the ceiling 1.

A sum of norms of full-batch gradients, of epoch gradients, and of mean batch gradients are three quantities: each has
axes of its own, and the published figures stand beside mean batch gradients alone.
"""

from __future__ import annotations

import pandas as pd

from tvgrad.report.empty_columns import whole_model

MEASURES = {
    "gradient_norm_share": "full-batch gradient",
    "epoch_gradient_norm_share": "epoch gradient, at moving weights",
    "mean_batch_gradient_norm_share": "mean batch gradient norm, at moving weights",
}
"""Column of shares -> what its norms are of."""
PUBLISHED = "mean_batch_gradient_norm_share"
"""The column that holds the published quantity."""


def first_epochs(norms: pd.DataFrame, column: str) -> pd.DataFrame:
    """List the share of the first epoch of every run whose every epoch has a share.

    Args:
        norms: the table `norms`.
        column: one of `MEASURES`.

    Returns:
        Columns name, share and epochs (their number K).
    """
    if not {"run", "epoch", "group", column} <= set(norms):
        return pd.DataFrame(columns=["name", "share", "epochs"])
    table = whole_model(norms, column)
    last = norms.groupby("run", sort=False)["epoch"].max()
    rows = [
        {"name": str(run), "share": float(part[column].iloc[0]), "epochs": len(part)}
        for run, part in table.groupby("run", sort=False)
        if len(part) >= last[run] and part["epoch"].iloc[0] == 0
    ]
    return pd.DataFrame(rows, columns=["name", "share", "epochs"])


def mean_first_epochs(norms: pd.DataFrame, column: str) -> pd.DataFrame:
    """List the share of the first epoch as `first_epochs` does, one row for the runs of a task.

    Args:
        norms: the table `norms`; with a column task, tasks that have several runs of as many epochs become one row.
        column: one of `MEASURES`.

    Returns:
        Columns name, share (the mean), epochs, least, most and runs.
    """
    rows = first_epochs(norms, column)
    if "task" in norms:
        task_of = {str(run): str(task) for run, task in zip(norms["run"], norms["task"], strict=True)}
        tasks = rows["name"].map(task_of)
        several = rows.groupby([tasks, rows["epochs"]])["name"].transform("nunique") > 1
        rows = rows.assign(name=rows["name"].where(~several, tasks))
    found = rows.groupby(["name", "epochs"], sort=False)["share"].agg(
        share="mean", least="min", most="max", runs="size"
    )
    return found.reset_index()[["name", "share", "epochs", "least", "most", "runs"]]


def even_shares(norms: pd.DataFrame) -> str:
    """Say against what the shares of a table are to be read.

    Args:
        norms: rows of the table `norms`.

    Returns:
        The words, with the K of these runs, for a caption; empty where there are no shares.
    """
    found = [first_epochs(norms, column)["epochs"] for column in MEASURES]
    numbers = sorted({int(number) for one in found for number in one})
    if not numbers:
        return ""
    many = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return (
        f"`K` = {many} here: epochs that are all alike have the share `1/K`, and the ceiling of a share is 1, `K` "
        "times that"
    )
