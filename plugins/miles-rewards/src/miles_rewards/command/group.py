"""``miles reward`` and ``miles reward score``."""

from __future__ import annotations

import os
import shutil

import click

from miles_core.cli.run import RAW


@click.group()
def reward() -> None:
    """Score a file of responses."""


@reward.command(context_settings=RAW, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def score(arguments: tuple[str, ...]) -> int:
    """Grade responses with a reward, without a run. ``miles reward score --help`` shows the options."""
    from miles_rewards.command.options import read_job

    width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 140)
    job = read_job(arguments, os.environ, width)
    if job.own.help:
        click.echo(job.help)
        return 0
    for line in job.warnings:
        click.echo(f"warning: {line}", err=True)
    from miles_rewards.command.scoring import score_file

    summary = score_file(job)
    click.echo(summary.text(), err=job.own.output == "-")
    return 0
