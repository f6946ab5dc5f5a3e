"""The Ray cluster of a run: a local one of its own, or one to join."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from miles_core.errors import RunError
from miles_core.runtime.deaths import Deaths
from miles_core.runtime.plan import PlacementPlan
from miles_core.runtime.processors import usable_cpus
from miles_core.runtime.reaper import Reaper

OBJECT_STORE_BYTES = 512 * 1024**2
PLACEMENT_TIMEOUT = 60.0
SYSTEM = {
    "gcs_server": "gcs_server",
    "raylet": "raylet",
    "monitor.py": "monitor",
    "log_monitor.py": "log_monitor",
    "dashboard.py": "dashboard",
}
"""Ray's processes by the file that they run."""
AGENTS = {"ray::DashboardAgent": "dashboard_agent", "ray::RuntimeEnvAgent": "runtime_env_agent"}
"""Ray's processes by the title that they give themselves."""


@dataclass
class Cluster:
    """A connected cluster with room for the run.

    Attributes:
        local: whether this run started it, and so ends it.
        group: the placement group with one bundle per device; None where the run takes none.
        deaths: watches the reaper and, of a local cluster, Ray's own processes.
    """

    local: bool
    group: Any
    reaper: Reaper
    deaths: Deaths = field(default_factory=Deaths)

    @property
    def system(self) -> dict[str, psutil.Process]:
        """Processes besides the run's own that it cannot live without, by name."""
        return self.deaths.processes

    def adopt(self) -> None:
        """Tell the reaper of new child processes, and watch those that are Ray's."""
        children = self.reaper.adopt_children()
        self.deaths.add("reaper", psutil.Process(self.reaper.pid))
        for process in children if self.local else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                name = _system_name(process)
                if name is not None:
                    self.deaths.add(name, process)

    def dead_system_process(self) -> str | None:
        """Name of a process of :attr:`system` that is gone, or None. Of several the one that took the others along."""
        first = self.deaths.first()
        # The raylet ends, in good order, as soon as one of its agents is gone; by a signal it dies of its own.
        if len(first) > 1 and "raylet" in first and not _was_killed(self.system["raylet"]):
            first.remove("raylet")
        return first[0] if first else None

    def close(self) -> None:
        """Give back what the run took; a local cluster ends with every process of it."""
        import ray

        if self.dead_system_process() in (None, "reaper"):
            # Ray's shutdown can hang when one of its processes is on its way out; the reaper's list is what counts.
            worker = threading.Thread(target=self._release, args=(ray,), daemon=True)
            worker.start()
            worker.join(15)
        self.deaths.close()
        if self.local:
            left = self.reaper.end_all()
            if left:
                raise RunError("M486", f"processes {left} of the run did not end", owner="miles-core", fix="end them by hand")

    def _release(self, ray: Any) -> None:
        if self.group is not None:
            with contextlib.suppress(Exception):
                ray.util.remove_placement_group(self.group)
        ray.shutdown()


def connect(plan: PlacementPlan, address: str | None, reaper: Reaper) -> Cluster:
    """Start or join a cluster and reserve the run's devices.

    Raises:
        RunError: Ray does not start, or the cluster has no room.
    """
    # Ray ends a driver that cannot reach its control store for this long; the supervisor notices within a second.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "60")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # Ray would run the workers at low priority; here they are the work itself.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    local = address is None
    bundle = {"CPU": 1.0, "GPU": 1.0} if plan.device == "cuda" else {"CPU": 1.0}
    try:
        if local:
            ray.init(
                num_cpus=max(plan.devices, usable_cpus()),
                num_gpus=plan.devices if plan.device == "cuda" else 0,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level="ERROR",
                configure_logging=True,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        raise RunError(
            "M485",
            "Ray does not start" if local else f"cannot join the Ray cluster at {address}",
            owner=f"ray {ray.__version__}",
            why=f"{type(error).__name__}: {error}",
            fix="check that memory and /tmp are not full" if local else "check --ray-address",
        ) from error
    cluster = Cluster(local, None, reaper)
    cluster.adopt()
    if plan.devices == 0:
        return cluster
    try:
        cluster.group = _reserve(ray, plan, bundle)
    except RunError:
        cluster.close()
        raise
    return cluster


def _reserve(ray: Any, plan: PlacementPlan, bundle: dict[str, float]) -> Any:
    """A placement group with one bundle per device.

    Raises:
        RunError: the cluster has no room (M484).
    """
    group = ray.util.placement_group([bundle] * plan.devices, strategy="PACK")
    try:
        ray.get(group.ready(), timeout=PLACEMENT_TIMEOUT)
    except ray.exceptions.GetTimeoutError as error:
        raise RunError(
            "M484",
            f"the cluster has no room for {plan.devices} x {bundle} after {PLACEMENT_TIMEOUT:.0f} s",
            owner="miles-core",
            why=f"it has {ray.cluster_resources()} and free are {ray.available_resources()}",
            fix="ask for fewer devices, or free the cluster",
        ) from error
    return group


def _system_name(process: psutil.Process) -> str | None:
    """What a process of Ray is called here; None for workers and everything else."""
    line = process.cmdline()
    if line and line[0].strip() in AGENTS:
        return AGENTS[line[0].strip()]
    for part in line[:3]:
        if Path(part).name in SYSTEM:
            return SYSTEM[Path(part).name]
    return None


def _was_killed(process: psutil.Process) -> bool:
    """Whether a child process was ended by a signal."""
    with contextlib.suppress(psutil.TimeoutExpired):
        code = process.wait(0)
        return code is not None and code < 0
    return False
