"""Turning text into the value of an option. The same rules hold for the command line, the environment and YAML scalars."""

from __future__ import annotations

import json
import math
import re
import typing
from typing import Any

from miles_core.options.option import Option

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_INTEGER = re.compile(r"[+-]?\d+(_\d+)*")


class BadValue(ValueError):
    """A text is no value of the option's type; the message says what is expected."""


def element_kind(option: Option) -> Any:
    """The type of an element of a list option."""
    arguments = typing.get_args(option.kind)
    return arguments[0] if arguments else str


def is_list(option: Option) -> bool:
    """Whether the option takes several values."""
    return (typing.get_origin(option.kind) or option.kind) is list


def is_dict(option: Option) -> bool:
    """Whether the option takes a mapping."""
    return (typing.get_origin(option.kind) or option.kind) is dict


def from_text(option: Option, text: str) -> Any:
    """The value that ``text`` stands for; for a list option, of one element.

    Raises:
        BadValue: ``text`` is no value of that type, or none of the choices.
    """
    if is_dict(option):
        return _mapping(text)
    kind = element_kind(option) if is_list(option) else option.kind
    return _choice(option, _scalar(kind, text))


def from_environment(option: Option, text: str) -> Any:
    """The value of an environment variable: lists are JSON, or separated by commas and spaces.

    Raises:
        BadValue: as :func:`from_text`.
    """
    if not is_list(option):
        return from_text(option, text)
    if text.lstrip().startswith("["):
        try:
            return from_data(option, json.loads(text))
        except ValueError as error:
            raise BadValue(f"a JSON list, or values separated by commas ({error})") from error
    return [from_text(option, part) for part in re.split(r"[,\s]+", text) if part]


def from_data(option: Option, data: Any) -> Any:
    """The value that Python data stands for, such as a recipe's default.

    Raises:
        BadValue: ``data`` is of another type.
    """
    if data is None:
        if not option.optional:
            raise BadValue(type_name(option))
        return None
    if is_list(option):
        items = list(data) if isinstance(data, (list, tuple)) else [data]
        return [_choice(option, _plain(element_kind(option), item)) for item in items]
    if is_dict(option):
        if isinstance(data, dict) and all(isinstance(key, str) for key in data):
            return dict(data)
        raise BadValue("a mapping with text keys")
    return _choice(option, _plain(option.kind, data))


def type_name(option: Option) -> str:
    """What a value of the option is called in messages."""
    if option.declared.choices:
        return " or ".join(str(choice) for choice in option.declared.choices)
    if is_dict(option):
        return "a JSON object"
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    return names.get(element_kind(option) if is_list(option) else option.kind, "a value")


def _plain(kind: Any, data: Any) -> Any:
    wanted = (int, float) if kind is float else kind
    if isinstance(data, wanted) and (kind is bool or not isinstance(data, bool)):
        return float(data) if kind is float else data
    raise BadValue({bool: "true or false", int: "an integer", float: "a number", str: "text"}.get(kind, "a value"))


def _scalar(kind: Any, text: str) -> Any:
    if kind is bool:
        word = text.strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise BadValue("true or false")
    if kind is int:
        return _integer(text)
    if kind is float:
        try:
            number = float(text)
        except ValueError:
            raise BadValue("a number") from None
        if math.isnan(number):
            raise BadValue("a number")
        return number
    return text


def _integer(text: str) -> int:
    if _INTEGER.fullmatch(text.strip()):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        raise BadValue("an integer") from None
    if not number.is_integer():
        raise BadValue("an integer")
    return int(number)


def _mapping(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise BadValue(f"a JSON object ({error})") from error
    if not isinstance(data, dict):
        raise BadValue("a JSON object")
    return data


def _choice(option: Option, value: Any) -> Any:
    if option.declared.choices and value not in option.declared.choices:
        raise BadValue(" or ".join(str(choice) for choice in option.declared.choices))
    return value
