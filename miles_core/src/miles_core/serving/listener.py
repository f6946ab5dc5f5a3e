"""A thread that serves an application over HTTP."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from miles_core.errors import MilesError

if TYPE_CHECKING:
    from aiohttp import web

OWNER = "miles-core"
BACKLOG = 4096
"""Connections that may wait to be taken: thousands of calls come at once, and one that finds no room is lost for a second."""

log = logging.getLogger(__name__)


class ServerThread:
    """An aiohttp application served from a thread of its own.

    Args:
        wrap: the protocol of a connection, around the application's.

    ``start`` returns the base URL; ``stop`` ends the thread. ``loop`` is the thread's event loop.
    """

    def __init__(
        self,
        app: web.Application,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        wrap: Callable[[asyncio.Protocol], asyncio.Protocol] | None = None,
    ) -> None:
        self._app = app
        self._wrap = wrap or (lambda protocol: protocol)
        self._host = host
        self._port = port
        self.loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> str:
        """Serve; returns once the port is open.

        Raises:
            MilesError: ``M440``, the port is taken or the address is not this machine's.
        """
        started: Future[int] = Future()
        self._thread = threading.Thread(target=self._main, args=(started,), name="miles-http", daemon=True)
        self._thread.start()
        port = started.result()
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{port}"

    @property
    def running(self) -> bool:
        """Whether the thread serves."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self, timeout: float = 10.0) -> None:
        """End the server; open connections are closed. ``timeout`` in seconds."""
        if self._thread is None or self.loop is None or self._stop is None:
            return
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout)

    def _main(self, started: Future[int]) -> None:
        try:
            asyncio.run(self._serve(started))
        except Exception as error:
            if started.done():
                log.exception("the HTTP server ended with an error")
            else:
                started.set_exception(error)

    async def _serve(self, started: Future[int]) -> None:
        from aiohttp import web

        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        # Cancelling a handler whose client went away aborts what it waits for.
        runner = web.AppRunner(self._app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            try:
                made, loop = runner.server, self.loop
                assert made is not None, "the runner is set up"
                server = await loop.create_server(lambda: self._wrap(made()), self._host, self._port, backlog=BACKLOG)
            except OSError as error:
                raise _port_error(self._host, self._port, error) from error
            started.set_result(server.sockets[0].getsockname()[1])
            await self._stop.wait()
            server.close()
        finally:
            await runner.cleanup()


def _port_error(host: str, port: int, error: OSError) -> MilesError:
    taken = error.errno == errno.EADDRINUSE
    return MilesError(
        "M440",
        f"cannot serve on {host} port {port}",
        owner=OWNER,
        why="the port is in use" if taken else str(error.strerror or error),
        fix="choose another port, or 0 for a free one" if taken else "give an address of this machine",
        host=host,
        port=port,
    )
