"""An instruction, and the arguments that a row gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from miles_rewards.ungradable import Ungradable

Check = Callable[[str, "Arguments"], bool]
"""Whether a response, which is not blank, follows an instruction with these arguments. Takes time linear in the response."""


class Arguments:
    """The ``kwargs`` of one instruction. What an instruction does not ask for is ignored.

    Every method raises :class:`Ungradable` when the row does not have it, or has something else.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def integer(self, name: str) -> int:
        """A whole number, which data sets also write as ``5.0``."""
        value = self._values.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._bad(name, "a whole number")
        return value

    def number(self, name: str) -> float:
        """A number."""
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise self._bad(name, "a number")
        return float(value)

    def text(self, name: str) -> str:
        """A text that is not empty, without white space around it."""
        value = self._values.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self._bad(name, "a text")
        return value.strip()

    def texts(self, name: str) -> list[str]:
        """At least one text."""
        value = self._values.get(name)
        if not isinstance(value, list) or not value or not all(isinstance(each, str) and each.strip() for each in value):
            raise self._bad(name, "a list of texts")
        return [each.strip() for each in value]

    def compared(self, count: int, wanted: str, relation: str) -> bool:
        """Whether ``count`` is ``less than``, or ``at least``, the number ``wanted``."""
        how, number = self._values.get(relation), self.number(wanted)
        if how == "less than":
            return count < number
        if how == "at least":
            return count >= number
        raise self._bad(relation, "'less than' or 'at least'")

    def _bad(self, name: str, wanted: str) -> Ungradable:
        value = self._values.get(name)
        return Ungradable(f"the instruction needs {name}, {wanted}" + ("" if value is None else f", and it is {str(value)[:60]!r}"))
