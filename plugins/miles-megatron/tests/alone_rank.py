"""The process of ``test_alone.py``: ``alone_rank.py CHECKPOINTS RESULT``. Steps of one rank, compiled and not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cpu

cpu.apply()

import helpers  # noqa: E402 - megatron-core is imported behind what lets it run here
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from helpers import ADAM, make_backend  # noqa: E402

tiny = helpers.shared()
ROWS = tiny.samples(6)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("qwen3", {}),
    "experts": ("moe", {}),
    "whole optimizer": ("qwen3", {"use_distributed_optimizer": False}),
    "recomputed": ("qwen3", {"recompute_granularity": "selective"}),
    "bf16": ("qwen3", {"precision": "bf16"}),
    "bf16, whole optimizer": ("llama", {"precision": "bf16", "use_distributed_optimizer": False}),
}


def summed(backend: Any) -> int:
    """Bytes of the buffers that gradients are added up in."""
    return sum(buffer.grad_data.untyped_storage().nbytes() for chunk in backend._wrapped for buffer in chunk.buffers)


def steps(backend: Any, counts: tuple[int, ...]) -> tuple[list[Any], list[int]]:
    """Reports of steps of so many micro-batches, and :func:`summed` after each."""
    reports, taken = [], []
    for count in counts:
        size = len(ROWS) // count
        batches = [tiny.micro_batch(ROWS[start : start + size]) for start in range(0, len(ROWS), size)]
        reports.append(backend.train_step(batches, tiny.REQUEST, tiny.loss))
        taken.append(summed(backend))
    return reports, taken


def main(root: Path, result: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/init-alone", rank=0, world_size=1)
    found = {}
    for name, (model, options) in CASES.items():
        said: list[Any] = []
        for compiled in (True, False):
            backend = make_backend(root / model, training=ADAM, compile=compiled, **options)
            reports, taken = steps(backend, (1, 3, 1))
            broken = backend.train_step([tiny.micro_batch(ROWS)], tiny.REQUEST, lambda *given: tiny.loss(*given) * float("inf"))
            backend.offload()
            backend.onload()
            said.append((type(backend._wrapped[0]).__name__, reports, broken.skipped, taken, tiny.weights_of(backend)))
        found[name] = said
    torch.save(found, result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
