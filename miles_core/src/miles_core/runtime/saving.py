"""Saving the whole of a run: actor, critic, rollout manager and counters, as one atomic state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miles_core.config import CheckpointOptions
from miles_core.runtime.checks.critic import CRITIC_FOLDER

if TYPE_CHECKING:
    from miles_core.options import Config
    from miles_core.runtime.crew import Crew
    from miles_core.runtime.plan import RunPlan

ROLLOUT_FILE = "rollout.json"
TRAINER_FOLDER = "trainer"


class Saver:
    """Writes run states into ``--save``."""

    def __init__(self, config: Config, plan: RunPlan, crew: Crew) -> None:
        from miles_core.state import StateStore

        self._options = config.get(CheckpointOptions)
        self._plan = plan
        self._crew = crew
        self._store = StateStore(Path(self._options.save)) if self._options.save else None

    def save(self, rollout_id: int, version: int, metrics: Mapping[str, float]) -> Path:
        """Save everything; a crash on the way leaves the last good state in place."""
        from miles_core.state import model_fingerprint

        assert self._store is not None
        folder = self._store.begin(rollout_id)
        (folder / TRAINER_FOLDER).mkdir()
        self._crew.all_trainers("save", folder / TRAINER_FOLDER, what="trainers to save")
        if self._crew.critics:
            (folder / CRITIC_FOLDER).mkdir()
            with self._crew.critics_on_devices():
                self._crew.all_critics("save", folder / CRITIC_FOLDER, what="critics to save")
        state = self._crew.manager("state", rollout_id + 1, what="the rollout manager's state")
        (folder / ROLLOUT_FILE).write_text(json.dumps(state), encoding="utf-8")
        plugins = self._plan.plugins
        meta: dict[str, Any] = {
            "rollout_id": rollout_id,
            "weight_version": version,
            "metrics": dict(metrics),
            "model_fingerprint": model_fingerprint(self._plan.checkpoint),
            "trainers": self._plan.placement.trainers,
            "critics": self._plan.placement.critics,
            "plugins": {ref.kind: f"{ref.distribution}:{ref.name} {ref.version}" for ref in (plugins.backend, plugins.loss)},
        }
        return self._store.commit(rollout_id, meta, keep=self._options.save_total_limit)


@dataclass(frozen=True)
class Progress:
    """How far a saved state is: the rollout that it had finished, that one's metrics, the version, the rollout manager's state."""

    rollout_id: int
    version: int
    metrics: Mapping[str, float]
    rollout: dict[str, Any]


def read_progress(folder: Path) -> Progress:
    """Of a saved state."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    state = json.loads((folder / ROLLOUT_FILE).read_text(encoding="utf-8"))
    return Progress(int(meta["rollout_id"]), int(meta["weight_version"]), meta["metrics"], state)
