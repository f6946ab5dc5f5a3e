"""States that are written in the background: by real processes of ranks, held up, failing and killed in between."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from miles_core.config import CheckpointOptions
from miles_core.errors import MilesError
from miles_core.options import Config
from miles_core.runtime.crew import Crew
from miles_core.runtime.identity import ProcessIdentity
from miles_core.runtime.rank_process import RankProcess
from miles_core.runtime.saving import Saver
from miles_core.runtime.supervisor import Supervisor
from miles_core.runtime.watch import GROUPS
from miles_core.state import HeldState, StateStore

pytestmark = pytest.mark.slow
SECONDS = 30.0


class Gated:
    """A backend with a number as its weights, whose thread waits for a file called ``gate``."""

    def __init__(self, gate: Path) -> None:
        self.gate = gate
        self.weights = 0

    def hold(self, directory: Path) -> HeldState:
        held = str(self.weights)

        def write() -> str:
            while not self.gate.exists():
                time.sleep(0.01)
            if self.gate.read_text() == "full":
                raise OSError(28, "No space left on device")
            (directory / "weights").write_text(held)
            return held

        return HeldState(write, lambda parts: (directory / "all").write_text(",".join(parts)) and None)


class Rank(RankProcess):
    """A rank whose training adds one."""

    def __init__(self, identity: ProcessIdentity, gate: Path) -> None:
        super().__init__(identity, Config.of(), SimpleNamespace())  # type: ignore[arg-type]
        self.backend = Gated(gate)

    def train(self) -> int:
        self.backend.weights += 1
        return self.backend.weights


class Rollout:
    """A rollout manager's position."""

    def state(self, following: int) -> dict[str, int]:
        return {"next": following}


class Bench:
    """A crew of one rank, a saver, and what they said."""

    def __init__(self, folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        self.gate, self.states = folder / "gate", folder / "states"
        cluster = SimpleNamespace(dead_system_process=lambda: None, adopt=lambda: None, system={})
        self.supervisor = Supervisor(cluster, folder)  # type: ignore[arg-type]
        identity = ProcessIdentity("trainer", 0, folder)
        self.rank = ray.remote(concurrency_groups=GROUPS)(Rank).options(num_cpus=0).remote(identity, self.gate)
        self.supervisor.watch(identity, self.rank)
        self.supervisor.learn_pids()
        rollout = ray.remote(Rollout).options(num_cpus=0).remote()
        plugin = SimpleNamespace(kind="backend", distribution="tests", name="gated", version="1")
        plan: Any = SimpleNamespace(
            checkpoint=folder / "model",
            placement=SimpleNamespace(trainers=1, critics=0),
            plugins=SimpleNamespace(backend=plugin, loss=plugin),
        )
        self.counted: list[int] = []
        self.said: list[str] = []
        config = Config.of(CheckpointOptions(save=str(self.states), async_save=True))
        crew = Crew(plan, self.supervisor, trainers=[self.rank], rollout=rollout)
        self.saver = Saver(config, plan, crew, lambda rollout_id, path: self.counted.append(rollout_id), self.said.append)

    def train(self) -> int:
        weights: int = self.supervisor.wait([self.rank.train.remote()], "training")[0]
        return weights

    def save(self, rollout_id: int) -> None:
        self.saver.save(rollout_id, rollout_id, {"reward": float(rollout_id)})

    def until(self, condition: Callable[[], bool]) -> None:
        self.supervisor.until(condition, "the test", SECONDS)

    def newest(self) -> tuple[int, str] | None:
        """Rollout and weights of the state that a run would go on from."""
        found = StateStore(self.states).latest()
        return None if found is None else (found.rollout_id, (found.path / "trainer" / "all").read_text())


@pytest.fixture
def bench(cluster: str, tmp_path: Path) -> Iterator[Bench]:
    assert ray.get_runtime_context().gcs_address == cluster, "the session's cluster is this process's, too"
    made = Bench(tmp_path)
    yield made
    ray.kill(made.rank)


def test_training_goes_on_and_the_state_counts_once_it_is_whole(bench: Bench) -> None:
    bench.train()
    bench.save(0)
    assert [bench.train(), bench.train()] == [2, 3], "a rank trains while its thread is held up"
    assert bench.newest() is None
    assert bench.counted == []
    bench.gate.write_text("")
    bench.until(lambda: bench.counted == [0])
    assert bench.newest() == (0, "1")
    # A second save waits for the one before it, with a line that says so.
    bench.gate.unlink()
    bench.save(1)
    timer = threading.Timer(0.5, bench.gate.write_text, [""])
    timer.start()
    bench.save(2)
    timer.join()
    assert bench.counted[:2] == [0, 1]
    assert bench.said == ["saving after rollout 2 waits: the state after 1 is still being written"]
    bench.saver.settle()
    assert bench.counted == [0, 1, 2]
    assert bench.newest() == (2, "3")
    bench.saver.abandon()
    assert len(bench.said) == 1, "nothing is left to abandon"
    # One that is killed in between leaves the state before it.
    bench.gate.unlink()
    bench.train()
    bench.save(3)
    os.kill(bench.supervisor.members[0].pid, signal.SIGKILL)
    with pytest.raises(MilesError, match=r"M481 .*trainer-0"):
        bench.saver.settle()
    assert bench.newest() == (2, "3")
    bench.saver.abandon()
    assert bench.said[1] == "the state after rollout 3 was not written to its end: the one before it is the newest"
    assert not list(bench.states.glob("*.tmp-*"))


def test_a_full_disk_is_one_line_at_the_next_wait(bench: Bench) -> None:
    bench.save(0)
    bench.gate.write_text("full")
    with pytest.raises(MilesError, match=r"M477 .*step_0000000\.tmp.*No space left on device.*--save-total-limit"):
        bench.until(lambda: False)
    assert bench.newest() is None
