"""`tvgrad export`: a complete checkpoint for other tools."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from . import options


def _name(path: Path) -> str | bytes:
    """A path for the program that reads it: one that is no text has the bytes of its name on the disk."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return os.fsencode(path) if hasattr(sys.stdout, "buffer") else str(path)
    return str(path)


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
    opens; with --merged, the whole model. In a pipe or a file, standard output has the files alone, one a line.

    \b
    Examples:
      tvgrad export runs/digits/rotated --epoch 1 --out rotated-after-one
      tvgrad export runs/bert/mnli --out mnli \\
        --base google-bert/bert-base-uncased
      tvgrad export runs/lora --out merged --merged
    """
    from tvgrad.cli.terminal import say

    from tvgrad.files.tensors import TensorFile
    from tvgrad.store.export import export_checkpoint
    from tvgrad.store.run import Run
    from tvgrad.wording import bytes_in_words, counted, listed, printable

    opened = Run.open(run)
    chosen = opened.epochs[-1] if epoch is None and opened.epochs else epoch or 0
    written = export_checkpoint(opened, chosen, out, base, merged=merged)
    piped = not sys.stdout.isatty()
    if piped:
        for path in written:
            click.echo(_name(path))
    places = TensorFile(written[0]).places
    size = bytes_in_words(sum(place.nbytes for place in places.values()))
    done, beside = f"{counted(len(places), 'tensor')} written", listed([path.name for path in written[1:]])
    say(
        f"{printable(str(written[0]))}: {done} ({size}) of {opened.name} after {opened.unit} {chosen}"
        f"{f'; {beside} beside it' if beside else ''}",
        done,
        colour="green",
        err=piped,
    )
