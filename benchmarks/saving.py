"""How long training waits for a run state: saved at once, and with ``--async-save``.

    python benchmarks/saving.py

Both ways take turns in one process; each round saves the state of a model that has taken a step of Adam (fp32 weights and both
moments) by the fsdp backend and syncs it to disk. ``waits`` is until training may go on: with ``--async-save`` that is the copy to
host memory, and ``background`` is what a thread takes for the files afterwards. Both states are compared byte for byte. Figures are
medians, ratios within this file.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import checkpoint
import record
import torch
import torch.distributed as dist
from gpu_training import random_batch

from miles_algos.advantages.grpo import Grpo
from miles_algos.losses.policy_loss import PolicyLoss
from miles_core.config import ClusterOptions, TrainingOptions
from miles_core.options import Config
from miles_core.protocols import ModelSpec
from miles_core.state import StateStore
from miles_core.training.trainer import Trainer
from miles_fsdp.backend import FsdpBackend
from miles_fsdp.options import FsdpOptions


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.1b", choices=sorted(checkpoint.SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for the results")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = checkpoint.write(folder / "model", args.size)
        group = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(group, init_method=f"file://{name}/group", rank=0, world_size=1)
        config = Config.of(TrainingOptions(lr=1e-6), FsdpOptions(), ClusterOptions(device=device))
        backend = FsdpBackend(config)
        backend.setup(ModelSpec(checkpoint=path, train_steps=10))
        Trainer(config, backend, PolicyLoss(config), Grpo(config)).train(random_batch(64, 2))
        at_once, held = StateStore(folder / "at-once"), StateStore(folder / "held")
        waits: dict[str, list[float]] = {"at once": [], "--async-save": [], "background": []}
        for number in range(args.rounds):
            started = time.perf_counter()
            backend.save(at_once.begin(number))
            saved = at_once.commit(number, {}, keep=1)
            waits["at once"].append(time.perf_counter() - started)
            started = time.perf_counter()
            state = backend.hold(held.begin(number))
            waits["--async-save"].append(time.perf_counter() - started)
            started = time.perf_counter()
            state.complete([state.write()])
            other = held.commit(number, {}, keep=1)
            waits["background"].append(time.perf_counter() - started)
        files = sorted(file.relative_to(saved) for file in saved.rglob("*") if file.is_file() and file.name != "meta.json")
        # The index of the shards is a pickle that names each part's time.
        compared = [file for file in files if file.name != ".metadata"]
        same = all((saved / file).read_bytes() == (other / file).read_bytes() for file in compared)
        size = sum((saved / file).stat().st_size for file in files)
        dist.destroy_process_group()
    median = {kind: statistics.median(seconds) for kind, seconds in waits.items()}
    figures = {
        "size": args.size,
        "state (MiB)": round(size / 2**20),
        "files that are the same": same,
        "seconds": {kind: [round(each, 2) for each in seconds] for kind, seconds in waits.items()},
        "waits at once / waits with --async-save": round(median["at once"] / median["--async-save"], 1),
    }
    record.save("saving", figures, __doc__ or "", args.out)


if __name__ == "__main__":
    main()
