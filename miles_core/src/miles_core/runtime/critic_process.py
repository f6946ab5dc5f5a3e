"""A critic rank: one Ray actor with torch.distributed, a backend with a value head and core's critic trainer inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from miles_core.config import CriticOptions
from miles_core.runtime.checks.critic import CRITIC_FOLDER
from miles_core.runtime.identity import recorded
from miles_core.runtime.rank_process import RankProcess


class CriticProcess(RankProcess):
    """One rank of the critic. It is asked for values before the actor computes advantages, and trained on the returns after."""

    @recorded
    def setup(self, address: tuple[str, int]) -> dict[str, Any]:
        """Join the other ranks, build the critic, and load the run state when the plan resumes one."""
        from miles_core.plugins import create
        from miles_core.protocols import ModelSpec
        from miles_core.training.critic import CriticTrainer, critic_config

        self.join(address, self.plan.placement.critics)
        plugins = self.plan.plugins
        assert plugins.critic_loss is not None
        loss: Any = create(plugins.critic_loss, self.config)
        source = self.config.get(CriticOptions).critic_load
        checkpoint = self.plan.checkpoint if source is None else Path(source).expanduser().absolute()
        self.backend = create(plugins.backend, critic_config(self.config))
        self.backend.setup(ModelSpec(checkpoint=checkpoint, train_steps=self.plan.batch.critic_steps, value_head=True))
        self.trainer = CriticTrainer(self.config, self.backend, loss)
        if self.plan.resume_from is not None:
            self.backend.load(self.plan.resume_from / CRITIC_FOLDER)
        if self.plan.placement.critics_take_turns:
            self.backend.offload()
        return {"data_size": self.backend.parallel.data_size}

    @recorded
    def values(self, batches: Sequence[Any]) -> Any:
        """The values of this rank's share, as a reference; None where there are none."""
        found = self.trainer.values(ray.get(batches[self.backend.parallel.data_rank]))
        return None if found is None else ray.put(found)

    @recorded
    def train(self, returns: Sequence[Any]) -> Any:
        """Train on the share of the last :meth:`values`; ``returns`` holds references of the actor's ranks."""
        return self.trainer.train(ray.get(list(returns)))
