"""What an optimizer step of the fsdp backend on one rank costs, by what it leaves out or has compiled.

    python benchmarks/fsdp_step.py

All variants stand in one process and take turns, a step each; figures are of the fastest turn, ratios within this file. ``hooks``
is the model as FSDP has it, with its copies and hooks around every layer, which one rank goes without. Log-probs are those of so
many rows with their gradients, entropy included. All variants have the same first step, up to rounding. Everything is fp32 on one
thread of a CPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
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
from miles_core.protocols.backend import OutputRequest
from miles_core.training.logprobs import token_outputs
from miles_core.training.trainer import Trainer
from miles_fsdp.backend import FsdpBackend
from miles_fsdp.options import FsdpOptions

ROWS, VOCABULARY = 512, 32768


class Hooked(FsdpBackend):
    """FSDP also where there is one rank."""

    _is_sharded = True  # type: ignore[assignment]


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="5m", choices=sorted(checkpoint.SIZES))
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-compile", action="store_true", help="leave out what takes minutes of compiling")
    parser.add_argument("--out", type=Path, help="folder for the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint.write(Path(folder) / "model", args.size)
        dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
        steps = {"hooks": step_of(Hooked, path, args.tokens), "no hooks": step_of(FsdpBackend, path, args.tokens)}
        rows = {"log-probs": rows_step(compiled=False)}
        if not args.no_compile:
            steps["no hooks, compiled"] = step_of(FsdpBackend, path, args.tokens, compiled=True)
            rows["log-probs, compiled"] = rows_step(compiled=True)
        figures: dict[str, object] = {"size": args.size, "tokens": args.tokens, "rows x vocabulary": f"{ROWS} x {VOCABULARY}"}
        figures["gradient norm, first step"] = {name: step() for name, step in steps.items()}
        for group in (steps, rows):
            taken = in_turns(group, args.repeats)
            first = next(iter(taken.values()))
            for name, seconds in taken.items():
                figures[name] = {"ms": round(1000 * seconds, 1), "times as fast": round(first / seconds, 2)}
        dist.destroy_process_group()
    record.save("fsdp_step", figures, __doc__ or "", args.out)


def step_of(kind: type[FsdpBackend], path: Path, tokens: int, *, compiled: bool = False) -> Callable[[], object]:
    """GRPO's step on 16 packed rows in four micro-batches."""
    options = TrainingOptions(use_dynamic_batch_size=True, max_tokens_per_gpu=tokens // 4, lr=1e-6)
    config = Config.of(options, FsdpOptions(compile=compiled), ClusterOptions(device="cpu"))
    backend = kind(config)
    backend.setup(ModelSpec(checkpoint=path, train_steps=1000))
    trainer = Trainer(config, backend, PolicyLoss(config), Grpo(config))
    batch = random_batch(tokens, 16)
    return lambda: trainer.train(batch).metrics_per_step[0]["train/grad_norm"]


def rows_step(*, compiled: bool) -> Callable[[], object]:
    """Log-probs, entropy and their gradients."""
    torch.manual_seed(0)
    logits = torch.randn(ROWS, VOCABULARY, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (ROWS,))

    def step() -> None:
        outputs = token_outputs(logits, targets, OutputRequest(entropy=True), entropy_grad=True, compiled=compiled)
        assert outputs.log_probs is not None
        assert outputs.entropy is not None
        (outputs.log_probs.sum() + outputs.entropy.sum()).backward()
        logits.grad = None

    return step


def in_turns(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of the fastest step of each: other processes only ever make one slower."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(2 + repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return {name: min(taken) for name, taken in seconds.items()}


if __name__ == "__main__":
    main()
