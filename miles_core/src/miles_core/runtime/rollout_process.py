"""The rollout manager's process: an asynchronous Ray actor around :class:`miles_core.rollout.manager.RolloutManager`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any

import ray

from miles_core.config import DataOptions, DebugOptions, LoopOptions, TrainingOptions
from miles_core.options import Config
from miles_core.runtime.identity import ProcessIdentity, recorded_async
from miles_core.runtime.plan import Front, RunPlan


class RolloutProcess:
    """Generates, grades, and hands out training rows as one object per data-parallel rank."""

    def __init__(self, identity: ProcessIdentity, config: Config, plan: RunPlan) -> None:
        self.identity = identity
        identity.assume()
        self.config = config
        self.plan = plan
        self._before = -1, ""

    async def pid(self) -> int:
        """This process's id."""
        return os.getpid()

    async def sentinel(self) -> None:
        """Never returns, see :class:`miles_core.runtime.watch.Watched`."""
        await asyncio.Event().wait()

    async def reads(self) -> frozenset[str]:
        """Flags that this process read."""
        return self.config.reads()

    @recorded_async
    async def start(self, urls: Sequence[str], front: Front | None) -> Any:
        """Read the data and connect to the engines, by way of the router in front of them."""
        from miles_core.debug.replay import ReplayedRollouts
        from miles_core.rollout.manager import RolloutManager

        replays = self.config.get(DebugOptions).load_debug_rollout_data is not None
        self._manager = (ReplayedRollouts if replays else RolloutManager)(self.config, self.plan)
        return await self._manager.start(urls, front)

    @recorded_async
    async def generate(
        self, rollout_id: int, data_size: int, critic_data_size: int, served: int, trained_at: int
    ) -> dict[str, Any]:
        """One rollout: metrics, examples, and one reference to a :class:`RankBatch` per data-parallel rank of actor and critic.

        Args:
            served: version of the weights that engines serve now.
            trained_at: the one that they will serve when the rollout is trained on.
        """
        from miles_core.training.exchange import critic_rows
        from miles_core.training.split import split_rows
        from miles_core.training.steps import fit_steps

        if self.config.get(LoopOptions).loop == "one-step":
            # The rollout before this one is still to be trained on and saved: what is saved then has to be as it is now.
            self._before = rollout_id, json.dumps(self._manager.state())
        result = await self._manager.generate(rollout_id, trained_at)
        balance = self.config.get(TrainingOptions).balance_data
        rows, steps = fit_steps(result.rows, self.plan.batch, self.config.get(DataOptions), data_size)
        if len(rows) < len(result.rows):
            result.metrics["rollout/trimmed_samples"] = float(len(result.rows) - len(rows))

        def divided(rows: Sequence[Any], size: int) -> list[Any]:
            batches = split_rows(rows, data_size=size, steps=steps, balance=balance, rollout_id=rollout_id)
            return [ray.put(batch) for batch in batches]

        return {
            "batches": divided(rows, data_size),
            "critic_batches": divided(critic_rows(rows), critic_data_size) if critic_data_size else [],
            "metrics": result.metrics,
            "examples": result.examples,
            "version": served,
        }

    @recorded_async
    async def evaluate(self, rollout_id: int) -> dict[str, float]:
        """Evaluate on every set."""
        return await self._manager.evaluate(rollout_id)

    async def progress(self) -> dict[str, Any]:
        """How far the current phase is."""
        return self._manager.progress()

    @recorded_async
    async def state(self, rollout_id: int) -> dict[str, Any]:
        """What must be saved to go on with this rollout, which may have begun."""
        if self._before[0] == rollout_id:
            state: dict[str, Any] = json.loads(self._before[1])
            return state
        return self._manager.state()

    @recorded_async
    async def published(self, rollout_id: int, version: int) -> None:
        """Engines serve new weights."""
        self._manager.published(rollout_id, version)

    @recorded_async
    async def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._manager.load_state(state)

    @recorded_async
    async def close(self) -> None:
        """End graders and connections."""
        await self._manager.close()
