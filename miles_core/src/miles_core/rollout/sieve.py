"""Which graded groups are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from miles_core.errors import RunError
from miles_core.protocols import Filter
from miles_core.samples import Sample

if TYPE_CHECKING:
    from miles_core.rollout.collector import Collected

FRUITLESS_ROLLOUTS = 20


@dataclass
class Sieve:
    """The filters of a run, and how many groups in a row they have dropped.

    Args:
        filters: each sees a group that those before it keep.
        count: groups of a rollout; filters that drop twenty times as many in a row end the run.
    """

    filters: Sequence[Filter]
    count: int
    _dropped_in_a_row: int = 0

    def keeps(self, group: Sequence[Sample], found: Collected) -> bool:
        """Whether a group is trained on; why not is counted in ``found``.

        Raises:
            RunError: the filters drop everything (M401).
        """
        for filter_ in self.filters:
            decision = filter_(group)
            if not decision.keep:
                reason = decision.reason or type(filter_).__name__
                found.dropped[reason] += 1
                found.reasons[group[0].group_index] = reason
                self._dropped_in_a_row += 1
                self._check(found)
                return False
        self._dropped_in_a_row = 0
        return True

    def _check(self, found: Collected) -> None:
        if self._dropped_in_a_row < FRUITLESS_ROLLOUTS * self.count:
            return
        reasons = ", ".join(f"{reason} {n}" for reason, n in found.dropped.most_common())
        raise RunError(
            "M401",
            f"the filters dropped {self._dropped_in_a_row} groups in a row",
            owner="miles-core",
            why=f"dropped so far: {reasons}",
            fix="use prompts that are neither always solved nor never, or another --dynamic-sampling-filter-path",
        )
