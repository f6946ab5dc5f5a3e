"""Kill -9 of the processes of a run at random moments, resumed each time, against the same run left alone.

    python benchmarks/kill_resume.py --kills 50

Driver, training rank, rollout manager or engine are killed: while the run starts, trains, saves or publishes. The curve and the
weights at the end must be those of the run that nobody killed, bit for bit. With another ``--loop``, none of which repeats so,
every rollout must be there once, no sample trained on twice, and none too old. The exit code is 1 when that is not so.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record

ROOT = Path(__file__).parent.parent
VICTIMS = ("driver", "trainer-0", "rollout-0", "engine-0")
TIMES = ("perf/", "_time")
LOOPS = {
    "sync": ["--colocate"],
    "one-step": ["--rollout-num-gpus", "1", "--loop", "one-step", "--keep-old-actor"],
    "async": ["--rollout-num-gpus", "1", "--loop", "async", "--use-rollout-logprobs"],
}
SAMPLES = 16
"""Of a rollout."""
Check = Callable[[Path, Path], dict[str, bool]]
STARTING = 0.25
"""Share of kills while the run still starts."""
SECONDS = 300.0


def main() -> int:
    """Kill, resume, compare, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=600, help="kill no more after this long, once there was a kill")
    parser.add_argument("--rollouts", type=int, default=24, help="of a run; when it ends before all kills, the next one begins")
    parser.add_argument("--loop", default="sync", choices=("sync", "one-step", "async"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", type=Path, help="folder of examples/quickstart/make_assets.py; made when not given")
    parser.add_argument("--ray-address", help="a cluster to join; started when not given")
    parser.add_argument("--out", type=Path, help="folder for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = args.task or _task(folder / "task")
        address = args.ray_address or _cluster()
        arguments = _arguments(task, args.rollouts, address) + LOOPS[args.loop]
        check = equal if args.loop == "sync" else counted
        figures = Trial(folder, arguments, random.Random(args.seed), check).run(args.kills, args.minutes * 60)
    notes = {
        "sync": "bit for bit, without timings: all metrics of every rollout and optimizer step; SHA-256 of the exported weights",
        "one-step": "samples counted by id; staleness in versions of the weights",
        "async": "samples counted by id; staleness in versions of the weights",
    }
    record.save("kill_resume" if args.loop == "sync" else f"kill_resume_{args.loop}", figures, notes[args.loop], args.out)
    return 0 if all(value for value in figures.values() if isinstance(value, bool)) else 1


class Trial:
    """One run left alone, and others that are killed."""

    def __init__(self, folder: Path, arguments: list[str], drawn: random.Random, check: Check) -> None:
        self.check = check
        self.folder = folder
        self.arguments = arguments
        self.drawn = drawn
        self.killed: collections.Counter[str] = collections.Counter()
        self.moments: collections.Counter[str] = collections.Counter()

    def run(self, kills: int, seconds: float) -> dict[str, Any]:
        """Kill ``kills`` times in all, and once at least but no more after ``seconds``."""
        started = time.monotonic()
        self.more = lambda: self.killed.total() < kills and (time.monotonic() - started < seconds or not self.killed.total())
        whole = self.folder / "whole"
        self._until_end(self._start(whole))
        found: dict[str, bool] = {}
        runs = 0
        while self.more():
            run = self.folder / f"killed-{runs}"
            self._survive(run)
            runs += 1
            found = {name: good and found.get(name, True) for name, good in self.check(run, whole).items()}
            print(f"run {runs}: {self.killed.total()} kills, {found}", flush=True)
        return {
            "kills": self.killed.total(),
            "killed": dict(sorted(self.killed.items())),
            "moments": dict(sorted(self.moments.items())),
            "runs that went to their end": runs,
            "rollouts of each": len({step for step, names in curve(whole) if "rollout/raw_reward" in dict(names)}),
            **found,
            "seconds": round(time.monotonic() - started),
        }

    def _survive(self, run: Path) -> None:
        """A run to its end, killed again and again on the way."""
        while True:
            driver = self._start(run)
            if not self.more() or not self._kill(driver, run):
                self._until_end(driver)
                return

    def _kill(self, driver: subprocess.Popen[bytes], run: Path) -> bool:
        """Kill one process at a random moment; False when the run came to its end first."""
        pids = run / "processes.json"
        rows = _lines(run / "metrics.jsonl")
        _wait(lambda: pids.exists() or driver.poll() is not None, "the processes")
        if self.drawn.random() < STARTING:
            moment, seconds = "starting", self.drawn.uniform(0, 8)
        else:
            moment, seconds = "running", self.drawn.uniform(0, 3)
            _wait(lambda: _lines(run / "metrics.jsonl") > rows or driver.poll() is not None, "a row of metrics")
        try:
            driver.wait(seconds)
            self._check_end(driver)
            return False
        except subprocess.TimeoutExpired:
            victim = self.drawn.choice(VICTIMS)
        try:
            os.kill(json.loads(pids.read_text(encoding="utf-8"))[victim], signal.SIGKILL)
        except ProcessLookupError:
            self._until_end(driver)
            return False
        driver.wait(SECONDS)
        self.killed[victim] += 1
        self.moments[moment] += 1
        return True

    def _start(self, run: Path) -> subprocess.Popen[bytes]:
        (run / "processes.json").unlink(missing_ok=True)
        state = run / "state"
        load = ["--load", str(state)] if (state / "latest").exists() else []
        places = ["--run-dir", str(run), "--save", str(state), "--save-hf", str(run / "hf")]
        command = [sys.executable, "-m", "miles_core.cli.main", "run", *self.arguments, *places, *load]
        run.mkdir(exist_ok=True)
        with (run / "output.txt").open("ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    def _until_end(self, driver: subprocess.Popen[bytes]) -> None:
        driver.wait(20 * SECONDS)
        self._check_end(driver)

    def _check_end(self, driver: subprocess.Popen[bytes]) -> None:
        if driver.returncode:
            newest = max(self.folder.glob("*/output.txt"), key=lambda path: path.stat().st_mtime)
            sys.exit(f"the run ended with {driver.returncode} by itself:\n{newest.read_text(encoding='utf-8')[-4000:]}")


def equal(run: Path, whole: Path) -> dict[str, bool]:
    """Whether a run is the one left alone."""
    return {"curves equal": curve(run) == curve(whole), "weights equal": digest(run / "hf") == digest(whole / "hf")}


def counted(run: Path, whole: Path) -> dict[str, bool]:
    """Whether a run has every rollout of the one left alone once, with samples of its own that are not too old."""

    def rollouts(folder: Path) -> list[int]:
        return [step for step, row in curve(folder) if "rollout/raw_reward" in dict(row)]

    files = [run / "samples" / f"rollout_{rollout_id}.jsonl" for rollout_id in rollouts(whole)]
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    trained = [row["index"] for row in rows if not row.get("dropped")]
    oldest = max(dict(row).get("rollout/staleness_max", 0.0) for _, row in curve(run))
    return {
        "every rollout once": rollouts(run) == rollouts(whole),
        "every sample once": len(trained) == len(set(trained)) == len(files) * SAMPLES,
        "staleness within the bound": oldest <= 1,
    }


def curve(run: Path) -> list[tuple[int, list[tuple[str, Any]]]]:
    """Every row of a run's metrics in order, without timings."""
    rows = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        kept = [(n, v) for n, v in sorted(row.items()) if n not in ("time", "step") and not any(t in n for t in TIMES)]
        rows.append((row["step"], kept))
    return sorted(rows, key=lambda row: (row[0], [name for name, _ in row[1]]))


def digest(folder: Path) -> str:
    """SHA-256 of exported weights."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _wait(condition: Any, what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"waited {SECONDS:.0f} s for {what}")
        time.sleep(0.05)


def _task(folder: Path) -> Path:
    subprocess.run([sys.executable, str(ROOT / "examples/quickstart/make_assets.py"), str(folder), "--seed", "0"], check=True)
    return folder


def _cluster() -> str:
    import ray

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    size = 256 * 1024**2
    context = ray.init(num_cpus=4, num_gpus=0, include_dashboard=False, object_store_memory=size, log_to_driver=False)
    address: str = context.address_info["gcs_address"]
    return address


def _arguments(task: Path, rollouts: int, address: str) -> list[str]:
    options = {
        "--backend": "fsdp",
        "--engine": "transformers",
        "--algo": "grpo",
        "--lr": "1e-3",
        "--lr-decay-style": "cosine",
        "--custom-rm-path": f"{ROOT / 'tests' / 'graded_reward.py'}:digits",
        "--hf-checkpoint": str(task / "model"),
        "--prompt-data": str(task / "train.jsonl"),
        "--input-key": "question",
        "--label-key": "answer",
        "--eval-prompt-data": f"heldout {task / 'heldout.jsonl'}@[0:8]",
        "--eval-interval": "3",
        "--rollout-batch-size": "4",
        "--n-samples-per-prompt": "4",
        "--rollout-max-response-len": "7",
        "--max-tokens-per-gpu": "4096",
        "--attn-implementation": "sdpa",
        "--actor-num-gpus-per-node": "1",
        "--dynamic-sampling-filter-path": "nonzero_std",
        "--num-steps-per-rollout": "2",
        "--num-rollout": str(rollouts),
        "--save-interval": "1",
        "--save-total-limit": "2",
        "--ray-address": address,
    }
    words = [
        part for flag, value in options.items() for part in [flag, *(value.split() if flag == "--eval-prompt-data" else [value])]
    ]
    return [*words, "--apply-chat-template", "--rollout-shuffle", "--use-dynamic-batch-size"]


if __name__ == "__main__":
    sys.exit(main())
