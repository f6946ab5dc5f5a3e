"""Groups that a rollout began, or finished beyond what it needed, and that the next ones take first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from miles_core.errors import RunError, UsageError
from miles_core.rollout.codec import decode_sample, encode_sample
from miles_core.samples import Sample

Pick = Callable[[int, list[list[Sample]], int], list[list[Sample]]]
"""``pick(rollout_id, groups, count)``: takes at most ``count`` groups out of the list and returns them."""


def pop_first(buffer: list[list[Sample]], num_samples: int) -> list[list[Sample]]:
    """``--buffer-filter-path pop_first``, the default: the groups that have waited longest, at most ``num_samples``."""
    taken = buffer[:num_samples]
    del buffer[:num_samples]
    return taken


def _first(rollout_id: int, buffer: list[list[Sample]], num_samples: int) -> list[list[Sample]]:
    del rollout_id
    return pop_first(buffer, num_samples)


@dataclass
class GroupBuffer:
    """Whole groups, each with some tokens that are worth keeping; part of the run state.

    Args:
        pick: which groups go first.
        name: of ``pick``, for errors.
    """

    pick: Pick = _first
    name: str = "pop_first"
    groups: list[list[Sample]] = field(default_factory=list)
    _out: list[list[Sample]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.groups)

    def add(self, groups: Sequence[Sequence[Sample]]) -> None:
        """Put groups behind those that wait."""
        self.groups += [list(group) for group in groups]

    def settle(self) -> None:
        """End a rollout: what was taken for it is used, or was put back with :meth:`add`."""
        self._out = []

    def take(self, rollout_id: int, count: int) -> list[list[Sample]]:
        """At most ``count`` groups, which are no longer in the buffer.

        Raises:
            RunError: the function that chooses them invents groups, leaves in the buffer what it returns, takes out what it does
                not return, or returns more than it was asked for (M406).
        """
        if not self.groups or count <= 0:
            return []
        before = {id(group): group for group in self.groups}
        taken = self.pick(rollout_id, self.groups, count)
        problem = _problem(before, self.groups, taken, count)
        if problem:
            raise RunError(
                "M406",
                f"the buffer filter {problem}",
                owner=f"--buffer-filter-path {self.name}",
                fix="remove from the list, in place, exactly the groups that are returned, at most num_samples of them",
            )
        self._out += [[_copied(sample) for sample in group] for group in taken]
        return taken

    def state(self) -> list[list[dict[str, Any]]]:
        """What :meth:`load_state` takes; plain JSON. What is out during a rollout counts as waiting, as it was when it was taken.

        Raises:
            RunError: a hook put something into a sample that is no plain data (M408).
        """
        return [[encode_sample(sample) for sample in group] for group in [*self._out, *self.groups]]

    def load_state(self, state: Sequence[Sequence[dict[str, Any]]], n_samples: int) -> None:
        """Take the groups of a saved state in place of these.

        Raises:
            UsageError: they have another number of samples than ``n_samples`` (M409).
        """
        odd = next((len(group) for group in state if len(group) != n_samples), None)
        if odd is not None:
            raise UsageError(
                "M409",
                f"the saved buffer has groups of {odd} samples, and the run makes groups of {n_samples}",
                owner="miles-core",
                fix=f"resume with --n-samples-per-prompt {odd}, or start afresh without --load",
            )
        self.groups = [[decode_sample(document) for document in group] for group in state]
        self._out = []


def _copied(sample: Sample) -> Sample:
    """A sample that stays as it is when tokens are appended to this one."""
    return dataclasses.replace(
        sample,
        response_ids=list(sample.response_ids),
        rollout_log_probs=None if sample.rollout_log_probs is None else list(sample.rollout_log_probs),
        weight_versions=list(sample.weight_versions),
        loss_mask=None if sample.loss_mask is None else list(sample.loss_mask),
        metadata=dict(sample.metadata),
    )


def _problem(before: dict[int, list[Sample]], left: Sequence[object], taken: object, count: int) -> str:
    if not isinstance(taken, list):
        return f"returned {type(taken).__name__}, not a list of groups"
    if len(taken) > count:
        return f"returned {len(taken)} groups where {count} were asked for"
    given, kept = [id(group) for group in taken], [id(group) for group in left]
    if any(each not in before for each in [*given, *kept]):
        return "made a group that was not in the buffer"
    if len({*given, *kept}) < len(given) + len(kept):
        return "left a group in the buffer that it returned, or returned one twice"
    if len(given) + len(kept) < len(before):
        return f"lost {len(before) - len(given) - len(kept)} groups"
    return ""
