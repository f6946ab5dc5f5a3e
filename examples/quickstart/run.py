"""The quickstart: write a tiny model and a task, fine-tune it a little, then let GRPO teach it the rest.

Everything that trains goes through ``miles run``, as in a real project; this script only lines the commands up and shows what
came out. Run it with ``nox -s quickstart`` or ``python examples/quickstart/run.py``; arguments that it does not know go to GRPO.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from miles_core.loggers.curves import png_plot, terminal_plot

HERE = Path(os.path.relpath(Path(__file__).parent))


def main() -> int:
    """Run every stage; returns the exit code of the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="where everything is written")
    parser.add_argument("--seed", type=int, default=0, help="seed of the model, the data and the training")
    parser.add_argument("--rollouts", type=int, help="GRPO rollouts, when not those of grpo.yaml")
    parser.add_argument("--size", default="xs", help="size of the model, see make_assets.py")
    parser.add_argument("--head-dim", type=int, default=32, help="dimensions of a head of attention; some engines want 64")
    args, more = parser.parse_known_args()
    started = time.perf_counter()
    out = args.out / time.strftime("%Y%m%d-%H%M%S")

    heading("1/3  a tiny Qwen3-style model with random weights, and the task: sort five digits")
    shape = ["--size", args.size, "--head-dim", str(args.head_dim)] if args.size != "xs" or args.head_dim != 32 else []
    if code := call(sys.executable, str(HERE / "make_assets.py"), str(out), "--seed", str(args.seed), *shape):
        return code

    heading("2/3  a short supervised fine-tuning: it learns the format, and a little of the task")
    seeds = ["--seed", str(1234 + args.seed), "--rollout-seed", str(42 + args.seed)]
    sft = [
        *miles("--config", str(HERE / "sft.yaml"), "--hf-checkpoint", str(out / "model"), "--prompt-data", str(out / "sft.jsonl")),
        *("--run-dir", str(out / "sft"), "--save-hf", str(out / "sft-model"), *seeds),
    ]
    if code := call(*sft):
        return code

    heading("3/3  GRPO: it samples answers, is told which are right, and learns from that alone")
    learning = time.perf_counter()
    grpo = [
        *miles("--config", str(HERE / "grpo.yaml"), "--hf-checkpoint", str(out / "sft-model")),
        *("--prompt-data", str(out / "train.jsonl")),
        *("--eval-config", str(out / "eval.yaml"), "--run-dir", str(out / "grpo"), "--save", str(out / "grpo" / "state")),
        *("--save-hf", str(out / "grpo-model"), *seeds, *more),
    ]
    if args.rollouts:
        grpo += ["--num-rollout", str(args.rollouts)]
    if code := call(*grpo):
        return code
    report(out, time.perf_counter() - learning, time.perf_counter() - started)
    return 0


def miles(*arguments: str) -> list[str]:
    """The command line of ``miles run``."""
    return [sys.executable, "-m", "miles_core.cli.main", "run", *arguments]


def call(*command: str) -> int:
    """Show a command and run it."""
    shown = ["miles" if part == "-m" else part for part in command if part not in (sys.executable, "miles_core.cli.main")]
    print("$", " ".join(shown if "miles" in shown else ["python", *shown]), flush=True)
    return subprocess.run(command, check=False).returncode


def heading(text: str) -> None:
    """Separate the stages."""
    print(f"\n== {text}", flush=True)


def report(out: Path, grpo_seconds: float, seconds: float) -> None:
    """Held-out accuracy before and after, the reward curve, and where everything is."""
    series: dict[str, list[tuple[float, float]]] = {}
    for line in (out / "grpo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for name in ("rollout/raw_reward", "eval/heldout_sampled", "eval/heldout_greedy"):
            if row.get(name) is not None:
                series.setdefault(name, []).append((row["step"], row[name]))
    curves = {
        "reward (training prompts)": series["rollout/raw_reward"],
        "held-out, sampled": series["eval/heldout_sampled"],
        "held-out, greedy": series["eval/heldout_greedy"],
    }
    title = "Sorting five digits: GRPO on a tiny model"
    print("\n" + terminal_plot(curves, title))
    png_plot(out / "reward.png", curves, title)
    print("\nheld-out accuracy (256 prompts that were never trained on)")
    print(f"{'':12}{'before GRPO':>14}{'after GRPO':>14}")
    for name in ("sampled", "greedy"):
        points = series[f"eval/heldout_{name}"]
        print(f"{name:12}{points[0][1]:>14.3f}{points[-1][1]:>14.3f}")
    print(f"\nGRPO took {grpo_seconds:.0f} s, everything {seconds:.0f} s. Written to {out}:")
    for path, what in (
        ("reward.png", "the curves above"),
        ("grpo-model", "the trained model, which transformers loads"),
        ("grpo/metrics.jsonl", "every metric of every step"),
        ("grpo/samples", "prompts, responses and rewards of every rollout"),
        ("grpo/config.yaml", "every option with which it ran"),
        ("grpo/state", "the run state, to go on from with --load"),
    ):
        print(f"  {path:20} {what}")


if __name__ == "__main__":
    sys.exit(main())
