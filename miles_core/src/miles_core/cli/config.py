"""``miles config``."""

from __future__ import annotations

import json

import click

from miles_core.cli.run import RAW
from miles_core.cli.table import table
from miles_core.options import Config, Option, Value
from miles_core.options.export import MASK, shown


@click.group()
def config() -> None:
    """Show the resolved options, and where each came from."""


@config.command(context_settings={**RAW, "help_option_names": ["-h", "--help"], "allow_interspersed_args": True})
@click.option("--origin", is_flag=True, help="Also show source, place and owner of every value.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def show(arguments: tuple[str, ...], origin: bool, as_json: bool) -> None:
    """Show the options that `miles run ARGUMENTS` would have. Secrets are masked."""
    from miles_core.options.resolve import resolve
    from miles_core.runtime.planning import plan_run

    resolved = resolve(arguments)
    resolved.check()
    # Derived values are part of the answer; whether the data and the model are there is not the question.
    values = plan_run(resolved).config
    owners = {**resolved.selection.owners(), "core": "core"}
    click.echo(_json(values, owners) if as_json else _text(values, owners, origin))
    for line in resolved.warnings:
        click.echo(f"warning: {line}", err=True)


def _text(values: Config, owners: dict[str, str], origin: bool) -> str:
    if not origin:
        return "\n".join(f"{option.flag[2:]}: {shown(option, value.value)}" for option, value in values.items())
    rows = [
        (
            option.flag[2:],
            shown(option, value.value),
            value.source.name.lower().replace("_", " "),
            value.place,
            _owner(option, owners),
        )
        for option, value in values.items()
    ]
    return table(("OPTION", "VALUE", "SOURCE", "PLACE", "OWNER"), rows)


def _json(values: Config, owners: dict[str, str]) -> str:
    def row(option: Option, value: Value) -> dict[str, object]:
        plain = MASK if option.declared.secret and value.value else value.value
        source = value.source.name.lower()
        return {"value": plain, "source": source, "place": value.place, "owner": _owner(option, owners)}

    return json.dumps({option.flag[2:]: row(option, value) for option, value in values.items()}, indent=2)


def _owner(option: Option, owners: dict[str, str]) -> str:
    known = owners.get(option.owner, option.owner)
    return known if option.owner == "core" else f"{option.owner} ({known})"
