"""Engines of a run killed, or stopped, at random moments while they generate: what the run makes of it.

    python benchmarks/engine_kills.py --kills 100 --loop sync

The run starts them again, with the weights that are served, and has others answer their requests. Every rollout must have all its
samples, none twice, each of one version of the weights where the loop says so, and of the trainer's log-probs. The exit code is 1
when that is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record
from kill_resume import SECONDS, _cluster, _lines, _task, _wait

PROMPTS, SAMPLES = 8, 8
LOOPS = {
    "sync": ["--rollout-num-gpus", "2"],
    "colocated": ["--colocate", "--actor-num-gpus-per-node", "2"],
    "one-step": ["--rollout-num-gpus", "2", "--loop", "one-step", "--keep-old-actor"],
    "async": ["--rollout-num-gpus", "2", "--loop", "async", "--use-rollout-logprobs"],
}
ROUNDING = 1e-4
BACK = re.compile(r"engine-\d+ is back with .* after (\d+) s")


def main() -> int:
    """Kill, count, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=600, help="kill no more after this long, once there was a kill")
    parser.add_argument("--stops", type=float, default=0.1, help="share of engines that are stopped (they hang) and not killed")
    parser.add_argument("--pause", type=float, default=8.0, help="most seconds between two kills")
    parser.add_argument("--loop", default="sync", choices=sorted(LOOPS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", type=Path, help="folder of examples/quickstart/make_assets.py; made when not given")
    parser.add_argument("--ray-address", help="a cluster to join; started when not given")
    parser.add_argument("--out", type=Path, help="folder for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = args.task or _task(folder / "task")
        run = (args.out or folder) / "run"
        driver = start(run, task, args.ray_address or _cluster(), LOOPS[args.loop])
        try:
            killed = kill(driver, run, args.kills, args.minutes * 60, args.stops, args.pause, random.Random(args.seed))
        finally:
            driver.terminate()
            code = driver.wait(SECONDS)
        said = (run / "output.txt").read_text(encoding="utf-8")
        if code != 130:
            sys.exit(f"the run ended with {code} by itself:\n{said[-4000:]}")
        figures = {**killed, **look(run, args.loop)}
        times = sorted(int(found) for found in BACK.findall(said))
        figures["engines that came back"] = len(times)
        figures["median seconds until one was back"] = times[len(times) // 2] if times else None
    notes = f"{PROMPTS} prompts x {SAMPLES} samples a rollout, responses of up to 400 tokens; heartbeats find a stopped engine"
    record.save(f"engine_kills_{args.loop}", figures, notes, args.out)
    return 0 if all(value for value in figures.values() if isinstance(value, bool)) else 1


def start(run: Path, task: Path, address: str, loop: list[str]) -> subprocess.Popen[bytes]:
    """A run that goes on until it is interrupted."""
    options = {
        "backend": "fsdp",
        "engine": "transformers",
        "algo": "grpo",
        "custom-rm-path": Path(__file__).parent.parent / "tests" / "graded_reward.py:digits",
        "hf-checkpoint": task / "model",
        "prompt-data": task / "train.jsonl",
        "input-key": "question",
        "label-key": "answer",
        "rollout-batch-size": PROMPTS,
        "n-samples-per-prompt": SAMPLES,
        "rollout-max-response-len": 400,
        "num-rollout": 100_000,
        "num-epoch": 100_000,
        "lr": "1e-4",
        "max-tokens-per-gpu": 16_384,
        "attn-implementation": "sdpa",
        "rollout-health-check-interval": 2,
        "rollout-health-check-timeout": 10,
        "actor-num-gpus-per-node": 1,
        "ray-address": address,
        "run-dir": run,
    }
    flags = ["--apply-chat-template", "--use-dynamic-batch-size", "--use-fault-tolerance", *loop]
    words = [word for name, value in options.items() for word in (f"--{name}", str(value)) if f"--{name}" not in loop]
    run.mkdir(parents=True)
    with (run / "output.txt").open("ab") as output:
        command = [sys.executable, "-m", "miles_core.cli.main", "run", *words, *flags]
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def kill(
    driver: subprocess.Popen[bytes], run: Path, kills: int, seconds: float, stops: float, pause: float, drawn: random.Random
) -> dict[str, Any]:
    """Kill an engine that runs every now and then, whatever the others do; then let the run come to rest."""
    started = time.monotonic()
    counts = {"killed": 0, "stopped": 0}
    _wait(lambda: _lines(run / "metrics.jsonl") > 0 or driver.poll() is not None, "the first rollout")
    seen: set[int] = set()
    while sum(counts.values()) < kills and (time.monotonic() - started < seconds or not sum(counts.values())):
        time.sleep(drawn.uniform(0.1, pause))
        if driver.poll() is not None:
            return counts
        pids = json.loads((run / "processes.json").read_text(encoding="utf-8"))
        engines = [pid for name, pid in pids.items() if name.startswith("engine-") and pid not in seen and pid]
        if not engines:
            continue
        victim = drawn.choice(engines)
        seen.add(victim)
        stopped = drawn.random() < stops
        try:
            os.kill(victim, signal.SIGSTOP if stopped else signal.SIGKILL)
        except ProcessLookupError:
            continue
        counts["stopped" if stopped else "killed"] += 1
    rows = _lines(run / "metrics.jsonl")
    # Three rows more have the end of a rollout among them whose publish waited for every engine.
    _wait(lambda: _lines(run / "metrics.jsonl") > rows + 3 or driver.poll() is not None, "the run to go on")
    return {**counts, "seconds": round(time.monotonic() - started)}


def look(run: Path, loop: str) -> dict[str, Any]:
    """What the rollouts that were trained on are made of."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = [row["step"] for row in rows if "rollout/raw_reward" in row]
    files = [run / "samples" / f"rollout_{number}.jsonl" for number in trained]
    samples = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    versions = [[version for version, tokens in sample["weight_versions"] if tokens] for sample in samples]
    found: dict[str, Any] = {
        "rollouts": len(trained),
        "samples": len(samples),
        "rollouts in order": trained == list(range(len(trained))),
        "every sample there": len(samples) == len(trained) * PROMPTS * SAMPLES,
        "none twice": len({sample["index"] for sample in samples}) == len(samples),
        "versions in order": all(each == sorted(each) for each in versions),
    }
    if loop != "async":
        # Engines serve what was published last: rollout k, or the one that is ahead of it.
        behind = 1 if loop == "one-step" else 0
        wanted = {number: max(number + 1 - behind, 1) for number in trained}
        at = [wanted[number] for number in trained for _ in range(PROMPTS * SAMPLES)]
        found["every token of the version that was served"] = all(set(v) == {w} for v, w in zip(versions, at, strict=False))
        difference = [row["train/train_rollout_logprob_abs_diff"] for row in rows if "train/train_rollout_logprob_abs_diff" in row]
        found["largest difference of log-probs"] = max(difference)
        found["log-probs are the trainer's"] = max(difference) < ROUNDING
    return found


if __name__ == "__main__":
    sys.exit(main())
