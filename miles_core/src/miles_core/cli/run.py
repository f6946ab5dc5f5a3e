"""``miles run``."""

from __future__ import annotations

import click

RAW = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
"""Click hands every argument on as it is: the options of a run depend on the plugins that it names."""


@click.command(context_settings=RAW, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(arguments: tuple[str, ...]) -> int:
    """Train a model. ``miles run --help`` shows the options."""
    from miles_core.options.resolve import resolve

    resolved = resolve(arguments)
    if resolved.invocation.help_all:
        from miles_core.cli.help import complete_help

        click.echo(complete_help(resolved.host))
        return 0
    if resolved.invocation.help:
        from miles_core.cli.help import selected_help

        click.echo(selected_help(resolved))
        return 0

    from miles_core.runtime.planning import plan_run

    planned = plan_run(resolved)
    if resolved.invocation.dry_run:
        from miles_core.cli.dry_run import describe

        if planned.plan is not None:
            click.echo(describe(planned))
    for line in planned.warnings:
        click.echo(f"warning: {line}", err=True)
    plan = planned.require()
    if resolved.invocation.dry_run:
        return 0

    from miles_core.runtime.driver import run as drive

    return drive(planned.config, plan, resolved.host)
