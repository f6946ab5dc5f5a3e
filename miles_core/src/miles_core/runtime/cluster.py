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
from miles_core.runtime.plan import PlacementPlan
from miles_core.runtime.reaper import Reaper

OBJECT_STORE_BYTES = 512 * 1024**2
PLACEMENT_TIMEOUT = 60.0


@dataclass
class Cluster:
    """A connected cluster with room for the run.

    Attributes:
        local: whether this run started it, and so ends it.
        group: the placement group with one bundle per device.
        system: Ray's own processes on this machine by name, for supervision.
    """

    local: bool
    group: Any
    reaper: Reaper
    system: dict[str, psutil.Process] = field(default_factory=dict)

    def dead_system_process(self) -> str | None:
        """Name of a Ray process that this run cannot live without and that is gone, or None."""
        for name in ("gcs_server", "raylet"):
            process = self.system.get(name)
            if process is not None and not _runs(process):
                return name
        return None

    def close(self) -> None:
        """Give back what the run took; a local cluster ends with every process of it."""
        import ray

        if self.dead_system_process() is None:
            # Ray's shutdown can hang when one of its processes is on its way out; the reaper's list is what counts.
            worker = threading.Thread(target=self._release, args=(ray,), daemon=True)
            worker.start()
            worker.join(15)
        if self.local:
            left = self.reaper.end_all()
            if left:
                raise RunError("M486", f"processes {left} of the run did not end", owner="miles-core", fix="end them by hand")

    def _release(self, ray: Any) -> None:
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
                num_cpus=max(plan.devices, os.cpu_count() or 1),
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
    reaper.adopt_children()
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
    return Cluster(local, group, reaper, _system_processes() if local else {})


def _system_processes() -> dict[str, psutil.Process]:
    """The Ray processes below this driver, by executable name."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            name = Path(process.exe()).name if process.exe() else process.name()
            if name in ("gcs_server", "raylet"):
                found[name] = process
    return found


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
