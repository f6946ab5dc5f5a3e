"""What ``--true-on-policy-mode`` costs: tokens per second of generation and of training with and without it, in one run on a CPU.

    python benchmarks/true_on_policy.py --size 0.5m

Two engines get the same requests over HTTP in turn, two trainers make the same optimizer steps (forward, backward, AdamW) of their
samples in turn. The largest difference of the engine's log-probs from the trainer's belongs to the first weights.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import checkpoint
import numpy as np
import record
import torch
import torch.distributed as dist

from miles_core.config import ClusterOptions, TrainingOptions
from miles_core.options import Config
from miles_core.protocols import EngineLaunch, ModelSpec
from miles_core.protocols.backend import OutputRequest
from miles_core.samples import GenerateRequest, GenerateResult, SamplingParams
from miles_core.serving.client import EngineClient
from miles_core.training.batch import MicroBatch
from miles_core.training.pack import pack
from miles_core.training.rows import TrainRow
from miles_core.training.table import RowTable
from miles_fsdp.backend import FsdpBackend
from miles_fsdp.options import FsdpOptions
from miles_transformers.engine import TransformersEngine
from miles_transformers.options import TransformersOptions

PROMPT, REPEATS = 16, 7
MODES = {"without": False, "with": True}


def main() -> None:
    """Measure both, interleaved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.5m", choices=("0.5m", "5m"))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new", type=int, default=64, help="new tokens per prompt")
    parser.add_argument("--out", type=Path, help="folder for the results")
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint.write(Path(folder) / "model", args.size)
        requests = [
            GenerateRequest(f"r{i}", row, SamplingParams(args.new, ignore_eos=True, sampling_seed=i))
            for i, row in enumerate(torch.randint(10, 250, (args.prompts, PROMPT)).tolist())
        ]
        rates, results = generation(path, requests)
        trained, differences = training(path, requests, results)
    figures: dict[str, object] = {"size": args.size, "prompts": args.prompts, "prompt tokens": PROMPT, "new tokens": args.new}
    for what, found in (("generation", rates), ("training", trained)):
        figures[f"{what} (tokens/s)"] = {name: round(rate) for name, rate in found.items()}
        figures[f"{what}: seconds with / without"] = round(found["without"] / found["with"], 2)
    figures["largest log-prob difference"] = differences
    record.save(
        f"true_on_policy_{args.size}", figures, f"median of {REPEATS}, interleaved; {torch.get_num_threads()} threads", args.out
    )


def generation(path: Path, requests: list[GenerateRequest]) -> tuple[dict[str, float], dict[str, list[GenerateResult]]]:
    """New tokens per second, and the results of the last round, by mode."""
    engines, seconds, results = {}, {name: [] for name in MODES}, {}
    for name, exact in MODES.items():
        groups = TransformersOptions(), TrainingOptions(true_on_policy_mode=exact), ClusterOptions(device="cpu")
        engines[name] = TransformersEngine(Config.of(*groups))
    try:
        urls = {name: engine.start(EngineLaunch(rank=0, model=path)) for name, engine in engines.items()}
        for _ in range(REPEATS):
            for name, url in urls.items():
                started = time.perf_counter()
                results[name] = asyncio.run(ask(url, requests))
                seconds[name].append(time.perf_counter() - started)
    finally:
        for engine in engines.values():
            engine.stop()
    made = sum(request.params.max_new_tokens for request in requests)
    return {name: made / statistics.median(found) for name, found in seconds.items()}, results


async def ask(url: str, requests: list[GenerateRequest]) -> list[GenerateResult]:
    """One batch over HTTP, in the order of the requests."""
    client = EngineClient([url], batch_stream=True, timeout=300)
    try:
        found = {result.rid: result async for result in client.generate(requests)}
    finally:
        await client.close()
    return [found[request.rid] for request in requests]


def training(
    path: Path, requests: list[GenerateRequest], results: dict[str, list[GenerateResult]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Tokens per second of prompt and response, and the largest difference from the engine's log-probs, by mode."""
    seconds: dict[str, list[float]] = {name: [] for name in MODES}
    differences, backends, batches = {}, {}, {}
    dist.init_process_group("gloo", init_method=f"file://{path}/group", rank=0, world_size=1)
    for name, exact in MODES.items():
        config = Config.of(TrainingOptions(true_on_policy_mode=exact), FsdpOptions(), ClusterOptions(device="cpu"))
        backends[name] = FsdpBackend(config)
        backends[name].setup(ModelSpec(checkpoint=path, train_steps=REPEATS))
        batches[name] = batch_of(requests, results[name])
        (outputs,) = backends[name].forward([batches[name]], OutputRequest()) or ()
        assert outputs.log_probs is not None
        differences[name] = float((outputs.log_probs - batches[name].data["rollout"]).abs().max())
    for _ in range(REPEATS):
        for name, backend in backends.items():
            started = time.perf_counter()
            backend.train_step([batches[name]], OutputRequest(), lambda _, outputs: outputs.log_probs.mean())
            seconds[name].append(time.perf_counter() - started)
    dist.destroy_process_group()
    return {name: batches[name].num_tokens / statistics.median(found) for name, found in seconds.items()}, differences


def batch_of(requests: list[GenerateRequest], results: list[GenerateResult]) -> MicroBatch:
    """All samples as one packed micro-batch."""
    rows = [
        TrainRow(
            index=i,
            group=i,
            tokens=np.array([*request.input_ids, *result.output_ids], np.int32),
            response_length=len(result.output_ids),
            mask=np.ones(len(result.output_ids), np.float32),
            reward=0.0,
            raw_reward=0.0,
            rollout_log_probs=np.array(result.log_probs, np.float32),
        )
        for i, (request, result) in enumerate(zip(requests, results, strict=True))
    ]
    table = RowTable(rows)
    rollout = table.rollout_log_probs()
    assert rollout is not None
    return pack(table, range(len(rows)), {"rollout": rollout}, layout="thd")


if __name__ == "__main__":
    main()
