"""One engine over two nodes: two simulated nodes of a Ray cluster, and stand-ins for the server's part on each."""

from __future__ import annotations

import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

from miles_core.config import ClusterOptions, FaultToleranceOptions, RoutingOptions  # noqa: E402
from miles_core.errors import MilesError  # noqa: E402
from miles_core.options import Config  # noqa: E402
from miles_core.plugins.refs import PluginRef  # noqa: E402
from miles_core.runtime.cluster import connect  # noqa: E402
from miles_core.runtime.crew import _seats  # noqa: E402
from miles_core.runtime.engine_handle import RayEngineHandle  # noqa: E402
from miles_core.runtime.engine_places import EnginePlaces  # noqa: E402
from miles_core.runtime.medic import Medic  # noqa: E402
from miles_core.runtime.plan import PlacementPlan, RunPlan  # noqa: E402
from miles_core.runtime.reaper import Reaper  # noqa: E402
from miles_core.runtime.supervisor import Supervisor  # noqa: E402
from miles_core.weights import WeightPublisher, open_transport  # noqa: E402
from miles_sglang.options import ServerOptions, SGLangOptions  # noqa: E402

FAKE = Path(__file__).with_name("fake_server.py")


class Router:
    """Takes what the medic says."""

    def call(self, *words: str) -> None:
        pass


@pytest.fixture
def supervisor(tmp_path: Path):
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 1024**2}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    nodes.add_node(**node)
    reaper = Reaper()
    placement = PlacementPlan("cpu", 0, 1, 2, False, False, False, "gloo", nodes_per_engine=2)
    cluster = connect(placement, nodes.address, reaper)
    (tmp_path / "logs").mkdir()
    yield Supervisor(cluster, tmp_path)
    cluster.close()
    ray.shutdown()
    reaper.end_all()
    reaper.dismiss()
    nodes.shutdown()


def servers(checkpoint: Path) -> dict[int, psutil.Process]:
    """The stand-ins for parts of an engine that run, by node; not the guards around them, and no engine of one node."""
    found = {}
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        # The checkpoint is of this session: stand-ins of other sessions have another.
        if len(line) > 1 and line[1] == str(FAKE) and f"--model-path={checkpoint}" in line:
            found.update((int(word.partition("=")[2]), process) for word in line if word.startswith("--node-rank="))
    return found


def publish(transport: str, run_dir: Path, engine: Any, number: int, weights: dict[str, Any]) -> dict[str, Any]:
    """What the server says of itself afterwards."""
    publisher = WeightPublisher(open_transport(transport, run_dir, "t", ranks=2), bucket_bytes=1500, timeout=60)
    publisher.publish(number, weights.items(), [RayEngineHandle("engine-0", engine)])
    publisher.close()
    return ray.get(engine.call.remote("info"))


def test_an_engine_over_two_nodes_takes_weights_and_ends_and_comes_back_as_one(supervisor, checkpoint, weights, tmp_path) -> None:
    placement = PlacementPlan("cpu", 0, 1, 2, False, False, False, "gloo", nodes_per_engine=2)
    ref = PluginRef("engine", "sglang", "miles-sglang", version("miles-sglang"), "miles_sglang.engine:SGLangEngine")
    plan = RunPlan(plugins=Plugins(ref), batch=None, placement=placement, run_dir=tmp_path, checkpoint=checkpoint)  # type: ignore[arg-type]
    launcher = SGLangOptions(launcher=shlex.join([sys.executable, str(FAKE)]), launch_timeout=60.0)
    health = FaultToleranceOptions(use_fault_tolerance=True)
    config = Config.of(launcher, ServerOptions(), ClusterOptions(rollout_num_gpus_per_engine=2), RoutingOptions(), health)
    slots, seats = _seats(supervisor.cluster, placement)
    assert len({part[0].node for part in seats.engines[0]}) == 2
    places = EnginePlaces(config, plan, [[slots[p[0].bundle] for p in e] for e in seats.engines], (), {}, "127.0.0.1", 42)
    members = supervisor.watch_parts(places.processes(0))
    supervisor.learn_pids()
    parts = [[member.actor for member in members]]
    url, none = supervisor.wait(places.start(0, parts[0]), "the engine", 90)
    assert (url[:7], none) == ("http://", "")

    engines = [parts[0][0]]
    for number, transport in enumerate(("disk", "process_group"), 1):
        said = publish(transport, tmp_path, engines[0], number, weights(number))
        assert said["weight_version"] == str(number)
        assert said["nnodes"] == "2"
        assert said["digests"]["0"] == said["digests"]["1"] != ""

    router = ray.remote(Router).options(num_cpus=0).remote()
    lines: list[str] = []
    medic = Medic(places, supervisor, engines, router, health, False, parts, tell=lines.append)
    medic.admit([members], [url])
    before = servers(checkpoint)
    before[1].kill()
    supervisor.until(lambda: medic.restarts == 1, "the engine to come back", 90)
    assert "engine-0 is lost" in lines[0]
    assert "node 1 ended" in lines[0] or "node 1 is gone" in lines[0]
    after = servers(checkpoint)
    assert sorted(after) == [0, 1]
    assert not {p.pid for p in after.values()} & {p.pid for p in before.values()}
    assert publish("disk", tmp_path, engines[0], 3, weights(3))["weight_version"] == "3"

    # Without anybody who starts it again the run ends, and says which part it was.
    supervisor.attendants.clear()
    for member in medic.patients[0].members:
        member.lost = None
    after[1].kill()
    with pytest.raises(MilesError, match=r"M481.*SGLang server of engine 0, node 1 ended with exit code 137") as caught:
        supervisor.until(lambda: False, "an end", 60)
    assert "server_args" in caught.value.data["traceback"]
    ray.get([actor.call.remote("stop") for actor in parts[0]])
    deadline = time.monotonic() + 20
    while servers(checkpoint) and time.monotonic() < deadline:
        psutil.wait_procs(servers(checkpoint).values(), timeout=1)
    assert not servers(checkpoint)


class Plugins:
    """The one plugin that engines ask for."""

    def __init__(self, engine: PluginRef) -> None:
        self.engine = engine
