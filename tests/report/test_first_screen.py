"""The first screen: badges, tiles, run card and curves say what the tables and the runs say."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.traced_runs import Traced
from tvgrad.report.first_screen import BAD, GOOD, PLAIN, badges, curves, first_screen
from tvgrad.report.publishing import _lead
from tvgrad.report.run_card import run_card, shared_card
from tvgrad.report.run_labels import run_labels, without_common_prefix
from tvgrad.report.tables import run_tables


def verdicts(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    return pd.DataFrame([
        {"run": run, "holds": holds, "gradient_holds": gradient, "deviation": 0.25, "cause": "the cause",
         "reason": "the reason", "trouble": trouble}
        for run, holds, gradient, trouble in rows
    ])  # fmt: skip


def test_there_is_a_badge_for_each_verdict_and_the_bad_ones_come_first() -> None:
    table = verdicts(
        ("a", "exact", "no", ""), ("b", "fails", "yes", ""), ("c", "does not apply", "unknown", "loss grew to 9")
    )
    found = badges(table)
    assert [(badge.answer.split(" · ")[0].split(",")[0], badge.kind) for badge in found[1:]] == [
        ("no", BAD), ("unknown", PLAIN), ("yes", GOOD), ("fails", BAD), ("does not apply", PLAIN), ("exact", GOOD)
    ]  # fmt: skip
    assert found[0].kind == BAD
    assert "loss grew to 9" in found[0].detail
    assert found[1].answer == "no, 25 % away · 1 of 3 runs"
    assert found[1].detail == "a: the cause"
    assert badges(verdicts(("a", "exact", "yes", "")))[1].answer == "exact"


@pytest.fixture(scope="module")
def screen(traced: Traced):  # type: ignore[no-untyped-def]
    runs = [traced("low"), traced("rotated")]
    made = run_tables(runs)
    return first_screen(made, runs), made, runs


def test_tiles_are_numbers_of_the_tables(screen) -> None:  # type: ignore[no-untyped-def]
    found, made, _ = screen
    tiles = {tile.name: tile for tile in found.tiles}
    assert tiles["Runs"].value == "2"
    norms, ways = made.tables["norms"], made.tables["directions"]
    first = norms[(norms["group"] == "all") & (norms["epoch"] == 0)]["gradient_norm_share"]
    assert tiles["First epoch's share"].value == f"{first.min():.3f} to {first.max():.3f}"
    last = ways[(ways["group"] == "all") & (ways["epoch"] == 3)]["cos_task_vector_descent"]
    assert tiles["Cosine at the last epoch"].value == f"{last.min():.3f} to {last.max():.3f}"
    pair = made.tables["cross_task"]
    pair = pair[(pair["group"] == "all") & (pair["epoch"] == 3)]["cos_task_vectors"].item()
    assert tiles["Largest cosine between tasks"].value == f"{pair:.2f}"


def test_the_card_tells_what_was_done(screen) -> None:  # type: ignore[no-untyped-def]
    found, _, runs = screen
    assert found.card["rule"] == "gd, lr 0.1"
    assert found.card["model"].endswith("3,136 trainable parameters")
    assert found.card["batch size"] == "full batch"
    assert list(found.apart["run"]) == ["low", "rotated"]
    assert [command.split(" --out")[0] for command in found.apart["command"]] == [
        f"tvgrad trace digits --tasks {task} --epochs 3 --chunk-size 1000" for task in ("low", "rotated")
    ]
    card = run_card(runs[0])
    assert shared_card({"low": card})[0] == card
    assert "torch" in card["versions"]


def test_curves_hold_every_recorded_loss(screen) -> None:  # type: ignore[no-untyped-def]
    found, _, runs = screen
    loss = found.curves[(found.curves["metric"] == "loss") & (found.curves["run"] == "low")]
    assert list(loss["value"]) == [point.metrics["loss"] for point in runs[0].points]
    assert "seconds" not in set(curves({"low": runs[0]})["metric"])
    assert next(iter(found.curves["metric"])) == "loss"
    row = found.last.set_index("run").loc["low"]
    assert row["loss after"] == runs[0].points[-1].metrics["loss"]
    assert row["epoch"] == 3


def test_names_lose_what_all_share() -> None:
    assert without_common_prefix(["a/b/x", "a/b/y"]) == {"a/b/x": "x", "a/b/y": "y"}
    assert without_common_prefix(["a/x", "b/x"]) == {"a/x": "a/x", "b/x": "b/x"}
    assert without_common_prefix(["a/x"]) == {"a/x": "a/x"}
    labels = run_labels({"r/one": "t", "r/two": "t", "r/u": "u"}, {"r/one": 0, "r/two": 1, "r/u": 0})
    assert [(one.short, one.task, one.variant) for one in labels.values()] == [
        ("t, seed 0", "t", "seed 0"), ("t, seed 1", "t", "seed 1"), ("u", "u", "")
    ]  # fmt: skip
    labels = run_labels({"r/one": "t", "r/two": "t"}, {"r/one": 0, "r/two": 0})
    assert [one.variant for one in labels.values()] == ["one", "two"]


def test_the_line_under_the_title_counts(traced: Traced) -> None:
    one, other = traced("low"), traced("rotated")
    samples = one.info["samples"]
    assert _lead([one]).startswith("1 run: ")
    assert _lead([one]).endswith(f", {samples} training samples.")
    few, many = sorted((samples, other.info["samples"]))
    assert few < many
    assert _lead([one, other]).startswith("2 runs: ")
    assert _lead([one, other]).endswith(f", {few} to {many} training samples.")
