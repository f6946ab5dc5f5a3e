"""A stand-in for ``python -m sglang_router.launch_router``: registration, and requests in turn."""

from __future__ import annotations

import argparse
import itertools
import uuid

import aiohttp
from aiohttp import web


class Router:
    def __init__(self) -> None:
        self.workers: dict[str, dict[str, object]] = {}
        self.turns = itertools.count()

    async def add(self, request: web.Request) -> web.Response:
        body = await request.json()
        number = str(uuid.uuid4())
        self.workers[number] = {**body, "id": number, "is_healthy": True}
        return web.json_response({"status": "accepted", "worker_id": number}, status=202)

    async def listed(self, request: web.Request) -> web.Response:
        return web.json_response({"workers": list(self.workers.values()), "total": len(self.workers)})

    async def remove(self, request: web.Request) -> web.Response:
        del self.workers[request.match_info["number"]]
        return web.json_response({"status": "accepted"}, status=202)

    async def generate(self, request: web.Request) -> web.Response:
        urls = [str(each["url"]) for each in self.workers.values()]
        url = urls[next(self.turns) % len(urls)]
        async with aiohttp.ClientSession() as session:
            headers = {name: value for name, value in request.headers.items() if name in ("Authorization", "Content-Type")}
            async with session.post(f"{url}/generate", data=await request.read(), headers=headers) as answer:
                return web.Response(body=await answer.read(), status=answer.status, content_type="application/json")


async def health(request: web.Request) -> web.Response:
    return web.Response(text="OK")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("host", "policy", "request-timeout-secs", "prometheus-host", "prometheus-port", "log-level"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("worker-startup-check-interval", "health-check-interval-secs", "port"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--pd-disaggregation", action="store_true")
    args = parser.parse_args()
    router, app = Router(), web.Application()
    app.router.add_get("/health", health)
    app.router.add_post("/workers", router.add)
    app.router.add_get("/workers", router.listed)
    app.router.add_delete("/workers/{number}", router.remove)
    app.router.add_post("/generate", router.generate)
    web.run_app(app, host=args.host, port=args.port, print=lambda _: None, access_log=None)


if __name__ == "__main__":
    main()
