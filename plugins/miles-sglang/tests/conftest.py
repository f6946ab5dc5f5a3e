"""Engines before stand-ins for SGLang's server, and a tiny checkpoint for them."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from miles_core.config import RoutingOptions
from miles_core.options import Config
from miles_core.protocols import EngineLaunch
from miles_core.samples import GenerateRequest, GenerateResult, SamplingParams
from miles_core.serving import EngineClient
from miles_sglang.engine import SGLangEngine
from miles_sglang.options import ServerOptions, SGLangOptions

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "intermediate_size": 24,
    "vocab_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
    "dtype": "float32",
}
FAKE = Path(__file__).with_name("fake_server.py")


def random_weights(seed: int) -> dict[str, torch.Tensor]:
    """Float32 weights of the tiny model under a checkpoint's names."""
    generator = torch.Generator().manual_seed(seed)
    layer, hidden, inner, heads, pairs, size = "model.layers.0", 16, 24, 4, 2, 8
    shapes = {
        "model.embed_tokens.weight": (32, hidden),
        f"{layer}.self_attn.q_proj.weight": (heads * size, hidden),
        f"{layer}.self_attn.k_proj.weight": (pairs * size, hidden),
        f"{layer}.self_attn.v_proj.weight": (pairs * size, hidden),
        f"{layer}.self_attn.o_proj.weight": (hidden, heads * size),
        f"{layer}.mlp.gate_proj.weight": (inner, hidden),
        f"{layer}.mlp.up_proj.weight": (inner, hidden),
        f"{layer}.mlp.down_proj.weight": (hidden, inner),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope="session")
def weights() -> Callable[[int], dict[str, torch.Tensor]]:
    return random_weights


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(random_weights(0), str(folder / "model.safetensors"))
    return folder


class Served:
    """An engine that has started, with a client."""

    def __init__(self, engine: SGLangEngine, url: str) -> None:
        self.engine, self.url, self.seen = engine, url, 0

    async def generate(self, *requests: GenerateRequest) -> dict[str, GenerateResult]:
        client = EngineClient([self.url], batch_stream=False, timeout=30.0)
        try:
            return {result.rid: result async for result in client.generate(requests)}
        finally:
            await client.close()

    def ask(self, *requests: GenerateRequest) -> dict[str, GenerateResult]:
        return asyncio.run(self.generate(*requests))

    def calls(self, path: str = "") -> list[list[Any]]:
        """Control calls that the server has had: path, body, query."""
        return [call for call in self.engine.info()["calls"][self.seen :] if call[0].startswith(path)]

    def forget(self) -> None:
        """Leave calls so far out of :meth:`calls`."""
        self.seen = len(self.engine.info()["calls"])


def _started(checkpoint: Path, logs: Path, engines: list[SGLangEngine]) -> Callable[..., Served]:
    def start(
        own: dict[str, Any] | None = None, server: dict[str, Any] | None = None, groups: Sequence[Any] = (), **launch: Any
    ) -> Served:
        options = SGLangOptions(**{"launcher": shlex.join([sys.executable, str(FAKE)]), "launch_timeout": 60.0, **(own or {})})
        engine = SGLangEngine(Config.of(options, ServerOptions(**(server or {})), *groups))
        engines.append(engine)
        settings = {"rank": 0, "model": checkpoint, "log_dir": logs, "memory_saver": True, **launch}
        return Served(engine, engine.start(EngineLaunch(**settings)))

    return start


@pytest.fixture
def serve(checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start engines; they are stopped at the end of the test."""
    engines: list[SGLangEngine] = []
    yield _started(checkpoint, tmp_path / "logs", engines)
    for engine in engines:
        engine.stop()


@pytest.fixture(scope="session")
def two(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    """Two engines of the session, for tests that leave them serving; starting a server and importing torch in it takes time."""
    engines: list[SGLangEngine] = []
    start = _started(checkpoint, tmp_path_factory.mktemp("logs"), engines)
    yield [start(rank=rank, groups=[RoutingOptions(use_rollout_routing_replay=True)]) for rank in (0, 1)]
    for engine in engines:
        engine.stop()


@pytest.fixture
def served(two: list[Served]) -> Iterator[Served]:
    """The first of them, its calls forgotten."""
    two[0].forget()
    yield two[0]
    if not two[0].engine.serving:
        two[0].engine.resume_memory()
        two[0].engine._defined = True
        two[0].engine.resume()


@pytest.fixture(scope="session")
def request_of() -> Callable[..., GenerateRequest]:
    def make(rid: str, tokens: int = 4, **params: Any) -> GenerateRequest:
        return GenerateRequest(rid, [5, 6, 7], SamplingParams(max_new_tokens=tokens), **params)

    return make
