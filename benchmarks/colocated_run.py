"""A whole GRPO step of a random model through ``miles run``, trainer and engine on the same device.

    python benchmarks/colocated_run.py --size 0.6b --prompts 32 --samples 8 --response 512

``--backend megatron`` and ``--engine sglang`` take others; arguments that it does not know go to ``miles run``, as in
``--sglang-attention-backend triton``.
Reports, for the steps after the first: seconds of each phase, tokens per second of generation and of training, seconds and
bandwidth of publishing the weights, and the share of a step that is neither generation nor training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import checkpoint
import record
import torch

HERE = Path(__file__).parent
DIFFERENCE = "train/train_rollout_logprob_abs_diff"


def main() -> None:
    """Run, read the metrics, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.6b", choices=sorted(checkpoint.SIZES))
    parser.add_argument("--backend", default="fsdp")
    parser.add_argument("--engine", default="transformers")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--response", type=int, default=512)
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--micro-tokens", type=int, default=16384)
    parser.add_argument("--out", type=Path, help="folder for the results")
    args, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        half = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        checkpoint.write(folder / "model", args.size, dtype=half)
        prompts = [{"input": f"Question {i}: what follows?"} for i in range(args.prompts * args.rollouts)]
        (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)) + "\n", encoding="utf-8")
        command = [
            *(sys.executable, "-m", "miles_core.cli.main", "run", "--backend", args.backend),
            *("--engine", args.engine, "--algo", "grpo"),
            *("--hf-checkpoint", str(folder / "model"), "--prompt-data", str(folder / "prompts.jsonl"), "--apply-chat-template"),
            *("--custom-rm-path", f"{HERE / 'token_reward.py'}:even", "--rollout-batch-size", str(args.prompts)),
            *("--n-samples-per-prompt", str(args.samples), "--rollout-max-response-len", str(args.response)),
            *("--num-rollout", str(args.rollouts), "--actor-num-gpus-per-node", "1", "--colocate", "--lr", "1e-6"),
            *("--use-dynamic-batch-size", "--max-tokens-per-gpu", str(args.micro_tokens), "--log-probs-chunk-size", "4096"),
            *("--run-dir", str(folder / "run"), *more),
        ]
        subprocess.run(command, check=True)
        rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        weights = sum(f.stat().st_size for f in (folder / "model").glob("*.safetensors"))
    steps = [row for row in rows if "perf/step_time" in row][1:]
    differences = [row[DIFFERENCE] for row in rows if DIFFERENCE in row]

    def median(metric: str) -> float:
        return statistics.median(row[metric] for row in steps)

    samples = args.prompts * args.samples
    response_tokens = samples * median("rollout/response_len/mean")
    trained_tokens = samples * median("rollout/total_lengths")
    figures = {
        "size": args.size,
        "samples": samples,
        "mean response (tokens)": round(median("rollout/response_len/mean")),
        "step (s)": round(median("perf/step_time"), 3),
        "generation (s)": round(median("perf/rollout_phase_time"), 3),
        "generation (tokens/s)": round(response_tokens / median("perf/rollout_phase_time")),
        "training (s)": round(median("perf/train_time"), 3),
        "training (tokens/s)": round(trained_tokens / median("perf/train_time")),
        "publishing with waking and sleeping (s)": round(median("perf/update_weights_time"), 3),
        "publishing, the transfer alone (s)": round(median("perf/publish_transfer_time"), 3),
        "weights (GB)": round(weights / 1e9, 2),
        "neither generation nor training (%)": round(100 * median("perf/overhead_ratio"), 1),
        "log-prob difference, rollout and training": statistics.median(differences),
    }
    usual = (args.backend, args.engine) == ("fsdp", "transformers")
    name = f"colocated_run_{args.size}" + ("" if usual else f"_{args.backend}_{args.engine}")
    record.save(name, figures, "median of the steps after the first", args.out)


if __name__ == "__main__":
    main()
