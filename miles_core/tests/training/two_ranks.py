"""Cases that run on one rank in the test and on two as ``two_ranks.py RANK WORLD FOLDER``, which writes what rank 0 found."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from miles_core.testing import random_rows
from miles_core.training.split import split_rows

ROWS = [row for row in random_rows(16) if row.mask.any()] + [random_rows(7)[6]]
LONG = random_rows(6, seed=5, longest_response=30)
NO_INFORMATION = [dataclasses.replace(row, reward=0.0) for row in ROWS]
ONE_SIDED = [dataclasses.replace(row, reward=row.reward if i % 2 else 0.0) for i, row in enumerate(ROWS)]
DYNAMIC = {"use_dynamic_batch_size": True, "max_tokens_per_gpu": 40}

CASES = {
    "thd static": (ROWS, {"micro_batch_size": 3}),
    "thd static per token": (ROWS, {"micro_batch_size": 3, "per_token": True}),
    "bshd static": (ROWS, {"micro_batch_size": 2, "qkv_format": "bshd"}),
    "bshd static per token": (ROWS, {"micro_batch_size": 2, "qkv_format": "bshd", "per_token": True}),
    "thd dynamic": (ROWS, DYNAMIC),
    "thd dynamic per token": (ROWS, {**DYNAMIC, "per_token": True}),
    "balanced": (ROWS, {**DYNAMIC, "balance": True}),
    "two steps": (ROWS[:12], {**DYNAMIC, "steps": 2}),
    "two steps per token": (ROWS[:12], {**DYNAMIC, "steps": 2, "per_token": True}),
    "whitened": (ROWS[:12], {**DYNAMIC, "steps": 2, "algorithm": {"normalize_advantages": True}}),
    "divided by a constant": (ROWS, {**DYNAMIC, "algorithm": {"loss_length_divisor": 9}}),
    "unequal tokens": (ROWS + LONG, {**DYNAMIC, "max_tokens_per_gpu": 25}),
    "one row": (ROWS[:1], {}),
    "one rank without information": (ONE_SIDED, {"micro_batch_size": 2}),
    "no information": (NO_INFORMATION, {}),
}


def run(kit, name: str, rank: int, world: int) -> dict[str, object]:
    """One case: gradients, metrics, and what the ranks did."""
    rows, settings = CASES[name]
    settings = dict(settings)
    steps, balance = settings.pop("steps", 1), settings.pop("balance", False)
    trainer = kit.trainer(**settings)
    report = trainer.train(split_rows(rows, data_size=world, steps=steps, balance=balance, rollout_id=0)[rank])
    return {
        "gradients": trainer.backend.gradients,
        "metrics": report.metrics_per_step,
        "rollout": report.rollout_metrics,
        "skipped": report.skipped,
        "tokens": report.tokens,
        "micro_batches": len(trainer.backend.micro_batches),
        "weights": dict(trainer.backend.export_weights()),
    }


CRITICS = {
    "thd": {"micro_batch_size": 3},
    "bshd per token": {"micro_batch_size": 2, "qkv_format": "bshd", "per_token": True},
    "dynamic": DYNAMIC,
}


def run_critic(kit, name: str, rank: int, world: int) -> dict[str, object]:
    """Two steps of a critic, with what two ranks of an actor say, which hold other rows than the critic's."""
    trainer = kit.critic(**CRITICS[name])
    trainer.values(split_rows(ROWS[:12], data_size=world, steps=2, balance=True, rollout_id=0)[rank])
    report = trainer.train([kit.returns(ROWS[:5]), kit.returns(ROWS[5:12])])
    return {
        "metrics": report.metrics_per_step,
        "tokens": report.tokens,
        "gradients": trainer.backend.gradients,
        "weights": dict(trainer.backend.export_weights()),
    }


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("training_conftest", Path(__file__).with_name("conftest.py"))
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    seconds = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world, timeout=seconds)
    kit = conftest.Kit(folder / "toy")
    results = {name: run(kit, name, rank, world) for name in CASES}
    critics = {name: run_critic(kit, name, rank, world) for name in CRITICS}
    every: list[object] = [None] * world
    dist.all_gather_object(every, {name: {k: r[k] for k in ("metrics", "rollout", "micro_batches")} for name, r in results.items()})
    if rank == 0:
        torch.save({"results": results, "ranks": every, "critics": critics}, folder / "results.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
