"""The exception types that carry miles' one-line errors."""

from __future__ import annotations

from collections.abc import Sequence


class MilesError(Exception):
    """An error that a user can act on.

    Args:
        code: stable code that ``miles explain`` knows, such as ``M105``.
        what: what is wrong, as a clause that starts in lower case.
        owner: whose it is: ``miles-core 0.1.0``, ``miles-fsdp 0.1.0``, a file and line, or a process.
        why: the cause, when it is not already said by ``what``.
        fix: what to do about it.
        data: facts for programs (plugin, path, line, ...), never secrets.
    """

    exit_code = 1

    def __init__(self, code: str, what: str, *, owner: str = "", why: str = "", fix: str = "", **data: object) -> None:
        self.code = code
        self.what = what
        self.owner = owner
        self.why = why
        self.fix = fix
        self.data = data
        super().__init__(self.line())

    def line(self) -> str:
        """The error on one line: ``M105 owner: what: why. Do: fix``."""
        head = f"{self.code} {self.owner}: {self.what}" if self.owner else f"{self.code} {self.what}"
        if self.why:
            head += f": {self.why}"
        if self.fix:
            head = f"{head.rstrip('.')}. Do: {self.fix}"
        return " ".join(head.split())

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.code, self.what, self.owner, self.why, self.fix, self.data)


def _rebuild(kind: type[MilesError], code: str, what: str, owner: str, why: str, fix: str, data: dict[str, object]) -> MilesError:
    error = kind.__new__(kind)
    MilesError.__init__(error, code, what, owner=owner, why=why, fix=fix, **data)
    return error


class UsageError(MilesError, ValueError):
    """The user's mistake: bad option, data or checkpoint. Exit code 2, before anything starts."""

    exit_code = 2


class PluginError(UsageError):
    """A named plugin cannot be used (codes M101 to M111)."""


class RunError(MilesError, RuntimeError):
    """A run that had started cannot go on."""


class UsageErrors(UsageError):
    """All usage errors that one validation pass found, together."""

    def __init__(self, errors: Sequence[MilesError]) -> None:
        self.errors = tuple(errors)
        super().__init__("M200", f"{len(self.errors)} errors" if len(self.errors) != 1 else "1 error")

    def __str__(self) -> str:
        return "\n".join(error.line() for error in self.errors)

    def __reduce__(self) -> tuple[object, ...]:
        return UsageErrors, (self.errors,)
