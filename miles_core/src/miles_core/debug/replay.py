"""``--load-debug-rollout-data``: rollouts from files in the place of engines and rewards."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from miles_core.config import DebugOptions
from miles_core.debug.paths import fill
from miles_core.debug.rollout_file import read_rollout
from miles_core.plugins import create
from miles_core.rollout.manager import ROLLOUT_HOOKS, ManagerInfo, RolloutManager, RolloutResult
from miles_core.runtime.plan import Front
from miles_core.samples import Sample


class ReplayedRollouts(RolloutManager):
    """A rollout manager that reads its samples. Rewards are shaped, and samples made to rows, as of samples just graded.

    Filters, buffers and functions that decide on samples had their say when the file was written.
    """

    async def start(self, urls: Sequence[str], front: Front | None = None) -> ManagerInfo:
        """Nothing is read yet; there are no engines."""
        plugins = self._plan.plugins
        self._options = self._config.get(DebugOptions)
        self._hooks = {name: create(ref, self._config) for name, ref in plugins.functions.items() if name in ROLLOUT_HOOKS}
        self._advantage = create(plugins.advantage, self._config) if plugins.advantage else None
        self._state: dict[str, Any] = {"source": None, "buffer": []}
        return ManagerInfo(0, 0, [f"rollouts are read from {self._options.load_debug_rollout_data}"])

    async def generate(self, rollout_id: int, version: int | None = None) -> RolloutResult:
        """The rollout of that number.

        Raises:
            RunError: its file cannot be read (M372).
        """
        started = time.perf_counter()
        assert self._options.load_debug_rollout_data is not None
        saved = read_rollout(fill(self._options.load_debug_rollout_data, rollout_id=rollout_id))
        samples = _share(saved.samples, self._options.load_debug_rollout_data_subsample)
        penalty = None if self._plan.plugins.supervised else self._overlong()
        rewards = [sample.reward for sample in samples if sample.reward is not None]
        metrics = {"perf/rollout_time": time.perf_counter() - started}
        if rewards:
            metrics["rollout/raw_reward"] = statistics.fmean(rewards)
        return RolloutResult(self._rows(samples, penalty), metrics, [])

    def state(self) -> dict[str, Any]:
        """What was loaded: a replay has no place in the data of its own."""
        return self._state

    def load_state(self, state: dict[str, Any]) -> None:
        """Keep the state of the run that is resumed."""
        self._state = state


def _share(samples: list[Sample], share: float | None) -> list[Sample]:
    """Whole groups from the front and the back, ``share`` of all of them and at least one."""
    if share is None:
        return samples
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group_index, []).append(sample)
    every = list(groups.values())
    count = max(1, min(len(every), round(len(every) * share)))
    front = -(-count // 2)
    kept = every[:front] + every[len(every) - (count - front) :]
    return [sample for group in kept for sample in group]
