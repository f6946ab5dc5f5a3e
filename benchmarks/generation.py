"""Tokens per second of the embedded engine beside ``transformers.generate``, on the same prompts, one after the other in one run.

    python benchmarks/generation.py --size 0.5m

The engine is asked over its own HTTP, as in a run: one batch of requests, every result read back. ``generate`` gets the same
prompts as one batch. Both sample at temperature 1 and make exactly ``--new`` tokens for every prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import checkpoint
import record
import torch
from transformers import AutoModelForCausalLM

from miles_core.options import Config
from miles_core.protocols import EngineLaunch
from miles_core.samples import GenerateRequest, SamplingParams
from miles_core.serving.client import EngineClient
from miles_transformers.engine import TransformersEngine
from miles_transformers.options import TransformersOptions

PROMPT, REPEATS = 16, 5


def main() -> None:
    """Measure both, interleaved, for unique prompts and for eight samples of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.5m", choices=sorted(checkpoint.SIZES))
    parser.add_argument("--new", type=int, default=64, help="new tokens per prompt")
    parser.add_argument("--out", type=Path, help="folder for the results")
    args = parser.parse_args()
    torch.manual_seed(0)
    figures: dict[str, object] = {"size": args.size, "prompt tokens": PROMPT, "new tokens": args.new}
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint.write(Path(folder) / "model", args.size)
        model = AutoModelForCausalLM.from_pretrained(path)
        engine = TransformersEngine(Config.of(TransformersOptions(max_batch=512)))
        url = engine.start(EngineLaunch(rank=0, model=path))
        try:
            for prompts, samples in ((64, 1), (64, 8)):
                ids = torch.randint(10, 250, (prompts, PROMPT)).repeat_interleave(samples, 0)
                ours, theirs = [], []
                for _ in range(REPEATS):
                    ours.append(asyncio.run(ask_engine(url, ids, args.new)))
                    theirs.append(call_generate(model, ids, args.new))
                made = ids.shape[0] * args.new
                figures[f"{prompts} prompts x {samples}"] = {
                    "engine (tokens/s)": round(made / statistics.median(ours)),
                    "transformers.generate (tokens/s)": round(made / statistics.median(theirs)),
                    "engine / generate": round(statistics.median(theirs) / statistics.median(ours), 2),
                }
        finally:
            engine.stop()
    record.save(
        f"generation_{args.size}", figures, f"median of {REPEATS}, interleaved; {torch.get_num_threads()} threads", args.out
    )


async def ask_engine(url: str, ids: torch.Tensor, new: int) -> float:
    """Seconds for one batch over HTTP."""
    params = SamplingParams(max_new_tokens=new, ignore_eos=True)
    requests = [GenerateRequest(f"r{i}", row, params) for i, row in enumerate(ids.tolist())]
    client = EngineClient([url], batch_stream=True, timeout=300)
    started = time.perf_counter()
    count = 0
    async for result in client.generate(requests):
        count += len(result.output_ids)
    seconds = time.perf_counter() - started
    await client.close()
    assert count == ids.shape[0] * new
    return seconds


def call_generate(model: torch.nn.Module, ids: torch.Tensor, new: int) -> float:
    """Seconds for the same batch."""
    started = time.perf_counter()
    made = model.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, min_new_tokens=new, max_new_tokens=new
    )
    seconds = time.perf_counter() - started
    assert made.shape[1] == PROMPT + new
    return seconds


if __name__ == "__main__":
    main()
