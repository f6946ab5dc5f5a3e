"""Tiny random checkpoints, and engines that serve them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3MoeConfig,
)

from miles_core.config import ClusterOptions, RoutingOptions
from miles_core.options import Config
from miles_core.protocols import EngineLaunch
from miles_core.samples import GenerateRequest, GenerateResult, SamplingParams
from miles_core.serving import EngineClient
from miles_transformers.engine import TransformersEngine
from miles_transformers.options import TransformersOptions

VOCAB, EOS = 64, [1, 7, 20]
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    "bos_token_id": None,
    # Large random weights, so that distributions are far from uniform and differences show.
    "initializer_range": 0.3,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: Qwen3Config(**_SIZES, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**_SIZES, tie_word_embeddings=False),
    "gpt2": lambda: GPT2Config(
        **{k: v for k, v in _SIZES.items() if k not in ("max_position_embeddings", "intermediate_size")}, n_positions=128
    ),
    "gemma2": lambda: Gemma2Config(**_SIZES, sliding_window=8, query_pre_attn_scalar=8),
    "qwen3_moe": lambda: Qwen3MoeConfig(**_SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "half_dense": lambda: Qwen3MoeConfig(
        **{**_SIZES, "num_hidden_layers": 3},
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=16,
        mlp_only_layers=[1],
    ),
}


def write_checkpoint(path: Path, kind: str, seed: int = 0) -> Path:
    """A checkpoint with random weights and a tokenizer of one character per token."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=torch.float32)
    model.save_pretrained(path)
    vocab = {token: i for i, token in enumerate(["<|pad|>", "<|end|>", *map(chr, range(ord("A"), ord("A") + VOCAB - 2))])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|pad|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>").save_pretrained(path)
    return path


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Checkpoint directories by architecture and seed."""
    made: dict[tuple[str, int], Path] = {}

    def get(kind: str = "qwen3", seed: int = 0) -> Path:
        if (kind, seed) not in made:
            made[kind, seed] = write_checkpoint(tmp_path_factory.mktemp(kind), kind, seed)
        return made[kind, seed]

    return get


class Served:
    """An engine that has started, with a client."""

    def __init__(self, engine: TransformersEngine, url: str) -> None:
        self.engine, self.url = engine, url

    def generate(self, requests: Sequence[GenerateRequest], batch_stream: bool = True) -> dict[str, GenerateResult]:
        """Results by rid."""

        async def main() -> dict[str, GenerateResult]:
            client = EngineClient([self.url], batch_stream=batch_stream, timeout=60.0)
            try:
                return {result.rid: result async for result in client.generate(requests)}
            finally:
                await client.close()

        return asyncio.run(main())


@pytest.fixture(scope="session")
def served_type() -> type[Served]:
    """:class:`Served`, for tests that start engines in their own way."""
    return Served


@pytest.fixture
def serve(checkpoint: Callable[..., Path]) -> Iterator[Callable[..., Served]]:
    """Start engines; they are stopped at the end of the test."""
    engines = []

    def start(kind: str = "qwen3", seed: int = 0, routes: bool = False, **options: Any) -> Served:
        defaults = {"kv_cache_tokens": 4096, "threads": 1}
        groups = TransformersOptions(**{**defaults, **options}), RoutingOptions(use_rollout_routing_replay=routes)
        engine = TransformersEngine(Config.of(*groups, ClusterOptions(device="cpu")))
        url = engine.start(EngineLaunch(rank=0, model=checkpoint(kind, seed)))
        engines.append(engine)
        return Served(engine, url)

    yield start
    for engine in engines:
        engine.stop()


@pytest.fixture(scope="session")
def requests_of() -> Callable[..., list[GenerateRequest]]:
    """Requests with random prompts of given lengths, ``samples`` siblings each."""

    def make(lengths: Sequence[int], samples: int = 1, seed: int = 0, name: str = "r", **params: Any) -> list[GenerateRequest]:
        generator = torch.Generator().manual_seed(seed)
        prompts = [torch.randint(2, VOCAB, (n,), generator=generator).tolist() for n in lengths]
        settings = {"max_new_tokens": 8, **params}
        return [
            GenerateRequest(f"{name}{i}-{j}", prompt, SamplingParams(**settings, sampling_seed=1000 * seed + i * samples + j))
            for i, prompt in enumerate(prompts)
            for j in range(samples)
        ]

    return make


@pytest.fixture(scope="session")
def reference(checkpoint: Callable[..., Path]) -> Callable[..., list[float]]:
    """Log-probs of a response by one plain forward pass, without cache, batch or padding."""
    loaded: dict[Path, Any] = {}

    def score(result: GenerateResult, request: GenerateRequest, kind: str = "qwen3", seed: int = 0) -> list[float]:
        path = checkpoint(kind, seed)
        if path not in loaded:
            loaded[path] = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        ids = torch.tensor([[*request.input_ids, *result.output_ids]])
        with torch.no_grad():
            logits = loaded[path](input_ids=ids, use_cache=False).logits[0, len(request.input_ids) - 1 : -1]
        log_probs = torch.log_softmax(logits / (request.params.temperature or 1.0), -1)
        return log_probs.gather(1, torch.tensor(result.output_ids)[:, None])[:, 0].tolist()

    return score
