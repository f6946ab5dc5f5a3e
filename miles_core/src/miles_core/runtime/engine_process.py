"""An engine's process: one Ray actor around a plugin's :class:`miles_core.protocols.RolloutEngine`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray

from miles_core.accelerator.vendors import visible_ids
from miles_core.options import Config
from miles_core.plugins.refs import PluginRef
from miles_core.protocols import EngineLaunch
from miles_core.runtime.identity import ProcessIdentity, free_ports, host_address, recorded
from miles_core.runtime.watch import Watched

SENTINEL_SECONDS = 0.5
MEETING_PORTS = 64
"""That the parts of an engine over several nodes may use, in a row."""


class EngineProcess(Watched):
    """Starts an engine and passes calls on to it."""

    def __init__(self, identity: ProcessIdentity, config: Config, engine: PluginRef) -> None:
        super().__init__(identity)
        self.config = config
        self._ref = engine
        self._serves = False

    @recorded
    def meeting(self, host: str) -> str:
        """Where the parts of an engine, of which this is the first, can meet; ``host`` is empty for the address of this node."""
        host = host or host_address()
        return f"{f'[{host}]' if ':' in host else host}:{free_ports(host, MEETING_PORTS)}"

    @recorded
    def start(self, launch: EngineLaunch, meeting: str = "") -> str:
        """Start the engine on this process's devices; returns its URL, which only the first of its parts has."""
        import dataclasses

        from miles_core.config import RouterOptions
        from miles_core.plugins import create

        self._engine: Any = create(self._ref, self.config)
        key = self.config.get(RouterOptions).miles_router_api_key
        host, devices = launch.host or host_address(), launch.devices or visible_ids()
        url = str(self._engine.start(dataclasses.replace(launch, host=host, devices=devices, api_key=key, meeting=meeting)))
        self._serves = True
        return url

    @ray.method(concurrency_group="watch")  # type: ignore[untyped-decorator]
    def sentinel(self) -> str:
        """Why the engine has ended, once it has; the pending call fails when the process dies."""
        why = ""
        while not why:
            time.sleep(SENTINEL_SECONDS)
            why = self._engine.ended() if self._serves else ""
        return why

    @ray.method(concurrency_group="watch")  # type: ignore[untyped-decorator]
    def heartbeat(self, timeout: float) -> None:
        """Return when the engine gives a sign of life; raise otherwise."""
        self._engine.health(timeout)

    @ray.method(concurrency_group="watch")  # type: ignore[untyped-decorator]
    def node(self) -> str:
        """The node of the cluster that this process is on."""
        return str(ray.get_runtime_context().get_node_id())

    @recorded
    def take(self, folder: Path, version: int) -> None:
        """Serve the weights that were kept of a version."""
        from miles_core.weights.kept import serve_kept

        serve_kept(self._engine, folder, version)

    @recorded
    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the engine."""
        return getattr(self._engine, method)(*args)
