"""Parsing the command line of a run: every mistake at once, each with the number of its argument."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from miles_core.errors import UsageError
from miles_core.options.convert import BadValue, from_text, is_list
from miles_core.options.option import Option
from miles_core.options.table import FlagTable, Setting, bad_value, given_twice
from miles_core.options.value import Source

_FLAG = re.compile(r"--?[A-Za-z]")
_NUMBER = re.compile(r"-(inf|infinity)", re.IGNORECASE)


@dataclass(frozen=True)
class Words:
    """A flag as it was written, with the arguments up to the next flag.

    Attributes:
        flag: without ``=...``; empty for arguments in front of the first flag.
        position: number of the argument, from 1.
        inline: text behind ``=``, or None.
        values: further arguments, each with its position.
    """

    flag: str
    position: int
    inline: str | None
    values: tuple[tuple[int, str], ...]

    @property
    def place(self) -> str:
        """The place as messages name it."""
        return f"argument {self.position}"


@dataclass
class Parsed:
    """Settings and mistakes of one source. ``unknown`` are names that no option has, each with its place."""

    settings: list[Setting] = field(default_factory=list)
    errors: list[UsageError] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def split_arguments(arguments: Sequence[str]) -> list[Words]:
    """Group the arguments by flag. A negative number is a value; a text that starts with dashes is given as ``--flag=--text``."""
    groups: list[tuple[str, int, str | None, list[tuple[int, str]]]] = []
    for position, argument in enumerate(arguments, 1):
        if _FLAG.match(argument) and not _NUMBER.fullmatch(argument):
            flag, equals, inline = argument.partition("=")
            groups.append((flag, position, inline if equals else None, []))
        else:
            if not groups:
                groups.append(("", position, None, []))
            groups[-1][3].append((position, argument))
    return [Words(flag, position, inline, tuple(values)) for flag, position, inline, values in groups]


def parse_arguments(words: Sequence[Words], table: FlagTable) -> Parsed:
    """Every setting of a command line. A list option that is given again goes on with the list."""
    parsed = Parsed()
    first: dict[tuple[type, str], Setting] = {}
    for group in words:
        if not group.flag:
            parsed.errors += [_stray(position, text, None) for position, text in group.values]
            continue
        known = table.flag(group.flag)
        if known is None:
            parsed.unknown.append((group.flag, group.place))
            continue
        setting = _setting(group, *known, parsed.errors)
        if setting is None:
            continue
        option = setting.option
        before = first.get((option.group, option.field))
        if before is None:
            first[option.group, option.field] = setting
            parsed.settings.append(setting)
        elif is_list(option):
            assert isinstance(before.value, list)
            assert isinstance(setting.value, list)
            before.value.extend(setting.value)
        else:
            parsed.errors.append(given_twice(option, before, setting))
    return parsed


def _setting(group: Words, option: Option, positive: bool, errors: list[UsageError]) -> Setting | None:
    texts = list(group.values) if group.inline is None else [(group.position, group.inline), *group.values]
    value: Any = positive
    try:
        if option.kind is bool:
            if group.inline is not None:
                value = from_text(option, texts.pop(0)[1]) is positive
            errors += [_stray(position, text, option) for position, text in texts]
        elif is_list(option):
            if not texts:
                errors.append(_missing(group, option))
                return None
            value = [] if group.inline == "" and len(texts) == 1 else _elements(option, texts, errors)
        elif not texts:
            errors.append(_missing(group, option))
            return None
        else:
            value = from_text(option, texts[0][1])
            errors += [_stray(position, text, option) for position, text in texts[1:]]
    except BadValue as problem:
        shown = group.inline if group.inline is not None else group.values[0][1]
        errors.append(bad_value(option, shown, group.place, problem))
        return None
    return Setting(option, value, Source.COMMAND_LINE, group.place, group.flag)


def _elements(option: Option, texts: list[tuple[int, str]], errors: list[UsageError]) -> list[Any]:
    found = []
    for position, text in texts:
        try:
            found.append(from_text(option, text))
        except BadValue as problem:
            errors.append(bad_value(option, text, f"argument {position}", problem))
    return found


def _missing(group: Words, option: Option) -> UsageError:
    metavar = option.declared.metavar or "VALUE"
    fix = f"write {group.flag} {metavar}; a value that starts with a dash is written {group.flag}=-VALUE"
    return UsageError("M202", f"{group.flag} has no value", owner=group.place, fix=fix, flag=option.flag)


def _stray(position: int, text: str, before: Option | None) -> UsageError:
    if before is None:
        fix = "every value follows its flag: --flag VALUE"
    elif before.kind is bool:
        fix = f"{before.flag} takes no value; write {before.flag}, or --no-{before.flag[2:]} to turn it off"
    else:
        fix = f"{before.flag} takes one value; quote a value that has spaces"
    shown = "a value" if before is not None and before.declared.secret else repr(text)
    return UsageError("M202", f"{shown} belongs to no option", owner=f"argument {position}", fix=fix)
