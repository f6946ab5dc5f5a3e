"""The router's process: one Ray actor around a :class:`miles_core.protocols.Router`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from miles_core.config import RouterOptions
from miles_core.options import Config
from miles_core.plugins.refs import PluginRef
from miles_core.protocols import RouterLaunch
from miles_core.runtime.identity import ProcessIdentity, host_address, recorded
from miles_core.runtime.watch import Watched


class RouterProcess(Watched):
    """Starts a router and tells it which engines there are."""

    def __init__(self, identity: ProcessIdentity, config: Config, router: PluginRef, middlewares: Sequence[PluginRef]) -> None:
        super().__init__(identity)
        self.config = config
        self._ref = router
        self._middlewares = middlewares

    @recorded
    def start(self, launch: RouterLaunch) -> tuple[str, bool]:
        """Start the router; returns its URL, and whether an abort that it is told reaches every engine."""
        from miles_core.plugins import create

        key = self.config.get(RouterOptions).miles_router_api_key
        made = tuple(create(ref, self.config) for ref in self._middlewares)
        self._router: Any = create(self._ref, self.config)
        here = dataclasses.replace(launch, host=launch.host or host_address(), api_key=key, middlewares=made)
        return str(self._router.start(here)), bool(self._router.tells_all)

    @recorded
    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the router."""
        return getattr(self._router, method)(*args)
