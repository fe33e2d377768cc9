"""`tvgrad export`: a complete checkpoint for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from . import options


@click.command()
@click.argument("run", type=options.PATH)
@click.option("--epoch", type=int, help="Epoch (or recorded step) to export (default: the last).")
@click.option("--out", required=True, type=options.PATH, help="Folder to make.")
@click.option(
    "--base", help="Name or path of the pretrained model, for mergekit.yaml (default: what config.json says)."
)
def export(run: Path, epoch: int | None, out: Path, base: str | None) -> None:
    """Write the weights of RUN after an epoch as a complete checkpoint; epoch 0 is the pretrained model.

    The checkpoint holds frozen parameters, buffers and tied names too, so that `load_state_dict` takes it. Where the
    recipe's model has a Hugging Face configuration, config.json and a mergekit file are written beside it, and
    `from_pretrained` takes the folder.

    \b
    Examples:
      tvgrad export runs/digits/rotated --epoch 1 --out rotated-after-one
      tvgrad export runs/bert/mnli --out mnli --base google-bert/bert-base-uncased
    """
    from tvgrad.store.export import export_checkpoint
    from tvgrad.store.run import Run

    opened = Run.open(run)
    for path in export_checkpoint(
        opened, opened.epochs[-1] if epoch is None and opened.epochs else epoch or 0, out, base
    ):
        click.echo(str(path))
