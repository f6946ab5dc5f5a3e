"""The buffer's server: ``python -m miles_core.rollout.external.server``. See ``docs/rollout-buffer.md`` for the protocol."""

from __future__ import annotations

import hmac
import ipaddress
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from miles_core.errors import MilesError, UsageError
from miles_core.rollout.external.store import FullError, OtherRunError, Store, read_ids
from miles_core.rollout.external.trajectory import load_object
from miles_core.serving.wire import dumps

if TYPE_CHECKING:
    from aiohttp import web

TOKEN = "MILES_ROLLOUT_BUFFER_TOKEN"
"""Variable of the environment with the bearer token."""
PORT = 8889
MEGABYTE = 1024**2
MAX_TRAJECTORY = 16 * MEGABYTE
"""Bytes of one posted trajectory."""
MAX_CALL = 256 * MEGABYTE
"""Bytes of any other body: a resumed run sends the ids of every group that it has seen."""


def buffer_app(store: Store, token: str | None = None) -> web.Application:
    """The aiohttp application around a store.

    Args:
        token: bearer token that every call needs but ``GET /health``; None for none.
    """
    from aiohttp import web

    @web.middleware
    async def guarded(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if token is not None and request.path != "/health" and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            return _answer(False, "the bearer token is missing or wrong", status=401)
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _answer(False, f"{error.reason}: {request.method} {request.path}", status=error.status)
        except OtherRunError as error:
            return _answer(False, f"this is of another run: {error}", status=409)
        except FullError as error:
            return _answer(False, f"the buffer is full, try again later: {error}", status=503)
        except ValueError as error:
            return _answer(False, str(error), status=400)

    async def health(request: web.Request) -> web.Response:
        return _answer(True, "", protocol="miles-rollout-buffer/1")

    async def start(request: web.Request) -> web.Response:
        store.begin(load_object(await request.read()))
        return _answer(True, "Rollout started")

    async def rollout(request: web.Request) -> web.Response:
        return _answer(True, "", run=store.start, collecting=store.collecting)

    async def write(request: web.Request) -> web.Response:
        data = await request.read()
        if len(data) > MAX_TRAJECTORY:
            raise web.HTTPRequestEntityTooLarge(MAX_TRAJECTORY, len(data))
        new = store.write(load_object(data), len(data))
        return _answer(True, "stored" if new else "it is here already", duplicate=not new)

    async def take(request: web.Request) -> web.Response:
        body = load_object(await request.read())
        count, collecting = body.get("max_groups"), body.get("collecting", True)
        if type(count) is not int or count < 0 or type(collecting) is not bool:
            raise ValueError("max_groups is no whole number of 0 or more, or collecting is no truth value")
        held, done = (read_ids(body.get(name, []), name) for name in ("held", "acknowledged"))
        if store.start is None or body.get("run_id") != store.start["run_id"]:
            raise OtherRunError("no run is under way" if store.start is None else f"the run is {store.start['run_id']}")
        store.collecting = collecting
        store.acknowledge(done)
        groups = store.take(count, set(held))
        items = [item for group in groups for item in group]
        rewards = [float(item["reward"]) for item in items]
        meta = {
            "total_samples": len(items),
            "num_groups": len(groups),
            "avg_group_size": len(items) / len(groups) if groups else 0.0,
            "avg_reward": sum(rewards) / len(rewards) if rewards else 0.0,
            "finished_groups": list(dict.fromkeys(str(item["instance_id"]) for item in items)),
            "store": store.facts(),
        }
        return _answer(bool(items), "" if items else "no group is whole", data={"data": items, "meta_info": meta})

    async def stats(request: web.Request) -> web.Response:
        return _answer(True, "", **store.facts())

    app = web.Application(client_max_size=MAX_CALL, middlewares=[guarded])
    app.router.add_get("/health", health)
    app.router.add_get("/rollout", rollout)
    app.router.add_get("/stats", stats)
    app.router.add_post("/start_rollout", start)
    app.router.add_post("/buffer/write", write)
    app.router.add_post("/get_rollout_data", take)
    return app


def _answer(success: bool, message: str, status: int = 200, **further: Any) -> web.Response:
    from aiohttp import web

    body = dumps({"success": success, "message": message, **further})
    return web.Response(body=body, status=status, content_type="application/json")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--host", default="127.0.0.1", show_default=True, help=f"Address to serve on; any but loopback needs {TOKEN}.")
@click.option("--port", default=PORT, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--max-megabytes", default=1024, show_default=True, type=click.IntRange(1), help="Of all trajectories.")
@click.option("--group-timeout", default=3600.0, show_default=True, help="Seconds after which an incomplete group is dropped.")
def serve(host: str, port: int, max_megabytes: int, group_timeout: float) -> None:
    """Hold trajectories of agents until a run with --rollout-buffer-url takes them."""
    from miles_core.serving import ServerThread

    token = os.environ.get(TOKEN) or None
    if token is None and not _is_loopback(host):
        raise UsageError(
            "M349",
            f"--host {host} lets others post trajectories",
            owner="rollout buffer",
            why=f"{TOKEN} is not set",
            fix=f"set {TOKEN}, here and for the run and its agents, or serve on 127.0.0.1",
        )
    if not group_timeout > 0:
        raise UsageError("M349", f"--group-timeout {group_timeout} is not above 0", owner="rollout buffer", fix="give seconds")
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    server = ServerThread(buffer_app(Store(max_megabytes * MEGABYTE, group_timeout), token), host, port)
    click.echo(f"rollout buffer at {server.start()}")
    sys.stdout.flush()
    stopped.wait()
    server.stop()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main(args: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it; returns the exit code."""
    try:
        serve.main(args=None if args is None else list(args), prog_name="miles-rollout-buffer", standalone_mode=False)
    except MilesError as error:
        click.echo(error.line(), err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
