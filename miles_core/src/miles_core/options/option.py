"""Declaring options: a field of a frozen dataclass with its help, flag and constraints."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_KEY = "miles.option"


@dataclass(frozen=True)
class Declared:
    """What the author of an option wrote besides its type and default."""

    help: str
    flag: str | None = None
    aliases: tuple[str, ...] = ()
    choices: tuple[Any, ...] = ()
    metavar: str | None = None
    secret: bool = False
    signature: str | None = None
    section: str | None = None


@dataclass(frozen=True)
class Option:
    """One option as the parser, the help and the validation see it.

    Attributes:
        owner: ``core`` or the name of the plugin that declares it.
        group: the dataclass that holds the field.
        field: name of the field in ``group``.
        flag: the flag on the command line, ``--like-this``; the key of YAML files is the flag without dashes in front.
        kind: the value's type without ``None``: bool, int, float, str, list[T] or dict.
        optional: whether ``None`` is a legal value.
        signature: for a dotted path, the name of the call signature that it must have.
    """

    owner: str
    group: type
    field: str
    flag: str
    kind: Any
    optional: bool
    default: Any
    declared: Declared


def option(
    default: Any,
    *,
    help: str,  # noqa: A002 - the field's word for it
    flag: str | None = None,
    aliases: Sequence[str] = (),
    choices: Sequence[Any] = (),
    metavar: str | None = None,
    secret: bool = False,
    signature: str | None = None,
    section: str | None = None,
) -> Any:
    """Declare a field of an option dataclass.

    Args:
        default: the default; lists and dicts are given as such and copied.
        help: one sentence for ``--help``, with units.
        flag: the flag; None makes it ``--<plugin>-<field>``.
        aliases: further flags of the same meaning.
        choices: the only legal values; empty for any.
        metavar: what ``--help`` shows for the value.
        secret: never shown in logs, configs or run folders.
        signature: marks a dotted path, see ``miles_core.plugins.adhoc``.
        section: heading in ``--help``; None takes the dataclass's.
    """
    declared = Declared(help, flag, tuple(aliases), tuple(choices), metavar, secret, signature, section)
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata={_KEY: declared})
    return dataclasses.field(default=default, metadata={_KEY: declared})


def options_of(group: type, owner: str) -> list[Option]:
    """The options that an option dataclass declares, in order.

    Raises:
        TypeError: ``group`` is not a frozen dataclass, or a field of it was not made with :func:`option`.
    """
    if not dataclasses.is_dataclass(group) or not group.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"{group.__qualname__} must be a frozen dataclass")
    hints = typing.get_type_hints(group)
    found = []
    for field in dataclasses.fields(group):
        declared = field.metadata.get(_KEY)
        if declared is None:
            raise TypeError(f"{group.__qualname__}.{field.name} is not declared with option(...)")
        kind, optional = _without_none(hints[field.name])
        flag = declared.flag or f"--{owner}-{field.name}".replace("_", "-")
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[operator]
        found.append(Option(owner, group, field.name, flag, kind, optional, default, declared))
    return found


def _without_none(hint: Any) -> tuple[Any, bool]:
    args = typing.get_args(hint)
    if type(None) in args:
        rest = [a for a in args if a is not type(None)]
        if len(rest) != 1:
            raise TypeError(f"an option has one type besides None, not {hint}")
        return rest[0], True
    return hint, False
