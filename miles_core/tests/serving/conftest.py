"""An engine without a model, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

import pytest

from miles_core.errors import MilesError, RunError
from miles_core.samples import FinishReason, GenerateRequest, GenerateResult
from miles_core.serving import ServerThread, engine_app


class EchoService:
    """Answers a prompt with itself reversed; the first token of a prompt asks for trouble.

    1 waits for an abort, 2 is a bad request, 3 fails, 4 never answers.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.batches: list[list[str]] = []
        self.aborted = asyncio.Event()
        self.dropped = asyncio.Event()

    async def submit(self, requests: Sequence[GenerateRequest]) -> AsyncGenerator[Sequence[GenerateResult], None]:
        self.batches.append([r.rid for r in requests])
        for request in requests:
            if request.input_ids[0] == 2:
                raise ValueError(f"{request.rid}: no twos\n please")
        for request in reversed(requests):
            reason = FinishReason.LENGTH
            if request.input_ids[0] == 1:
                await self.aborted.wait()
                reason = FinishReason.ABORT
            if request.input_ids[0] == 3:
                raise RunError("M456", "decoding failed", owner="echo")
            if request.input_ids[0] == 4:
                try:
                    await asyncio.Event().wait()
                finally:
                    self.dropped.set()
            ids = tuple(reversed(request.input_ids))
            yield [GenerateResult(request.rid, ids, tuple(-i / 3 for i in ids), reason, 7, "text", len(ids))]

    async def abort(self, rids: Sequence[str] | None) -> None:
        self.calls.append(("abort", rids))
        self.aborted.set()

    async def health(self, generate: bool) -> None:
        if ("sick", None) in self.calls:
            raise RunError("M456", "the engine is stuck", owner="echo")

    def info(self) -> dict[str, Any]:
        return {"engine": "echo"}

    def model_info(self) -> dict[str, Any]:
        return {"model_path": "m", "tokenizer_path": "t", "is_generation": True, "weight_version": "7"}

    async def pause(self, mode: str) -> None:
        self.calls.append(("pause", mode))

    async def resume(self) -> None:
        raise MilesError("M454", "the engine cannot go on", owner="echo")

    async def flush(self) -> None:
        self.calls.append(("flush", None))

    async def release_memory(self, tags: Sequence[str] | None) -> None:
        self.calls.append(("release", tags))

    async def resume_memory(self, tags: Sequence[str] | None) -> None:
        self.calls.append(("resume_memory", tags))


@pytest.fixture
def echo() -> Iterator[Callable[..., tuple[EchoService, str]]]:
    """Start servers around echo services; returns service and URL."""
    servers = []

    def start(**options: Any) -> tuple[EchoService, str]:
        service = EchoService()
        server = ServerThread(engine_app(service, **options))
        servers.append(server)
        return service, server.start()

    yield start
    for server in servers:
        server.stop()
