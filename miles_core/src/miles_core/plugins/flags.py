"""Two owners of one flag."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from miles_core.errors import PluginError
from miles_core.options import Option


def check_flags(options: Iterable[Option], owners: Mapping[str, str] | None = None) -> list[PluginError]:
    """An M108 for every flag, alias included, that options of different dataclasses declare.

    One dataclass that several plugins share declares its flags once.

    Args:
        options: of core and of every selected plugin.
        owners: what to call an ``Option.owner`` in messages, such as ``miles-fsdp 0.1.0``.
    """
    called = owners or {}
    first: dict[str, Option] = {}
    errors = []
    for option in options:
        for flag in (option.flag, *option.declared.aliases):
            other = first.setdefault(flag, option)
            if (other.group, other.field) == (option.group, option.field):
                continue
            both = " and ".join(f"{called.get(o.owner, o.owner)} ({o.group.__qualname__}.{o.field})" for o in (other, option))
            fix = "use one of the two plugins without the other, or have one author rename the flag"
            errors.append(PluginError("M108", f"the flag {flag} has two owners", owner=both, fix=fix, flag=flag))
    return errors
