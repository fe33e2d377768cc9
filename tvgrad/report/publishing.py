"""Publishing: tables, figures and the page of a report, written into one folder."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from tvgrad.files.atomic import write_text_atomically
from tvgrad.report.checkpoints import CheckpointTables
from tvgrad.report.documents import PAGE, check_formats, write_tables
from tvgrad.report.figures import captioned_figures
from tvgrad.report.first_screen import FirstScreen, first_screen
from tvgrad.report.geometry import epoch_cosines, trajectories
from tvgrad.report.page import html_page
from tvgrad.report.page_figures import page_figures
from tvgrad.report.summary import summary_of, summary_of_checkpoints
from tvgrad.report.tables import RunTables
from tvgrad.store.run import Run


def publish(made: RunTables, runs: Sequence[Run], directory: Path, formats: Iterable[str]) -> list[Path]:
    """Write a report.

    Args:
        made: its tables and Gram matrix.
        runs: the runs that it is about.
        directory: where to; it is made.
        formats: csv, md, json, latex, html.

    Returns:
        The files: tables, figures, and last the page.

    Raises:
        TvgradError: a format is unknown, or the folder cannot be made.
    """
    cosines = epoch_cosines(made.gram)
    # Runs without full-batch gradients have rows of their task vectors alone, of which no map is drawn.
    more = {"trajectories": trajectories(made.gram), "epoch_cosines": cosines[cosines["kind"] == "gradient"]}
    said = summary_of(made.tables, made.tasks, made.refused, made.scripts)
    return _publish(
        made.tables, more, said, _lead(runs), directory, formats, made.refused, first_screen(made, runs), made.scripts
    )


def publish_checkpoints(made: CheckpointTables, pretrained: str, directory: Path, formats: Iterable[str]) -> list[Path]:
    """Write a report on checkpoints without a run.

    Args:
        made: its tables.
        pretrained: what the checkpoints were tuned from, as the user named it.
        directory: where to; it is made.
        formats: csv, md, json, latex, html.

    Returns:
        The files: tables, figures, and last the page.

    Raises:
        TvgradError: a format is unknown, or the folder cannot be made.
    """
    lead = f"{len(made.names)} checkpoints tuned from {pretrained}; {made.parameters:,} parameters compared"
    lead = ". ".join([lead, *made.left_out]) + "."
    return _publish(made.tables, {}, summary_of_checkpoints(made.tables), lead, directory, formats)


def _publish(
    tables: dict[str, pd.DataFrame],
    drawn: dict[str, pd.DataFrame],
    summary: Sequence[str],
    lead: str,
    directory: Path,
    formats: Iterable[str],
    refused: Mapping[str, str] | None = None,
    screen: FirstScreen | None = None,
    scripts: Collection[str] = (),
) -> list[Path]:
    """Tables, the figures of them and of what is only drawn, and the page."""
    wanted = check_formats(formats)
    # The headline is the first sentence; of checkpoints there is no such table, and nothing to say above it.
    written = write_tables(tables, directory, wanted, {"equivalence": summary[0]})
    tasks = None if screen is None else {name: label.task for name, label in screen.labels.items()}
    figures = captioned_figures({**tables, **drawn}, directory / "figures", tasks)
    written += [path for path, _ in figures]
    if PAGE in wanted:
        vector_graphics = [(path, caption) for path, caption in figures if path.suffix == ".svg"]
        charts = page_figures({**tables, **drawn}, {} if screen is None else screen.labels)
        page = html_page(
            tables,
            vector_graphics,
            summary,
            "Task vectors and gradients",
            lead,
            refused,
            screen=screen,
            charts=charts,
            scripts=scripts,
        )
        path = directory / "report.html"
        write_text_atomically(path, page)
        written.append(path)
    return written


def _lead(runs: Sequence[Run]) -> str:
    """One line on what the runs are: optimizer, number format, epochs, samples."""
    rules = dict.fromkeys(str((run.info.get("rule") or {}).get("name", "unknown rule")) for run in runs)
    dtypes = dict.fromkeys(str(run.info.get("dtype", "")) for run in runs)
    epochs = sorted({run.points[-1].number for run in runs})
    until = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    samples = [int(run.info["samples"]) for run in runs if "samples" in run.info]
    least, most = (min(samples), max(samples)) if samples else (0, 0)
    spread = f"{most}" if least == most else f"{least} to {most}"
    counted = f", {spread} training sample{'' if most == 1 else 's'}" if samples else ""
    unit = runs[0].unit if until == "1" else f"{runs[0].unit}s"
    many = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    return f"{many}: {', '.join(rules)}; {', '.join(dtypes)}; {until} {unit}{counted}."
