"""The three loops side by side: the same task, model and devices, rollouts per minute.

    python benchmarks/loops.py --size 0.5m

Trainer and engine have a device each. Responses end when the model says so, so that lengths differ: what the synchronous loop waits
for, the others use.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import checkpoint
import record
import torch

HERE = Path(__file__).parent
LOOPS = {
    "sync": [],
    "one-step": ["--loop", "one-step", "--use-rollout-logprobs"],
    "async": ["--loop", "async", "--use-rollout-logprobs"],
}


def main() -> None:
    """Run each loop, read its metrics, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.5m", choices=sorted(checkpoint.SIZES))
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--response", type=int, default=128)
    parser.add_argument("--rollouts", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=3, help="rollouts at the start that do not count")
    parser.add_argument("--micro-tokens", type=int, default=16384)
    parser.add_argument("--out", type=Path, help="folder for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        half = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        checkpoint.write(folder / "model", args.size, dtype=half)
        prompts = [{"input": f"Question {i}: what follows?"} for i in range(args.prompts * args.rollouts)]
        (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)) + "\n", encoding="utf-8")
        figures = {loop: _measure(folder, loop, args) for loop in LOOPS}
    base = figures["sync"]["rollouts per minute"]
    for found in figures.values():
        found["times sync"] = round(found["rollouts per minute"] / base, 2)
    shape = f"{args.prompts} prompts x {args.samples} samples of at most {args.response} tokens, model {args.size}"
    record.save("loops", figures, f"{shape}; one device each for trainer and engine; after {args.warmup} rollouts", args.out)


def _measure(folder: Path, loop: str, args: argparse.Namespace) -> dict[str, float]:
    run = folder / loop
    command = [
        *(sys.executable, "-m", "miles_core.cli.main", "run", "--backend", "fsdp", "--engine", "transformers", "--algo", "grpo"),
        *("--hf-checkpoint", str(folder / "model"), "--prompt-data", str(folder / "prompts.jsonl"), "--apply-chat-template"),
        *("--custom-rm-path", f"{HERE / 'token_reward.py'}:even", "--rollout-batch-size", str(args.prompts)),
        *("--n-samples-per-prompt", str(args.samples), "--rollout-max-response-len", str(args.response)),
        *("--num-rollout", str(args.rollouts), "--actor-num-gpus-per-node", "1", "--rollout-num-gpus", "1", "--lr", "1e-6"),
        *("--use-dynamic-batch-size", "--max-tokens-per-gpu", str(args.micro_tokens), "--run-dir", str(run), *LOOPS[loop]),
    ]
    subprocess.run(command, check=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [row for row in rows if "perf/step_time" in row][args.warmup :]
    seconds = sum(row["perf/step_time"] for row in steps)

    def mean(metric: str) -> float:
        return sum(row[metric] for row in steps) / len(steps)

    return {
        "rollouts per minute": round(60 * len(steps) / seconds, 2),
        "step (s)": round(seconds / len(steps), 3),
        "waiting for generation (s)": round(mean("perf/rollout_phase_time"), 3),
        "training (s)": round(mean("perf/train_time"), 3),
        "publishing (s)": round(mean("perf/update_weights_time"), 3),
        "staleness (versions)": round(mean("rollout/staleness_mean"), 2),
        "staleness at most (versions)": max(row["rollout/staleness_max"] for row in steps),
        "response (tokens)": round(mean("rollout/response_len/mean"), 1),
    }


if __name__ == "__main__":
    main()
