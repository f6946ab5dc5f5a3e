"""The rollout manager with ten thousand samples on their way at once, and with ten times as many queued.

    python benchmarks/scale.py

A synthetic engine in a process of its own, behind the engines' own HTTP, answers every request after a delay with random tokens and
log-probs. The manager is a run's: it sends all prompts of the rollout at once, takes the responses in, grades them, applies the
filter ``nonzero_std`` and makes training rows. Each size runs in a fresh process, whose largest resident memory counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import checkpoint
import record

GROUP = 8
DELAY = 2.0
VARIANTS = 64
VOCABULARY = 150_000
LENGTHS = {4096: (1_000, 3_000, 10_000), 256: (10_000, 100_000)}
"""Samples by tokens of a response."""


async def score(sample: Any) -> float:
    """The reward: differs between the samples of a group."""
    return float(sample.index % 2)


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, type=int, metavar=("SAMPLES", "TOKENS"), help="one size only, figures as JSON")
    parser.add_argument("--out", type=Path, help="folder for the results")
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(measure(*args.one)))
        return
    figures = {}
    for length, sizes in LENGTHS.items():
        for samples in sizes:
            command = [sys.executable, __file__, "--one", str(samples), str(length)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            figures[f"{samples} x {length} tokens"] = json.loads(done.stdout.splitlines()[-1])
            print(samples, length, done.stdout.splitlines()[-1], flush=True)
    record.save(
        "scale",
        figures,
        "All samples of a size are on their way at once. Memory of a sample is the growth of the manager's largest resident "
        "memory, divided by samples: Python lists of ids and log-probs, and the training rows. 100,000 samples have 256 tokens "
        "each, since lists of 4,096 would take more memory than the machine has. Engine and manager share the processors.",
        args.out,
    )


def measure(samples: int, length: int) -> dict[str, float]:
    """One rollout."""
    from miles_core.options.resolve import resolve
    from miles_core.rollout.manager import RolloutManager
    from miles_core.runtime.checks.placement import Machine
    from miles_core.runtime.planning import plan_run

    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    engine = context.Process(target=serve, args=(theirs, length), daemon=True)
    engine.start()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = samples // GROUP
        (folder / "prompts.jsonl").write_text("".join(json.dumps({"input": f"{i} + 1"}) + "\n" for i in range(prompts)))
        model = checkpoint.write(folder / "model", "0.5m")
        words = ["--backend", "fsdp", "--engine", "transformers", "--algo", "grpo", "--hf-checkpoint", model]
        words += ["--custom-rm-path", f"{__file__}:score", "--dynamic-sampling-filter-path", "nonzero_std"]
        words += ["--prompt-data", folder / "prompts.jsonl", "--rollout-batch-size", prompts, "--n-samples-per-prompt", GROUP]
        words += ["--rollout-max-response-len", length, "--num-rollout", 1, "--colocate", "--actor-num-gpus-per-node", 1]
        words += ["--run-dir", folder / "run"]
        planned = plan_run(resolve([str(word) for word in words], environment={}), Machine(cpus=1, gpus=0))
        figures = asyncio.run(collect(RolloutManager(planned.config, planned.require()), mine.recv(), samples, length))
    engine.terminate()
    engine.join()
    return figures


async def collect(manager: Any, url: str, samples: int, length: int) -> dict[str, float]:
    """Seconds, rate and memory of a rollout."""
    await manager.start([url])
    before = largest()
    started = time.perf_counter()
    result = await manager.generate(0)
    seconds = time.perf_counter() - started
    assert len(result.rows) == samples
    assert sum(len(row.mask) for row in result.rows) == samples * length
    await manager.close()
    grown = largest() - before
    return {
        "seconds": round(seconds, 2),
        "samples_per_s": round(samples / seconds, 1),
        "tokens_per_s": round(samples * length / seconds),
        "resident_at_start_mib": round(before / 2**20),
        "largest_resident_mib": round(largest() / 2**20),
        "kib_per_sample": round(grown / samples / 1024, 1),
        "bytes_per_token": round(grown / samples / length, 1),
    }


def largest() -> int:
    """Most bytes of memory that this process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def serve(pipe: Connection, length: int) -> None:
    """The engine: answers at its URL until it is ended."""
    from miles_core.serving import ServerThread, engine_app

    pipe.send(ServerThread(engine_app(Delayed(length))).start())
    time.sleep(1e6)


class Delayed:
    """Answers each request about ``DELAY`` seconds after it came, with a response of ``length`` random tokens."""

    def __init__(self, length: int) -> None:
        draw = random.Random(0)
        self._variants = [
            (tuple(draw.randrange(VOCABULARY) for _ in range(length)), tuple(-draw.random() for _ in range(length)))
            for _ in range(VARIANTS)
        ]

    async def submit(self, requests: Sequence[Any]) -> AsyncGenerator[list[Any], None]:
        """All at once; answers as their time comes."""
        from miles_core.samples import FinishReason, GenerateResult

        draw = random.Random(1)
        due = sorted((DELAY * draw.uniform(0.5, 1.5), number) for number in range(len(requests)))
        started = time.perf_counter()
        for when, number in due:
            left = when - (time.perf_counter() - started)
            if left > 0:
                await asyncio.sleep(left)
            request = requests[number]
            ids, log_probs = self._variants[number % VARIANTS]
            yield [GenerateResult(request.rid, ids, log_probs, FinishReason.LENGTH, 1, "", len(request.input_ids))]


if __name__ == "__main__":
    main()
