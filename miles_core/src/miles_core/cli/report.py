"""``miles report``: one page about a run."""

from __future__ import annotations

from pathlib import Path

import click

from miles_core.errors import UsageError
from miles_core.report.page import page
from miles_core.report.runs import find_run


@click.command()
@click.argument("run")
@click.option("-o", "--output", default=None, metavar="FILE", help="The page; report.html in the run folder when not given.")
@click.option("--rollouts", default=40, show_default=True, type=click.IntRange(1), help="Rollouts whose samples the page has.")
@click.option("--samples", default=24, show_default=True, type=click.IntRange(1), help="Samples of each, and as many dropped ones.")
def report(run: str, output: str | None, rollouts: int, samples: int) -> None:
    """Write one HTML page about RUN, a run folder or its name below runs: curves, timings, samples and options, with no network."""
    folder = find_run(run)
    path = Path(output).expanduser() if output is not None else folder / "report.html"
    text = page(folder, rollouts=rollouts, samples=samples)
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        why, fix = error.strerror or str(error), "name another file with -o"
        raise UsageError("M308", f"cannot write {path}", owner="miles-core", why=why, fix=fix) from error
    click.echo(f"{path} ({len(text.encode('utf-8', 'backslashreplace')) / 1e6:.1f} MB)")
