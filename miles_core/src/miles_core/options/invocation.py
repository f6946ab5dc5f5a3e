"""Options of one call of ``miles run`` that are no options of the run."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options.option import option


@dataclass(frozen=True)
class InvocationOptions:
    """This command"""

    help: bool = option(False, flag="--help", aliases=("-h",), help="Show the options of core and of the selected plugins.")
    help_all: bool = option(False, flag="--help-all", help="Show the options of every installed plugin.")
    dry_run: bool = option(False, flag="--dry-run", help="Check everything and print the plan; start nothing.")
    config: str | None = option(
        None,
        flag="--config",
        metavar="FILE",
        help="YAML file of options; keys are flags without dashes. The environment (MILES_LR for --lr) and arguments win over it.",
    )
