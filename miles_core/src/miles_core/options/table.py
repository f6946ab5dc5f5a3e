"""The flags that a command line may have, and what somebody who mistyped one meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from miles_core.errors import UsageError
from miles_core.options.convert import BadValue
from miles_core.options.option import Option
from miles_core.options.value import Source


@dataclass(frozen=True)
class Setting:
    """One value that one source gives to one option. ``written`` is the flag, key or variable as it was written."""

    option: Option
    value: object
    source: Source
    place: str
    written: str


class FlagTable:
    """Options by flag, alias, YAML key and environment variable.

    Where two options share a flag the first one has it; that conflict is reported elsewhere.
    """

    def __init__(self, options: Iterable[Option]) -> None:
        self.options = tuple(options)
        self._flags: dict[str, tuple[Option, bool]] = {}
        for option in self.options:
            for flag in (option.flag, *option.declared.aliases):
                self._flags.setdefault(flag, (option, True))
        for option in self.options:
            if option.kind is bool:
                for flag in (f for f in (option.flag, *option.declared.aliases) if f.startswith("--")):
                    self._flags.setdefault(f"--no-{flag[2:]}", (option, False))
        self._keys = {flag[2:].replace("-", "_"): option for flag, (option, positive) in self._flags.items() if positive}

    def flag(self, written: str) -> tuple[Option, bool] | None:
        """The option of a flag, and whether the flag turns it on; False for ``--no-...``."""
        return self._flags.get(written)

    def key(self, written: str) -> Option | None:
        """The option of a YAML key, which has ``-`` or ``_`` between words."""
        return self._keys.get(written.removeprefix("--").replace("-", "_"))

    def variable(self, name: str) -> Option | None:
        """The option of an environment variable ``MILES_...``."""
        return self._keys.get(name.removeprefix("MILES_").lower())

    def near_flag(self, written: str, cutoff: float = 0.6) -> str | None:
        """The flag that ``written`` is most likely meant to be."""
        near = difflib.get_close_matches("--" + written.lower().replace("_", "-").lstrip("-"), list(self._flags), 1, cutoff)
        return near[0] if near else None

    def near_key(self, written: str, cutoff: float = 0.6) -> str | None:
        """The YAML key that ``written`` is most likely meant to be."""
        near = difflib.get_close_matches(written.lower().replace("-", "_"), list(self._keys), 1, cutoff)
        return near[0].replace("_", "-") if near else None

    def near_variable(self, name: str, cutoff: float) -> str | None:
        """The environment variable that ``name`` is most likely meant to be."""
        near = difflib.get_close_matches(name.removeprefix("MILES_").lower(), list(self._keys), 1, cutoff)
        return f"MILES_{near[0].upper()}" if near else None


def bad_value(option: Option, text: object, place: str, problem: BadValue) -> UsageError:
    """M203, without the text of a secret."""
    shown = "the given value" if option.declared.secret else repr(text)
    why = f"expected {problem}" if not option.declared.secret else "it is of another type"
    fix = f"see {option.flag} in miles run --help"
    return UsageError("M203", f"{option.flag} cannot be {shown}", owner=place, why=why, fix=fix, flag=option.flag)


def given_twice(option: Option, first: Setting, second: Setting) -> UsageError:
    """M204, naming both places."""
    both = f"{first.written} at {first.place} and {second.written} at {second.place}"
    return UsageError("M204", f"{option.flag} is given twice", owner=second.place, why=both, fix="keep one", flag=option.flag)
