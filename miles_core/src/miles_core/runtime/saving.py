"""Saving the whole of a run: actor, critic, rollout manager and counters, as one atomic state."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from miles_core.config import CheckpointOptions
from miles_core.runtime.checks.critic import CRITIC_FOLDER

if TYPE_CHECKING:
    from miles_core.options import Config
    from miles_core.runtime.crew import Crew
    from miles_core.runtime.plan import RunPlan

ROLLOUT_FILE = "rollout.json"
TRAINER_FOLDER = "trainer"


@dataclass
class _Flight:
    """A state that is copied, and being written in the background.

    Attributes:
        writers: process, folder and pending call of each rank that writes.
        completing: the pending calls of the first ranks, once all have written.
    """

    rollout_id: int
    meta: Mapping[str, Any]
    writers: list[tuple[Any, Path, Any]]
    completing: list[Any] | None = None

    @property
    def calls(self) -> list[Any]:
        """Those that are waited for now."""
        return [call for _, _, call in self.writers] if self.completing is None else self.completing


class Saver:
    """Writes run states into ``--save``: at once, or with ``--async-save`` beside what follows.

    In the background at most one state is written at a time. It counts once every rank's files are complete and on disk: until then
    the state before it is the newest. The driver looks after it whenever it waits for anything.

    Args:
        config: the run's options.
        plan: the run.
        crew: whose states are saved.
        saved: told of each state that counts from now on, with its rollout and folder.
        tell: says a line to the user.
    """

    def __init__(
        self, config: Config, plan: RunPlan, crew: Crew, saved: Callable[[int, Path], None], tell: Callable[[str], None]
    ) -> None:
        from miles_core.state import StateStore

        self._options = config.get(CheckpointOptions)
        self._plan = plan
        self._crew = crew
        self._store = StateStore(Path(self._options.save)) if self._options.save else None
        self._saved, self._tell = saved, tell
        self._flight: _Flight | None = None
        self._background = self._store is not None and self._options.async_save
        if self._background:
            crew.supervisor.attendants.append(self._look)

    def save(self, rollout_id: int, version: int, metrics: Mapping[str, float]) -> None:
        """Save everything; a crash on the way leaves the last good state in place. In the background, return once it is copied.

        Raises:
            RunError: the state before could not be written (M477), or this one (M460 to M464).
        """
        from miles_core.state import model_fingerprint

        assert self._store is not None
        if self._flight is not None:
            self._tell(f"saving after rollout {rollout_id} waits: the state after {self._flight.rollout_id} is still being written")
            self.settle()
        folder = self._store.begin(rollout_id)
        trainers, critics = folder / TRAINER_FOLDER, folder / CRITIC_FOLDER
        method = "hold" if self._background else "save"
        trainers.mkdir()
        self._crew.all_trainers(method, trainers, what="trainers to save")
        if self._crew.critics:
            critics.mkdir()
            with self._crew.critics_on_devices():
                self._crew.all_critics(method, critics, what="critics to save")
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
        if not self._background:
            self._commit(rollout_id, meta)
            return
        ranks = [*((t, trainers) for t in self._crew.trainers), *((c, critics) for c in self._crew.critics)]
        self._flight = _Flight(rollout_id, meta, [(rank, where, rank.write_held.remote(where)) for rank, where in ranks])

    def settle(self) -> None:
        """Wait for what is written in the background.

        Raises:
            RunError: it could not be written (M477, M460 to M464).
        """
        while (flight := self._flight) is not None:
            self._crew.supervisor.wait(flight.calls, f"the run state after rollout {flight.rollout_id} to be written")
            self._look()

    def abandon(self) -> None:
        """Remove what is half written, once no process writes any more; the state before it stays the newest."""
        if self._store is not None:
            self._store.abandon()
        if self._flight is not None:
            which = f"the state after rollout {self._flight.rollout_id}"
            self._tell(f"{which} was not written to its end: the one before it is the newest")
            self._flight = None

    def _look(self) -> None:
        """See how far the background is; never waits."""
        flight = self._flight
        if flight is None or not self._crew.supervisor.ended(flight.calls):
            return
        if flight.completing is not None:
            self._flight = None
            self._commit(flight.rollout_id, flight.meta)
            return
        parts: dict[Path, list[Any]] = {}
        firsts: dict[Path, Any] = {}
        for rank, folder, call in flight.writers:
            parts.setdefault(folder, []).append(ray.get(call))
            firsts.setdefault(folder, rank)
        flight.completing = [rank.complete_held.remote(folder, parts[folder]) for folder, rank in firsts.items()]

    def _commit(self, rollout_id: int, meta: Mapping[str, Any]) -> None:
        assert self._store is not None
        self._saved(rollout_id, self._store.commit(rollout_id, meta, keep=self._options.save_total_limit))


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
