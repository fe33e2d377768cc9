"""`tvgrad doctor`: what this installation can do."""

from __future__ import annotations

from pathlib import Path

import click

from tvgrad.errors import CheckFailed

from . import options


@click.command()
@click.option("--device", default="auto", show_default=True, help="Check the kernels of this torch device.")
@options.as_json
def doctor(device: str, as_json: bool) -> None:
    """Check this installation: versions, device, kernels, disk, cache, optional packages.

    The kernels are run: whether attention has second derivatives, whether one step of SGD stays within its rounding
    bound in each dtype, and whether SGD(fused=True) trains every bfloat16 coordinate. Exit code 1 when a check
    failed; a warning names something to avoid.

    \b
    Examples:
      tvgrad doctor
      tvgrad doctor --device cpu --json
    """
    from tvgrad.cli.terminal import say

    from tvgrad.installation import FAILED, examine
    from tvgrad.numerics.device import resolve_device
    from tvgrad.results import json_text

    checks = examine(resolve_device(device), Path.cwd())
    if as_json:
        click.echo(json_text([check.row() for check in checks]))
    else:
        for check in checks:
            say(f"{check.state:>7}  {check.what}: {check.words}", check.state)
    failed = [check.what for check in checks if check.state == FAILED]
    if not failed and not as_json:
        click.echo(f"All {len(checks)} checks pass; a warning names something to avoid.")
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")
