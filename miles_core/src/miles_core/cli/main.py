"""The ``miles`` command. Every subcommand is imported when it is typed, and none of them for ``--help``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from miles_core.errors import MilesError, PluginError, UsageErrors
from miles_core.version import __version__

BUILT_IN: dict[str, tuple[str, str]] = {
    "run": ("miles_core.cli.run:run", "Train a model."),
    "config": ("miles_core.cli.config:config", "Show the resolved options, and where each came from."),
    "plugins": ("miles_core.cli.plugins:plugins", "List, show and check the installed plugins."),
    "runs": ("miles_core.cli.runs:runs", "List and show runs, from their folders."),
    "report": ("miles_core.cli.report:report", "Write one HTML page about a run."),
    "explain": ("miles_core.cli.explain:explain", "Explain an error code."),
}
"""Where each command is, and its line of help."""


class Miles(click.Group):
    """Core's commands, and those of ``miles.commands`` entry points, which are imported when they are typed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Core's commands, in the order of their use."""
        return list(BUILT_IN)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name.

        Raises:
            PluginError: there is none (M101), or its plugin cannot be used.
        """
        if cmd_name in BUILT_IN:
            module, _, attribute = BUILT_IN[cmd_name][0].partition(":")
            return _command(getattr(importlib.import_module(module), attribute), cmd_name)
        return _plugin_command(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Core's commands with a line each, and the names of plugins' commands: their help would cost an import."""
        from miles_core.plugins import PluginIndex

        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in BUILT_IN.items()])
        if found := PluginIndex.scan().of_kind("commands"):
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(entry.name, f"from {entry.owner}") for entry in found])


def _plugin_command(name: str) -> click.Command:
    from miles_core.cli.environment import plugin_host
    from miles_core.options import Config
    from miles_core.plugins import create
    from miles_core.plugins.index import closest

    host = plugin_host()
    try:
        loaded = host.load("commands", name)
    except PluginError as error:
        if error.code != "M101":
            raise
        known = [*BUILT_IN, *(entry.name for entry in host.index.of_kind("commands"))]
        near = closest(name, known)
        fix = f"did you mean {near!r}?" if near else "see miles --help, or install the plugin that has it"
        raise PluginError("M101", f"there is no command {name!r}", why=f"commands are {', '.join(known)}", fix=fix) from None
    return _command(create(loaded.ref, Config([])), name)


def _command(found: Any, name: str) -> click.Command:
    if not isinstance(found, click.Command):
        raise PluginError("M109", f"the command {name!r} is {type(found).__name__}", fix="let create name a click command")
    return found


def _show_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"miles {__version__}")
        ctx.exit()


@click.group(cls=Miles, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version and exit."
)
def cli() -> None:
    """Post-train language models with reinforcement learning, from plugins."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1 for a run that failed, 2 for a mistake found before one started."""
    try:
        result = cli.main(args=None if args is None else list(args), prog_name="miles", standalone_mode=False)
        sys.stdout.flush()
    except UsageErrors as errors:
        for error in errors.errors:
            _print_error(error)
        return errors.exit_code
    except MilesError as error:
        _print_error(error)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone; Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def _print_error(error: MilesError) -> None:
    click.echo(error.line(), err=True)
    for note in getattr(error, "__notes__", ()):
        click.echo(note, err=True)


if __name__ == "__main__":
    sys.exit(main())
