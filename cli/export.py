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
@click.option("--merged", is_flag=True, help="Of a LoRA run: the model with the adapter merged into its weights.")
def export(run: Path, epoch: int | None, out: Path, base: str | None, merged: bool) -> None:
    """Write the weights of RUN after an epoch as a complete checkpoint; epoch 0 is the pretrained model.

    The checkpoint holds frozen parameters, buffers and tied names too, so that `load_state_dict` takes it. Where the
    recipe's model has a Hugging Face configuration, config.json and a mergekit file are written beside it, and
    `from_pretrained` takes the folder. Of a LoRA run, the folder holds the adapter, which `PeftModel.from_pretrained`
    opens; with --merged, the whole model.

    \b
    Examples:
      tvgrad export runs/digits/rotated --epoch 1 --out rotated-after-one
      tvgrad export runs/bert/mnli --out mnli \\
        --base google-bert/bert-base-uncased
      tvgrad export runs/lora --out merged --merged
    """
    from tvgrad.store.export import export_checkpoint
    from tvgrad.store.run import Run

    opened = Run.open(run)
    chosen = opened.epochs[-1] if epoch is None and opened.epochs else epoch or 0
    for path in export_checkpoint(opened, chosen, out, base, merged=merged):
        click.echo(str(path))
