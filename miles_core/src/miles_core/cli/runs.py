"""``miles runs``: which runs there are, and how each is."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import click

from miles_core.cli.table import table
from miles_core.loggers.figures import duration, short
from miles_core.report.runs import RUNS, Glance, find_run, find_runs, glance


@click.group()
def runs() -> None:
    """List and show runs, from their folders."""


@runs.command("list")
@click.argument("folder", default=RUNS, metavar="[DIR]")
@click.option("--json", "as_json", is_flag=True, help="As a JSON array.")
def list_runs(folder: str, as_json: bool) -> None:
    """List the runs whose folders are in DIR (runs), the oldest first."""
    found = [glance(path) for path in find_runs(Path(folder).expanduser())]
    if as_json:
        click.echo(json.dumps([_facts(run) for run in found], indent=2))
    elif found:
        cells = [(run.name, run.state, _done(run), _reward(run), _evaluations(run), _time(run)) for run in found]
        click.echo(table(("RUN", "STATE", "ROLLOUTS", "REWARD", "EVALUATION", "TIME"), cells))
    else:
        click.echo(f"no run in {folder}")


@runs.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="As a JSON object.")
def show(run: str, as_json: bool) -> None:
    """Show one RUN: a run folder, or its name below runs."""
    found = glance(find_run(run))
    if as_json:
        click.echo(json.dumps(_facts(found), indent=2))
        return
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.started)) if found.started is not None else ""
    rows = [
        ("state", found.state),
        ("error", found.error),
        ("started", started),
        ("time", _time(found)),
        ("rollouts", _done(found)),
        ("reward", _reward(found)),
        *((f"eval {name}", short(value)) for name, value in found.evaluations.items()),
        ("folder", str(found.path.absolute())),
    ]
    click.echo(found.name)
    shown = [(label, value) for label, value in rows if value not in ("", "-")]
    width = max(len(label) for label, _ in shown)
    for label, value in shown:
        click.echo(f"  {label:{width}}  {value}")
    click.echo(f"\nmiles report {run} makes a page of it")


def _done(run: Glance) -> str:
    done = "-" if run.done is None else str(run.done)
    return done if run.total is None else f"{done}/{run.total}"


def _reward(run: Glance) -> str:
    return "-" if run.reward is None else short(run.reward)


def _evaluations(run: Glance) -> str:
    return ", ".join(f"{name} {short(value)}" for name, value in run.evaluations.items()) or "-"


def _time(run: Glance) -> str:
    return "-" if run.seconds is None else duration(run.seconds)


def _facts(run: Glance) -> dict[str, object]:
    return {**asdict(run), "name": run.name, "path": str(run.path), "evaluations": dict(run.evaluations)}
