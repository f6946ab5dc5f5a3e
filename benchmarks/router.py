"""The router beside the package ``sglang-router``, in front of the same two workers.

    python benchmarks/router.py [--theirs PYTHON]

Two processes answer ``/generate`` after a second, or at once, and cost next to nothing: they read no JSON. In front of them stand,
in turn, this package's router and ``sglang-router``, which runs in an environment of its own (``--theirs`` names its Python;
without one that half is left out). A client as cheap opens its connections first and then sends on all of them. The routers take
turns, and the best of several counts, as other work on the machine only ever makes them slower.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import record

PROMPT = 200
RESPONSE = 32
VARIANTS = 64
CONCURRENT = (1_000, 5_000)
REQUESTS = 200_000
THEIRS_VARIABLE = "SGLANG_ROUTER_PYTHON"
POLICIES = ("cache-aware", "cache_aware")
WAVE = 200
"""Connections that are opened at once, so that no queue of a listener runs over."""
THEIRS = """
from sglang_router.router import Router
from sglang_router.router_args import RouterArgs
Router.from_args(RouterArgs(worker_urls={urls!r}, host="127.0.0.1", port={port}, prometheus_port={metrics}, policy={policy!r},
    worker_startup_check_interval=1, log_level="error")).start()
"""


class Worker(asyncio.Protocol):
    """Answers each request of a connection after ``delay`` seconds; anything but ``/generate`` at once."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (whole := _message(self._data)) is not None:
            request, self._data = self._data[:whole], self._data[whole:]
            if request.startswith(b"POST /generate"):
                asyncio.get_running_loop().call_later(self._delay, self._write, ANSWER)
            else:
                self._write(INFO)

    def _write(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


class Caller(asyncio.Protocol):
    """Sends a request, and the next one when it is answered, as long as there are some."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        whole = _message(self._data)
        if whole is None:
            return
        self._load.answered(self._data[:whole], time.perf_counter() - self._sent)
        self._data = self._data[whole:]
        self.send()

    def send(self) -> None:
        """The next request, if there is one."""
        if self._load.left > 0:
            self._load.left -= 1
            self._sent = time.perf_counter()
            self._transport.write(random.choice(self._load.requests))

    def connection_lost(self, error: Exception | None) -> None:
        self._load.lost()

    def close(self) -> None:
        """End the connection."""
        self._transport.close()


class Load:
    """``total`` requests over ``connections``, as fast as they are answered."""

    def __init__(self, port: int, connections: int, total: int) -> None:
        self.requests = [_request(port, number) for number in range(VARIANTS)]
        self.left = total
        self._open = total
        self._port = port
        self._connections = connections
        self._latencies: list[float] = []

    async def run(self) -> dict[str, float]:
        """Seconds from the first request to the last answer, and how long answers took."""
        loop = asyncio.get_running_loop()
        self._done = loop.create_future()
        callers: list[Caller] = []
        while len(callers) < self._connections:
            count = min(WAVE, self._connections - len(callers))
            made = [loop.create_connection(lambda: Caller(self), "127.0.0.1", self._port) for _ in range(count)]
            callers += [caller for _, caller in await asyncio.gather(*made)]
        started = time.perf_counter()
        for caller in callers:
            caller.send()
        await self._done
        seconds = time.perf_counter() - started
        for caller in callers:
            caller.close()
        ordered = sorted(self._latencies)
        return {
            "seconds": round(seconds, 3),
            "median_latency_s": round(statistics.median(ordered), 4),
            "p99_latency_s": round(ordered[int(len(ordered) * 0.99)], 4),
        }

    def answered(self, answer: bytes, seconds: float) -> None:
        """One more."""
        if not answer.startswith(b"HTTP/1.1 200"):
            self._fail(RuntimeError(answer[:400]))
        self._latencies.append(seconds)
        self._open -= 1
        if self._open == 0 and not self._done.done():
            self._done.set_result(None)

    def lost(self) -> None:
        """A connection ended."""
        self._fail(RuntimeError("the router closed a connection"))

    def _fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    theirs = os.environ.get(THEIRS_VARIABLE)
    parser.add_argument("--theirs", default=theirs, help=f"the Python that has sglang-router; {THEIRS_VARIABLE} by default")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="over which memory is watched")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--worker", nargs=2, metavar=("PORT", "DELAY"), help=argparse.SUPPRESS)
    parser.add_argument("--route", nargs="+", metavar="PORT URL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if args.worker:
        asyncio.run(_serve(int(args.worker[0]), float(args.worker[1])))
    elif args.route:
        route(int(args.route[0]), args.route[1:])
    else:
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """Everything, into one file."""
    routers: dict[str, str | None] = {"miles": None}
    reason = ""
    if args.theirs and shutil.which(args.theirs):
        routers["sglang-router"] = args.theirs
    else:
        reason = f"sglang-router was left out: --theirs {args.theirs or ''} is no Python that has it"
        print(reason)
    figures: dict[str, object] = {}
    for count in CONCURRENT:
        figures[f"{count} concurrent, answered after 1 s"] = compare(routers, 1.0, count, count, args.turns)
    for count in (64, 512):
        figures[f"{count} connections, answered at once"] = compare(routers, 0.0, count, 20_000, args.turns)
    figures["memory over many requests, MiB"] = memory(args.requests)
    if reason:
        figures["left out"] = reason
    notes = (
        f"Prompts of {PROMPT} token ids, answers of {RESPONSE}. The best of {args.turns} turns each, in turn; client, workers and "
        "router share the processors, so that requests per second are those of all of them together. Memory is the router's "
        "resident set after each tenth of the requests, over 512 connections."
    )
    record.save("router", figures, notes, args.out)


def compare(routers: dict[str, str | None], delay: float, connections: int, total: int, turns: int) -> dict[str, object]:
    """The routers in turn."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in [*routers, "no router"]}
    with ExitStack() as stack:
        workers = [stack.enter_context(_process("--worker", str(_port()), str(delay)))[1] for _ in range(2)]
        ports = {name: stack.enter_context(_router(python, workers))[1] for name, python in routers.items()}
        for port in ports.values():
            asyncio.run(Load(port, 500, 1_000).run())
        ports["no router"] = workers[0]
        for _ in range(turns):
            for name, port in ports.items():
                found[name].append(asyncio.run(Load(port, connections, total).run()))
    best = {name: min(each, key=lambda one: one["seconds"]) for name, each in found.items()}
    figures: dict[str, object] = {
        name: {**each, "requests_per_s": round(total / each["seconds"]), "all_seconds": [one["seconds"] for one in found[name]]}
        for name, each in best.items()
    }
    if "sglang-router" in best:
        figures["miles / sglang-router, seconds"] = round(best["miles"]["seconds"] / best["sglang-router"]["seconds"], 3)
    print(connections, json.dumps(figures), flush=True)
    return figures


def memory(total: int) -> list[float]:
    """The router's resident set, after each tenth of ``total`` requests."""
    sizes: list[float] = []
    with ExitStack() as stack:
        workers = [stack.enter_context(_process("--worker", str(_port()), "0"))[1] for _ in range(2)]
        process, port = stack.enter_context(_router(None, workers))
        for _ in range(10):
            asyncio.run(Load(port, 512, total // 10).run())
            sizes.append(round(psutil.Process(process.pid).memory_info().rss / 2**20, 1))
    return sizes


def route(port: int, urls: list[str]) -> None:
    """Serve this package's router."""
    from miles_core.router import RouterServer, RouterSettings
    from miles_core.serving import ServerThread

    router = RouterServer(RouterSettings(policy=POLICIES[0], max_connections=16_384), urls)
    thread = ServerThread(router.app(), port=port, wrap=router.front)
    thread.start()
    signal.sigwait([signal.SIGTERM])


async def _serve(port: int, delay: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Worker(delay), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


@contextmanager
def _router(python: str | None, workers: list[int]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    urls, port = [f"http://127.0.0.1:{worker}" for worker in workers], _port()
    if python is None:
        with _process("--route", str(port), *urls) as found:
            yield found
        return
    code = THEIRS.format(urls=urls, port=port, metrics=_port(), policy=POLICIES[1])
    with _started([python, "-c", code], port) as found:
        yield found


@contextmanager
def _process(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with _started([sys.executable, __file__, *arguments], int(arguments[1])) as found:
        yield found


@contextmanager
def _started(command: list[str], port: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not _well(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command[:4])} did not come up: exit code {process.poll()}")
            time.sleep(0.1)
        yield process, port
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _well(port: int) -> bool:
    """Whether it passes a request on."""
    body = json.dumps({"input_ids": [1], "sampling_params": {"max_new_tokens": 1}}).encode()
    call = urllib.request.Request(f"http://127.0.0.1:{port}/generate", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(call, timeout=10) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _message(data: bytes) -> int | None:
    """Bytes of the first whole message in ``data``; None while there is none."""
    head = data.find(b"\r\n\r\n")
    if head < 0:
        return None
    lower = data[:head].lower()
    at = lower.find(b"content-length:")
    if at < 0:
        if b"transfer-encoding: chunked" in lower:
            end = data.find(b"0\r\n\r\n", head)
            return None if end < 0 else end + 5
        return head + 4
    stop = lower.find(b"\r\n", at)
    whole = head + 4 + int(lower[at + 15 : stop if stop > 0 else head])
    return whole if len(data) >= whole else None


def _request(port: int, number: int) -> bytes:
    random.seed(number)
    ids = [random.randrange(100_000) for _ in range(PROMPT)]
    params = {"temperature": 1.0, "max_new_tokens": RESPONSE}
    document = {"input_ids": ids, "sampling_params": params, "return_logprob": True, "rid": f"rollout-{number}"}
    body = json.dumps(document).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _response(document: object) -> bytes:
    body = json.dumps(document).encode()
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


PAIRS = [(-0.123456, token, None) for token in range(RESPONSE)]
ANSWER = _response(
    {
        "text": "word " * RESPONSE,
        "output_ids": list(range(RESPONSE)),
        "meta_info": {
            "id": "rollout-0",
            "finish_reason": {"type": "length", "length": RESPONSE},
            "prompt_tokens": PROMPT,
            "completion_tokens": RESPONSE,
            "weight_version": "1",
            "output_token_logprobs": PAIRS,
        },
    }
)
INFO = _response({"model_path": "model", "weight_version": "1", "is_generation": True})

if __name__ == "__main__":
    main()
