"""How fast a run goes, and when it will end."""

from __future__ import annotations

import statistics
from collections import deque

WINDOW = 25
OUTLIER = 4.0


class Pace:
    """Seconds per rollout, from the times at which rollouts ended.

    The estimate is the mean of the last rollouts, in which none counts for more than :data:`OUTLIER` times the median: what comes
    back (an evaluation, a save) counts, a single stall does not.
    """

    def __init__(self, started: float) -> None:
        self._last = started
        self._seconds: deque[float] = deque(maxlen=WINDOW)

    def finish(self, now: float) -> None:
        """A rollout ended at ``now``, in seconds of a monotonic clock."""
        self._seconds.append(now - self._last)
        self._last = now

    @property
    def seconds(self) -> float | None:
        """Seconds per rollout, None before the first ended."""
        if not self._seconds:
            return None
        cap = OUTLIER * statistics.median(self._seconds)
        return statistics.fmean(min(seconds, cap) for seconds in self._seconds)

    def remaining(self, rollouts: int, now: float) -> float | None:
        """Seconds until ``rollouts`` more have ended, None when that cannot be said yet. Never negative."""
        seconds = self.seconds
        if seconds is None:
            return None
        underway = min(now - self._last, seconds)
        return max(0.0, rollouts * seconds - underway)
