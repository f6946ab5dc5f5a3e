"""An engine's process: one Ray actor around a plugin's :class:`miles_core.protocols.RolloutEngine`."""

from __future__ import annotations

from typing import Any

from miles_core.accelerator.vendors import visible_ids
from miles_core.options import Config
from miles_core.plugins.refs import PluginRef
from miles_core.protocols import EngineLaunch
from miles_core.runtime.identity import ProcessIdentity, recorded
from miles_core.runtime.watch import Watched


class EngineProcess(Watched):
    """Starts an engine and passes calls on to it."""

    def __init__(self, identity: ProcessIdentity, config: Config, engine: PluginRef) -> None:
        super().__init__(identity)
        self.config = config
        self._ref = engine

    @recorded
    def start(self, launch: EngineLaunch) -> str:
        """Start the engine on this process's devices; returns its URL."""
        import dataclasses

        from miles_core.config import RouterOptions
        from miles_core.plugins import create

        self._engine: Any = create(self._ref, self.config)
        key = self.config.get(RouterOptions).miles_router_api_key
        return str(self._engine.start(dataclasses.replace(launch, devices=launch.devices or visible_ids(), api_key=key)))

    @recorded
    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the engine."""
        return getattr(self._engine, method)(*args)
