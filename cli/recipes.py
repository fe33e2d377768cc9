"""`tvgrad recipes`: the built-in recipes."""

from __future__ import annotations

import click

from . import options, table_formats


@click.command()
@options.as_json
@table_formats.option
def recipes(as_json: bool) -> None:
    """List the built-in recipes: data, model, size and tasks.

    \b
    Examples:
      tvgrad recipes
      tvgrad recipes --json
    """
    import dataclasses

    import pandas as pd
    from tvgrad.cli.terminal import print_table, say

    from tvgrad.recipes.catalogue import BUILT_IN
    from tvgrad.results import json_text

    if as_json:
        click.echo(json_text({name: dataclasses.asdict(one) for name, one in BUILT_IN.items()}))
        return
    rows = [
        {"recipe": name, "tasks": ", ".join(one.tasks), "data": one.data, "model": one.model, "size": one.size}
        for name, one in BUILT_IN.items()
    ]
    print_table("Built-in recipes", pd.DataFrame(rows), name="recipes")
    say("Begin with `tvgrad trace digits --out runs/digits`, which takes seconds and nothing but this installation.")
