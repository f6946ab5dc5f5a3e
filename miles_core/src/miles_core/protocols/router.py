"""The router: one address in front of several engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from miles_core.protocols.middleware import RouterMiddleware


@dataclass(frozen=True)
class RouterLaunch:
    """Where and with what a router starts.

    Attributes:
        urls: engines to begin with.
        model: HF directory.
        host: address to bind to; loopback unless the run spans nodes. Empty in a run stands for that of the node.
        port: 0 lets the router choose.
        log_dir: where to write logs.
        middlewares: for core's router, the last one outermost.
        api_key: what callers of the router, and the router's calls to the engines, show as a bearer token; None for none.
    """

    urls: Sequence[str]
    model: Path
    host: str = "127.0.0.1"
    port: int = 0
    log_dir: Path | None = None
    middlewares: Sequence[RouterMiddleware] = ()
    api_key: str | None = field(default=None, repr=False)


class Router(Protocol):
    """Made by ``create(config)`` in the router's process. Its methods may be called from any thread, one at a time.

    Attributes:
        tells_all: whether ``POST /abort_request`` to it reaches every engine; otherwise the run tells each engine itself.
    """

    tells_all: bool

    def start(self, launch: RouterLaunch) -> str:
        """Serve; returns the base URL once an engine can be reached through it.

        Raises:
            MilesError: the router did not come up, or reaches no engine.
        """
        ...

    def add_worker(self, url: str) -> None:
        """Give an engine requests; one that was in quarantine returns from it."""
        ...

    def remove_worker(self, url: str) -> None:
        """An engine is gone: give it no further requests, and others those that it has not answered. One that the router does not
        know is none of its business."""
        ...

    def published(self, version: int) -> None:
        """All engines serve this weight version: what they had cached is gone."""
        ...

    def stop(self) -> None:
        """End the server and every process it started."""
        ...
