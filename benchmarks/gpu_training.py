"""Tokens per second and MFU of a training step on one device, beside a plain loop over the same Hugging Face model.

    python benchmarks/gpu_training.py --size 0.6b --tokens 8192
    python benchmarks/gpu_training.py --size 4b --only "plain loop" "megatron, one row, compiled" --profile

The plain loop is what one writes without a framework: bf16 weights, SDPA, one causal row, cross-entropy in chunks of 4,096 rows,
fused AdamW on the bf16 weights. The trainer's step is the whole of GRPO's: fp32 master weights and optimizer, bf16 compute, policy
loss, clipping, metrics; by the fsdp and the megatron backend. All run in one process, one after the other. MFU counts matrix
products and causal attention, forward and backward, against 989 TFLOP/s. Without an accelerator everything runs in fp32, the
megatron backend not at all, and MFU means nothing.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoint
import numpy as np
import record
import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from miles_algos.advantages.grpo import Grpo
from miles_algos.losses.policy_loss import PolicyLoss
from miles_core.config import ClusterOptions, TrainingOptions
from miles_core.options import Config
from miles_core.protocols import ModelSpec
from miles_core.training.rows import RankBatch, TrainRow
from miles_core.training.split import count_step
from miles_core.training.trainer import Trainer
from miles_fsdp.backend import FsdpBackend
from miles_fsdp.options import FsdpOptions

PEAK = 989e12
WARM_UP, REPEATS = 3, 8


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.6b", choices=sorted(checkpoint.SIZES))
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--compile", action="store_true", help="with --fsdp-compile too, as on an accelerator")
    parser.add_argument("--only", nargs="+", help="just these")
    parser.add_argument("--profile", action="store_true", help="also the time of each kernel in a step")
    parser.add_argument("--out", type=Path, help="folder for the results")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint.write(Path(folder) / "model", args.size, dtype=half(device))
        config = AutoConfig.from_pretrained(path)
        flops = step_flops(config, args.tokens)
        figures: dict[str, object] = {"size": args.size, "tokens": args.tokens, "TFLOP per step": round(flops / 1e12, 2)}
        runs = {"plain loop": lambda: plain_loop(path, args.tokens, device)}
        for backend in ("fsdp", "megatron") if device.type == "cuda" else ("fsdp",):
            for compiled in (False, True) if args.compile or device.type == "cuda" else (False,):
                for kind, rows, recompute in (
                    ("one row", 1, False),
                    ("one row, recomputing", 1, True),
                    ("16 packed rows", 16, False),
                ):
                    step = Step(path, args.tokens, rows, device, backend, recompute=recompute, compiled=compiled)
                    runs[f"{backend}, {kind}{', compiled' if compiled else ''}"] = step
        runs = {name: run for name, run in runs.items() if not args.only or name in args.only}
        for name, run in runs.items():
            PROFILE.name = name if args.profile else ""
            seconds, peak = run()
            own = flops if "16" not in name else step_flops(config, args.tokens // 16) * 16
            figures[name] = {
                "ms per step": round(1000 * seconds, 1),
                "tokens/s": round(args.tokens / seconds),
                "MFU (%)": round(100 * own / seconds / PEAK, 1),
                "peak GiB": round(peak / 2**30, 1),
            }
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            kind = "gpu_training" if device.type == "cuda" else "cpu_training"
            record.save(f"{kind}_{args.size}_{args.tokens}", figures, __doc__ or "", args.out)


def half(device: torch.device) -> torch.dtype:
    """bf16 where it is fast."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def step_flops(config: object, tokens: int) -> float:
    """Floating-point operations of forward and backward over one causal row."""
    c = config
    heads = c.num_attention_heads * c.head_dim  # type: ignore[attr-defined]
    keys = c.num_key_value_heads * c.head_dim  # type: ignore[attr-defined]
    layer = c.hidden_size * (2 * heads + 2 * keys) + 3 * c.hidden_size * c.intermediate_size  # type: ignore[attr-defined]
    matrices = c.num_hidden_layers * layer + c.vocab_size * c.hidden_size  # type: ignore[attr-defined]
    attention = c.num_hidden_layers * 6 * tokens * tokens * heads  # type: ignore[attr-defined]
    return 6.0 * matrices * tokens + attention


def timed(step: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Median seconds of a step after warm-up, and peak bytes."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(WARM_UP + REPEATS):
        if cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    if PROFILE.name:
        PROFILE.show(step)
    return statistics.median(seconds[WARM_UP:]), torch.cuda.max_memory_allocated() if cuda else 0


class Profile:
    """Prints what the kernels of one step take, the most expensive first."""

    name = ""

    def show(self, step: Callable[[], object]) -> None:
        """Of one more step."""
        kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=kinds) as profile:
            step()
            torch.cuda.synchronize()
        rows: dict[str, list[float]] = {}
        kernels = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA and "ProfilerStep" not in e.name]
        kernels.sort(key=lambda event: event.time_range.start)
        for event in kernels:
            row = rows.setdefault(event.name, [0.0, 0])
            row[0] += event.self_device_time_total / 1000
            row[1] += 1
        idle, until = [], kernels[0].time_range.start
        for before, event in itertools.pairwise(kernels):
            until = max(until, before.time_range.end)
            idle.append(
                (event.time_range.start - until, event.time_range.start - kernels[0].time_range.start, before.name, event.name)
            )
        waited = sum(max(gap, 0.0) for gap, *_ in idle) / 1000
        print(f"\n{self.name}: {waited:.1f} ms without a kernel; the longest:")
        for gap, at, before, after in sorted(idle, reverse=True)[:12]:
            print(f"{gap / 1000:9.2f} ms at {at / 1000:7.1f}  {before[:60]} | {after[:60]}")
        print(f"\n{self.name}: {sum(ms for ms, _ in rows.values()):.1f} ms of kernels")
        for kernel, (ms, count) in sorted(rows.items(), key=lambda item: -item[1][0])[:45]:
            print(f"{ms:9.2f} ms {count:6.0f}  {kernel[:150]}")


PROFILE = Profile()


def plain_loop(path: Path, tokens: int, device: torch.device) -> tuple[float, int]:
    """Cross-entropy on one row of random tokens."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=half(device), attn_implementation="sdpa").to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device.type == "cuda")
    row = torch.randint(100, 250, (1, tokens), device=device)

    def step() -> None:
        hidden = model.model(input_ids=row, use_cache=False).last_hidden_state[0, :-1]
        total = torch.zeros((), device=device)
        for part, labels in zip(hidden.split(4096), row[0, 1:].split(4096), strict=True):
            total = total + F.cross_entropy(model.lm_head(part).float(), labels, reduction="sum")
        (total / tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return timed(step, device)


@dataclass(frozen=True)
class Step:
    """GRPO's step on ``rows`` packed rows of equal length, by one of the backends; called, it gives :func:`timed`'s result."""

    path: Path
    tokens: int
    rows: int
    device: torch.device
    backend: str
    recompute: bool
    compiled: bool

    def __call__(self) -> tuple[float, int]:
        device = self.device
        with tempfile.NamedTemporaryFile() as meeting:
            group = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(group, init_method=f"file://{meeting.name}-group", rank=0, world_size=1)
            try:
                training = TrainingOptions(use_dynamic_batch_size=True, max_tokens_per_gpu=self.tokens, lr=1e-6)
                config = Config.of(training, self._options(), ClusterOptions(device=device.type))
                backend = FsdpBackend(config) if self.backend == "fsdp" else _megatron(config)
                backend.setup(ModelSpec(checkpoint=self.path, train_steps=1000))
                trainer = Trainer(config, backend, PolicyLoss(config), Grpo(config))
                batch = random_batch(self.tokens, self.rows)
                try:
                    return timed(lambda: trainer.train(batch), device)
                finally:
                    backend.close()
            finally:
                dist.destroy_process_group()

    def _options(self) -> object:
        if self.backend == "fsdp":
            return FsdpOptions(gradient_checkpointing=self.recompute, compile=self.compiled)
        from miles_megatron.options import MegatronOptions

        whole = "full" if self.recompute else None
        return MegatronOptions(recompute_granularity=whole, compile=self.compiled, check_log_probs=False)


def _megatron(config: Config) -> Any:
    from miles_megatron.backend import MegatronBackend

    return MegatronBackend(config)


def random_batch(tokens: int, rows: int) -> RankBatch:
    """Rows with a prompt of 16 tokens, every other one rewarded."""
    random = np.random.default_rng(0)
    length = tokens // rows
    made = tuple(
        TrainRow(
            index=i,
            group=0,
            tokens=random.integers(100, 250, length).astype(np.int32),
            response_length=length - 16,
            mask=np.ones(length - 16, np.float32),
            reward=1.0 if i % 2 == 0 else -1.0,
            raw_reward=float(i % 2 == 0),
        )
        for i in range(rows)
    )
    return RankBatch(0, made, (tuple(range(rows)),), (count_step(made),))


if __name__ == "__main__":
    main()
