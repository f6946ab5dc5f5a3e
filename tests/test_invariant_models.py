"""The engine's log-probs and the backend's, bit by bit, for every architecture of the true on-policy mode."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from miles_core.config import ClusterOptions, TrainingOptions
from miles_core.options import Config
from miles_core.protocols import EngineLaunch
from miles_core.protocols.backend import ModelSpec, OutputRequest
from miles_core.samples import GenerateRequest, GenerateResult, SamplingParams
from miles_core.serving import EngineClient
from miles_core.training.pack import pack
from miles_core.training.rows import TrainRow
from miles_core.training.table import RowTable
from miles_fsdp.backend import FsdpBackend
from miles_fsdp.options import FsdpOptions
from miles_transformers.engine import TransformersEngine
from miles_transformers.options import TransformersOptions

VOCABULARY = 211
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
MODELS: dict[str, dict[str, Any]] = {
    # Grouped heads with norms of queries and keys; heads that share nothing; biases; a window shorter than the sequences.
    "qwen3": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    "llama": {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "qwen2": {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "mistral": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "sliding_window": 20},
}
LENGTHS = [3, 90, 17, 64, 1, 33, 64, 5]


@pytest.fixture(scope="module", autouse=True)
def _one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    place = tmp_path_factory.mktemp("group") / "init"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    threads = torch.get_num_threads()
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    for kind, sizes in MODELS.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **SIZES, **sizes)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        model.save_pretrained(root / kind)
        PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1").save_pretrained(root / kind)
    return root


def generate(checkpoint: Path, requests: Sequence[GenerateRequest], *, exact: bool, **options: Any) -> list[GenerateResult]:
    """What an engine answers, in the order of the requests."""
    groups = TransformersOptions(**options), TrainingOptions(true_on_policy_mode=exact), ClusterOptions(device="cpu")
    engine = TransformersEngine(Config.of(*groups))
    url = engine.start(EngineLaunch(rank=0, model=checkpoint))

    async def ask() -> dict[str, GenerateResult]:
        client = EngineClient([url], batch_stream=True, timeout=60.0)
        try:
            return {result.rid: result async for result in client.generate(requests)}
        finally:
            await client.close()

    try:
        found = asyncio.run(ask())
    finally:
        engine.stop()
    return [found[request.rid] for request in requests]


def make_requests(temperature: float) -> list[GenerateRequest]:
    """Two samples of prompts of many lengths, with responses of many lengths."""
    random = torch.Generator().manual_seed(5)
    prompts = [torch.randint(2, VOCABULARY, (length,), generator=random).tolist() for length in LENGTHS]
    return [
        GenerateRequest(
            f"{i}-{j}",
            prompt,
            SamplingParams(5 + 11 * ((i + j) % 4), temperature, ignore_eos=True, top_p=0.95, sampling_seed=i * 2 + j),
        )
        for i, prompt in enumerate(prompts)
        for j in range(2)
    ]


def make_backend(checkpoint: Path, *, exact: bool, layout: str = "thd", **options: Any) -> FsdpBackend:
    training = TrainingOptions(true_on_policy_mode=exact, qkv_format=layout, lr=1000.0, clip_grad=0.0)
    config = Config.of(training, FsdpOptions(optimizer="sgd", **options), ClusterOptions(device="cpu"))
    backend = FsdpBackend(config)
    backend.setup(ModelSpec(checkpoint=checkpoint, train_steps=4))
    return backend


def table_of(requests: Sequence[GenerateRequest], results: Sequence[GenerateResult]) -> RowTable:
    return RowTable(
        [
            TrainRow(
                index=i,
                group=i // 2,
                tokens=np.array([*request.input_ids, *result.output_ids], np.int32),
                response_length=len(result.output_ids),
                mask=np.ones(len(result.output_ids), np.float32),
                reward=0.0,
                raw_reward=0.0,
                rollout_log_probs=np.array(result.log_probs, np.float32),
            )
            for i, (request, result) in enumerate(zip(requests, results, strict=True))
        ]
    )


def differences(
    backend: FsdpBackend, table: RowTable, bins: Sequence[Sequence[int]], layout: str, temperature: float
) -> list[float]:
    """The largest difference in each micro-batch."""
    rollout = table.rollout_log_probs()
    assert rollout is not None
    found = []
    for rows in bins:
        batch = pack(table, rows, {"rollout": rollout}, layout=layout)
        (outputs,) = backend.forward([batch], OutputRequest(temperature=temperature, chunk_size=13)) or ()
        assert outputs.log_probs is not None
        found.append(float((outputs.log_probs - batch.data["rollout"]).abs().max()))
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_any_batch_of_the_trainer_repeats_the_engine(checkpoints: Path, kind: str) -> None:
    temperature = 0.7
    requests = make_requests(temperature)
    # Few slots and a small cache: rows move, wait, and are evicted and prefilled again with what they had made.
    results = generate(checkpoints / kind, requests, exact=True, max_batch=5, kv_cache_tokens=352, prefill_tokens=128, threads=1)
    assert [len(result.output_ids) for result in results] == [request.params.max_new_tokens for request in requests]
    table = table_of(requests, results)
    random = torch.Generator().manual_seed(1)
    orders = [torch.randperm(table.size, generator=random).tolist() for _ in range(6)]
    sizes = [table.size, 1, *torch.randint(2, table.size, (4,), generator=random).tolist()]
    bins = [order[:size] for order, size in zip(orders, sizes, strict=True)]
    backend = make_backend(checkpoints / kind, exact=True)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for layout in ("thd", "bshd"):
            assert differences(backend, table, bins, layout, temperature) == [0.0] * len(bins), (layout, threads)
    # The control: without the mode the same samples differ.
    plain = make_backend(checkpoints / kind, exact=False)
    assert max(differences(plain, table, bins, "thd", temperature)) > 0.0


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_equal_those_without_the_mode(checkpoints: Path, kind: str) -> None:
    requests = make_requests(1.0)[:6]
    results = generate(checkpoints / kind, requests, exact=False, threads=1)
    table = table_of(requests, results)
    batches = [pack(table, [0, 1, 2, 3], {}, layout="thd"), pack(table, [4, 5], {}, layout="thd")]
    moved = []
    for exact in (False, True):
        backend = make_backend(checkpoints / kind, exact=exact, gradient_checkpointing=exact)
        before = {name: tensor.clone() for name, tensor in backend.export_weights()}
        report = backend.train_step(batches, OutputRequest(), lambda _, outputs: outputs.log_probs.mean())
        moved.append({name: before[name] - tensor for name, tensor in backend.export_weights()})
        assert report.grad_norm > 0
    for name, plain in moved[0].items():
        assert (moved[1][name] - plain).abs().max() <= 1e-5 * plain.abs().max(), name


def test_a_bf16_checkpoint_is_published_in_fp32_and_saved_as_it_was(checkpoints: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints / "llama", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    backend = make_backend(tmp_path / "half", exact=True)
    assert {tensor.dtype for _, tensor in backend.export_weights()} == {torch.float32}
    backend.export_hf(tmp_path / "out")
    assert {p.dtype for p in AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").parameters()} == {torch.bfloat16}
