"""Saving the whole of a run: actor, critic, rollout manager and counters, as one atomic state."""

from __future__ import annotations

import json
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

    def due(self, rollout_id: int, total: int) -> bool:
        """Whether a state is due after this rollout."""
        if self._store is None:
            return False
        interval = self._options.save_interval
        return rollout_id == total - 1 or (interval is not None and (rollout_id + 1) % interval == 0)

    def save(self, rollout_id: int, version: int) -> Path:
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
        state = self._crew.manager("state", what="the rollout manager's state")
        (folder / ROLLOUT_FILE).write_text(json.dumps(state), encoding="utf-8")
        plugins = self._plan.plugins
        meta: dict[str, Any] = {
            "rollout_id": rollout_id,
            "weight_version": version,
            "model_fingerprint": model_fingerprint(self._plan.checkpoint),
            "trainers": self._plan.placement.trainers,
            "critics": self._plan.placement.critics,
            "plugins": {ref.kind: f"{ref.distribution}:{ref.name} {ref.version}" for ref in (plugins.backend, plugins.loss)},
        }
        return self._store.commit(rollout_id, meta, keep=self._options.save_total_limit)


def read_progress(folder: Path) -> tuple[int, int, dict[str, Any]]:
    """Of a saved state: the rollout that it had finished, the weight version, and the rollout manager's state."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    state = json.loads((folder / ROLLOUT_FILE).read_text(encoding="utf-8"))
    return int(meta["rollout_id"]), int(meta["weight_version"]), state
