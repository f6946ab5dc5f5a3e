"""Held-out accuracy of every recipe on the quickstart's task, with two seeds each.

    python benchmarks/learning.py                                 # all recipes, one run after the other
    python benchmarks/learning.py --recipes grpo ppo --jobs 4     # some, four at a time, each on its share of the CPUs

A recipe starts from a briefly fine-tuned model that answers about half of the prompts right, and keeps its own defaults but for
what ``SETTINGS`` says. ``sft`` starts from random weights. The teacher of ``opd`` is the model that ``grpo`` trained. Writes one
result file for each recipe, and one plot, which docs/algorithms shows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import Any

import record

from miles_core.loggers.curves import png_plot
from miles_core.runtime.processors import usable_cpus

HERE = Path(__file__).parent
QUICKSTART = HERE.parent / "examples" / "quickstart"
IMAGES = HERE.parent / "docs" / "images" / "learning"
RECIPES = (
    *("grpo", "dr_grpo", "dapo", "gspo", "ppo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "rloo", "cispo", "sapo"),
    *("opd", "sft"),
)
SETTINGS: dict[str, list[str]] = {
    "dapo": ["--num-rollout", "90"],
    "gspo": ["--num-steps-per-rollout", "2"],
    "ppo": ["--critic-lr", "0.002", "--num-critic-only-steps", "5"],
    "cispo": ["--num-steps-per-rollout", "2"],
    "sapo": ["--num-steps-per-rollout", "2"],
}
"""Options besides those of learning.yaml. Losses that differ only off policy get two optimizer steps per rollout."""
TIMEOUT = 1200
APART_SECONDS = 3


def main() -> None:
    """Prepare a model for each seed, run every recipe from it, save curves and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/learning"), help="folder of models and runs; finished ones are kept"
    )
    args = parser.parse_args()
    pool = Pool(args.jobs)
    pool.map(lambda seed: prepare(args.work / f"seed-{seed}", seed, pool), args.seeds)
    # The teacher of opd must be there first; whatever is not a pupil can run at once.
    pupils = [recipe for recipe in args.recipes if recipe == "opd"]
    others = [recipe for recipe in args.recipes if recipe != "opd"]
    for group in (list(dict.fromkeys([*(["grpo"] if pupils else []), *others])), pupils):
        pool.map(lambda job: learn(args.work / f"seed-{job[1]}", *job, pool), [(r, s) for r in group for s in args.seeds])
    for recipe in args.recipes:
        save(recipe, {seed: curves(args.work / f"seed-{seed}" / recipe) for seed in args.seeds})


class Pool:
    """Runs commands on disjoint shares of the CPUs."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._starting = Lock()
        cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        share = max(1, len(cpus) // jobs)
        self._shares: Queue[list[int]] = Queue()
        for job in range(jobs):
            self._shares.put(cpus[job * share : (job + 1) * share] or cpus)

    def map(self, work: Any, items: list[Any]) -> None:
        """Call ``work`` on every item, as many at a time as there are shares."""
        with ThreadPoolExecutor(self.jobs) as threads:
            list(threads.map(work, items))

    def call(self, log: Path, *command: str) -> None:
        """Run a command on the next free share; raises when it fails."""
        share = self._shares.get()
        with self._starting:
            # Ray clusters that start at the same moment take each other's ports.
            time.sleep(APART_SECONDS if self.jobs > 1 else 0)
        started = time.perf_counter()
        binding = [sys.executable, "-c", BIND, ",".join(map(str, share))] if share else []
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("w", encoding="utf-8") as out:
                done = subprocess.run([*binding, *command], stdout=out, stderr=subprocess.STDOUT, timeout=TIMEOUT, check=False)
        finally:
            self._shares.put(share)
        print(f"{log.stem:40} exit {done.returncode}  {time.perf_counter() - started:6.1f} s", flush=True)
        if done.returncode:
            raise SystemExit(log.read_text(encoding="utf-8")[-3000:])


BIND = "import os, sys; os.sched_setaffinity(0, map(int, sys.argv[1].split(','))); os.execvp(sys.argv[2], sys.argv[2:])"


def prepare(folder: Path, seed: int, pool: Pool) -> None:
    """The task, and the model that every recipe but ``sft`` starts from."""
    if (folder / "sft-model" / "config.json").exists():
        return
    pool.call(folder / f"assets-{seed}.log", sys.executable, str(QUICKSTART / "make_assets.py"), str(folder), "--seed", str(seed))
    pool.call(folder / f"start-{seed}.log", *supervised(folder, folder / "start", seed), "--save-hf", str(folder / "sft-model"))


def learn(folder: Path, recipe: str, seed: int, pool: Pool) -> None:
    """One run of one recipe."""
    run = folder / recipe
    if (run / "finished").exists():
        return
    if recipe == "sft":
        evaluate = ["--engine", "transformers", "--rm-type", "exact", "--colocate", "--rollout-max-response-len", "7"]
        command = supervised(folder, run, seed) + evaluate + ["--eval-config", str(folder / "eval.yaml"), "--eval-interval", "9"]
    else:
        command = [
            *miles("--config", str(HERE / "learning.yaml"), "--algo", recipe, "--hf-checkpoint", str(folder / "sft-model")),
            *("--prompt-data", str(folder / "train.jsonl"), "--eval-config", str(folder / "eval.yaml"), "--run-dir", str(run)),
            *("--save-hf", str(folder / f"{recipe}-model"), "--seed", str(1234 + seed), "--rollout-seed", str(42 + seed)),
            *SETTINGS.get(recipe, []),
        ]
        if recipe == "opd":
            command += ["--teacher-load", str(folder / "grpo-model")]
    pool.call(folder / f"{recipe}-{seed}.log", *command)
    (run / "finished").touch()


def supervised(folder: Path, run: Path, seed: int) -> list[str]:
    """The quickstart's fine-tuning."""
    return [
        *miles(
            "--config",
            str(QUICKSTART / "sft.yaml"),
            "--device",
            "cpu",
            "--hf-checkpoint",
            str(folder / "model"),
            "--run-dir",
            str(run),
        ),
        *("--prompt-data", str(folder / "sft.jsonl"), "--seed", str(1234 + seed), "--rollout-seed", str(42 + seed)),
    ]


def miles(*arguments: str) -> list[str]:
    """The command line of ``miles run``."""
    return [sys.executable, "-m", "miles_core.cli.main", "run", *arguments]


def curves(run: Path) -> dict[str, list[tuple[float, float]]]:
    """Held-out accuracies and the training reward by rollout."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for name in ("eval/heldout_greedy", "eval/heldout_sampled", "rollout/raw_reward"):
            if row.get(name) is not None:
                found.setdefault(name, []).append((row["step"], round(row[name], 4)))
    return found


def save(recipe: str, by_seed: dict[int, dict[str, list[tuple[float, float]]]]) -> None:
    """A result file and a plot."""
    figures: dict[str, Any] = {"recipe": recipe, "settings": SETTINGS.get(recipe, [])}
    plot: dict[str, list[tuple[float, float]]] = {}
    for seed, found in by_seed.items():
        greedy, sampled = found["eval/heldout_greedy"], found["eval/heldout_sampled"]
        figures[f"seed {seed}"] = {
            "greedy before": greedy[0][1],
            "greedy after": greedy[-1][1],
            "sampled before": sampled[0][1],
            "sampled after": sampled[-1][1],
            "curves": found,
        }
        plot[f"greedy, seed {seed}"] = greedy
        plot[f"sampled, seed {seed}"] = sampled
    record.save(f"learning_{recipe}", figures, f"{__doc__}\n{usable_cpus()} CPUs")
    IMAGES.mkdir(parents=True, exist_ok=True)
    png_plot(IMAGES / f"{recipe}.png", plot, f"{recipe}: held-out accuracy, sorting five digits", y_label="held-out accuracy")


if __name__ == "__main__":
    main()
