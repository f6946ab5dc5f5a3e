"""SGLang as an engine of miles, on one GPU: tokens per second through miles and straight, and the time of publishing weights.

    python benchmarks/sglang_engine.py --sizes 0.6b 4b

The same requests go to the same server twice: through miles' client, and as bare HTTP calls that read nothing of the answers; with
``--run`` a third time, through ``miles run``, whose prompts are texts.
Weights are published by CUDA IPC in buckets of 512 MiB; the copy's own limit is what a copy of as many bytes on the GPU takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import checkpoint
import record
import torch

from miles_core.options import Config
from miles_core.protocols import EngineLaunch
from miles_core.samples import GenerateRequest, SamplingParams
from miles_core.serving import EngineClient, wire
from miles_core.weights import WeightPublisher, open_transport
from miles_sglang.engine import SGLangEngine
from miles_sglang.options import ServerOptions, SGLangOptions

SERVER = {
    "attention_backend": "triton",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "disable_prefill_cuda_graph": True,
    "mem_fraction_static": 0.5,
}
BUCKET = 512 << 20
HERE = Path(__file__).parent


def requests(count: int, prompt: int, response: int, round_: int) -> list[GenerateRequest]:
    """Random prompts, ``count`` different ones."""
    generator = torch.Generator().manual_seed(round_)
    ids = torch.randint(3, 250, (count, prompt), generator=generator).tolist()
    params = SamplingParams(max_new_tokens=response, ignore_eos=True)
    return [GenerateRequest(f"{round_}-{i}", each, params) for i, each in enumerate(ids)]


async def through_miles(url: str, batch: list[GenerateRequest], concurrency: int) -> int:
    """Tokens that miles' client gets."""
    client = EngineClient([url], batch_stream=False, timeout=600.0, max_connections=concurrency)
    try:
        return sum([len(result.output_ids) async for result in client.generate(batch)])
    finally:
        await client.close()


async def straight(url: str, batch: list[GenerateRequest], concurrency: int) -> int:
    """Tokens that bare calls make; the answers are not parsed."""
    import aiohttp

    gate = asyncio.Semaphore(concurrency)
    bodies = [wire.encode_call([request], batched=False, stream=False) for request in batch]
    headers = {"Content-Type": "application/json"}

    async def one(body: bytes) -> None:
        async with gate, session.post(f"{url}/generate", data=body, headers=headers) as response:
            await response.read()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*map(one, bodies))
    return sum(request.params.max_new_tokens for request in batch)


def through_run(url: str, folder: Path, args: argparse.Namespace) -> float:
    """Tokens per second of a whole run, manager and rewards included, that attaches to the server; the median of its rollouts."""
    rows = [{"input": f"Question {i}: what follows?"} for i in range(args.requests * args.rounds)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    command = [
        *(sys.executable, "-m", "miles_core.cli.main", "run", "--backend", "fsdp", "--engine", "sglang", "--algo", "grpo"),
        *("--debug-rollout-only", "--rollout-external", "--rollout-external-engine-addrs", url.removeprefix("http://")),
        *("--hf-checkpoint", str(folder / "model"), "--prompt-data", str(folder / "prompts.jsonl"), "--apply-chat-template"),
        *("--custom-rm-path", f"{HERE / 'token_reward.py'}:even", "--rollout-batch-size", str(args.requests // 2)),
        *("--n-samples-per-prompt", "2", "--rollout-max-response-len", str(args.response)),
        *("--num-rollout", str(args.rounds), "--sglang-server-concurrency", str(args.concurrency)),
        *("--run-dir", str(folder / "run")),
    ]
    subprocess.run(command, check=True)
    found = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return statistics.median(args.requests * row["rollout/response_len/mean"] / row["perf/rollout_time"] for row in found)


class Handle:
    """Calls an engine in this process."""

    name = "engine"

    def __init__(self, engine: Any) -> None:
        self._engine, self._thread = engine, ThreadPoolExecutor(1)

    def call(self, method: str, *args: Any) -> Any:
        return self._thread.submit(getattr(self._engine, method), *args)

    def wait(self, futures: Any, timeout: float) -> list[Any]:
        return [future.result(timeout) for future in futures]


def rates(ways: list[Any], url: str, args: argparse.Namespace, rounds: int) -> list[float]:
    """Tokens per second of each way, the median of the rounds, in which the ways take turns."""
    found: list[list[float]] = [[] for _ in ways]
    for round_ in range(rounds):
        for number, make in enumerate(ways):
            batch = requests(args.requests, args.prompt, args.response, 100 * round_ + number)
            started = time.perf_counter()
            tokens = asyncio.run(make(url, batch, args.concurrency))
            found[number].append(tokens / (time.perf_counter() - started))
    return [statistics.median(each) for each in found]


def publish(engine: SGLangEngine, folder: Path, run_dir: Path) -> dict[str, Any]:
    """Seconds of a publish, and of a copy of as many bytes."""
    from safetensors.torch import load_file

    weights = {name: tensor.cuda() for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    publisher = WeightPublisher(open_transport("cuda_ipc", run_dir, "trainer-0"), bucket_bytes=BUCKET)
    reports = [publisher.publish(version, weights.items(), [Handle(engine)]) for version in range(1, 6)]
    publisher.close()
    best = min(reports[1:], key=lambda report: report.seconds)
    flat = torch.empty(best.bytes, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(flat)
    other.copy_(flat)
    torch.cuda.synchronize()
    started = time.perf_counter()
    other.copy_(flat)
    torch.cuda.synchronize()
    copy = time.perf_counter() - started
    return {
        "weights (GB)": round(best.bytes / 1e9, 2),
        "publish, best of 4 (ms)": round(1000 * best.seconds, 1),
        "publish, median (ms)": round(1000 * statistics.median(report.seconds for report in reports[1:]), 1),
        "phases (ms)": {name: round(1000 * seconds, 1) for name, seconds in best.phases.items()},
        "a copy of as many bytes (ms)": round(1000 * copy, 1),
    }


def main() -> None:
    """Measure every size, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["0.6b"], choices=sorted(checkpoint.SIZES))
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--run", action="store_true", help="also through a whole run that attaches to the server")
    parser.add_argument("--out", type=Path, help="folder for the results")
    args = parser.parse_args()
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            checkpoint.write(folder / "model", size, dtype=torch.bfloat16)
            torch.cuda.empty_cache()
            engine = SGLangEngine(Config.of(SGLangOptions(server_concurrency=args.concurrency), ServerOptions(**SERVER)))
            started = time.perf_counter()
            url = engine.start(EngineLaunch(rank=0, model=folder / "model", log_dir=folder))
            figures: dict[str, Any] = {"size": size, "start (s)": round(time.perf_counter() - started, 1)}
            try:
                # The first requests of each way are not counted.
                rates([straight, through_miles], url, argparse.Namespace(**{**vars(args), "requests": args.concurrency}), 1)
                bare, own = rates([straight, through_miles], url, args, args.rounds)
                figures |= {
                    "straight (tokens/s)": round(bare),
                    "through miles (tokens/s)": round(own),
                    "share (%)": round(100 * own / bare, 1),
                }
                print(json.dumps(figures), flush=True)
                if args.run:
                    whole = through_run(url, folder, args)
                    figures |= {"through a run (tokens/s)": round(whole), "share of a run (%)": round(100 * whole / bare, 1)}
                figures |= publish(engine, folder / "model", folder)
            finally:
                engine.stop()
            print(json.dumps(figures, indent=1))
            record.save(f"sglang_engine_{size}", figures, "one SGLang server on one GPU", args.out)


if __name__ == "__main__":
    main()
