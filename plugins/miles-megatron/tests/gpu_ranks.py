"""One of the processes of ``test_gpu.py``: ``gpu_ranks.py RANK WORLD CHECKPOINTS FOLDER``. Rank 0 writes what they found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import helpers
import torch
import torch.distributed as dist
from helpers import ADAM, CP, PP, SP, TP

from miles_core.protocols.backend import Parallel

tiny = helpers.shared()
ROWS = tiny.samples(8)
CASES: dict[int, dict[str, dict[str, Any]]] = {
    1: {"one GPU": {}, "one GPU compiled": {"compile": True}, "one GPU recomputing": {"recompute_granularity": "full"}},
    2: {"DP2": {}, "TP2": TP, "TP2 SP": SP, "PP2": PP, "CP2": CP},
}


def share(place: Parallel) -> list[Any]:
    """This rank's rows as two micro-batches on its GPU."""
    mine = ROWS[place.data_rank :: place.data_size]
    half = len(mine) // 2
    device = torch.device("cuda", torch.cuda.current_device())
    return [tiny.micro_batch(part).to(device) for part in (mine[:half], mine[half:])]


def main(rank: int, world: int, checkpoints: Path, folder: Path) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{folder}/init", rank=rank, world_size=world)
    other = tiny.make_backend(checkpoints / "qwen3", device="cuda", **ADAM)
    found = {}
    for name, options in CASES[world].items():
        backend = helpers.make_backend(checkpoints / "qwen3", device="cuda", training=ADAM, check_log_probs=True, **options)
        batches = share(backend.parallel)
        outputs = backend.forward(batches, tiny.REQUEST)
        wanted = other.forward(batches, tiny.REQUEST)
        distance = torch.zeros(1, device="cuda")
        if outputs is not None:
            pairs = zip(outputs, wanted, strict=True)
            distance += torch.cat([(a.log_probs - b.log_probs).abs() for a, b in pairs]).mean()
        dist.all_reduce(distance, dist.ReduceOp.MAX)
        norm = backend.train_step(batches, tiny.REQUEST, tiny.loss).grad_norm
        fresh = tiny.make_backend(checkpoints / "qwen3", device="cuda", **ADAM)
        reference = fresh.train_step(share(fresh.parallel), tiny.REQUEST, tiny.loss).grad_norm
        found[name] = float(distance), abs(norm / reference - 1)
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
