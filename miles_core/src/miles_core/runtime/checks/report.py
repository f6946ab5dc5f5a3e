"""What the checks of a run write into: mistakes, warnings and derived options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from miles_core.config import DebugOptions, EvaluationOptions
from miles_core.errors import MilesError, UsageError
from miles_core.options import Config
from miles_core.options.option import options_of
from miles_core.options.selection import Selection
from miles_core.version import __version__

T = TypeVar("T")

OWNER = f"miles-core {__version__}"


@dataclass
class Report:
    """The state of one validation pass.

    ``config`` is replaced as options are derived. ``peek`` reads without a trace; :meth:`use` is for options that end up in the
    plan, which is what they are for, and so counts as reading them.
    """

    config: Config
    selection: Selection
    errors: list[MilesError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def peek(self, group: type[T]) -> T:
        """The options of one dataclass, without marking them as read."""
        return self.config.peek(group)

    def use(self, group: type, *fields: str) -> None:
        """Mark options as read, because the plan carries them."""
        for name in fields:
            self.config.mark_read(group, name)

    def derive(self, group: type, **changes: Any) -> None:
        """Set options that follow from others. An equal value keeps its origin."""
        now: Any = self.config.peek(group)
        changed = {name: value for name, value in changes.items() if getattr(now, name) != value}
        if changed:
            self.config = self.config.replaced(group, **changed)

    def chosen(self, group: type, name: str) -> bool:
        """Whether the user set the option."""
        return self.config.chosen(group, name)

    def error(self, code: str, what: str, *, owner: str = OWNER, why: str = "", fix: str = "", **data: object) -> None:
        """Add a mistake of the user."""
        self.errors.append(UsageError(code, what, owner=owner, why=why, fix=fix, **data))

    def warn(self, line: str) -> None:
        """Add a warning."""
        self.warnings.append(line)

    def said(self, group: type, name: str) -> str:
        """An option as messages name it: flag, value, and the place when the user set it."""
        value = self.config.value(group, name)
        flag = flag_of(group, name)
        if value.value is None:
            return flag
        text = flag if value.value is True else f"{flag} {value.value}"
        if value.value is False:
            text = f"--no-{flag[2:]}"
        return f"{text} ({value.place})" if value.place and self.chosen(group, name) else text

    @property
    def supervised(self) -> bool:
        """Whether responses come from the data."""
        return self.selection.supervised

    @property
    def has_critic(self) -> bool:
        """Whether a critic is trained besides the actor."""
        return self.selection.has_critic and not self.peek(DebugOptions).debug_rollout_only

    @property
    def evaluates(self) -> bool:
        """Whether the run evaluates."""
        return self.peek(EvaluationOptions).eval_interval is not None

    @property
    def generates(self) -> bool:
        """Whether the run has engines and a reward. Not known, and so not asked for, while the loss failed to load."""
        if self.selection.loss is None or self.peek(DebugOptions).debug_train_only:
            return False
        return not self.supervised or self.evaluates


def flag_of(group: type, name: str) -> str:
    """The flag of one field of a core group."""
    return next(option.flag for option in options_of(group, "core") if option.field == name)
