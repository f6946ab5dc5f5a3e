"""The quickstart's GRPO by ``--backend fsdp`` and by ``--backend megatron``, from the same fine-tuned model and seeds.

    python benchmarks/megatron_learning.py
    python benchmarks/megatron_learning.py --actor-num-gpus-per-node 2 --tensor-model-parallel-size 2 --sequence-parallel

Everything runs through ``miles run``; arguments that this script does not know go to the megatron run. Where there is no GPU,
megatron-core runs on the CPU by what the tests change about PyTorch for it (``tests/megatron_on_cpu``). Writes both curves of
held-out accuracy to ``benchmarks/results``, as text and as a picture.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import record

from miles_core.loggers.curves import png_plot, terminal_plot

ROOT = Path(os.path.relpath(Path(__file__).parents[1]))
QUICKSTART = ROOT / "examples" / "quickstart"
ON_CPU = ROOT / "tests" / "megatron_on_cpu"
BACKENDS = ("fsdp", "megatron")
OF_FSDP = {"backend": "fsdp", "attn-implementation": "sdpa"}
"""What the quickstart's settings say that is not said to megatron."""
SHOWN = ("rollout/raw_reward", "train/loss", "train/grad_norm", "train/train_rollout_logprob_abs_diff")
FIRST = 3
TIMEOUT = 1200

Curves = dict[str, list[tuple[float, float]]]


def main() -> None:
    """Prepare the model, run both backends from it, save curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/megatron-learning"), help="folder of models and runs")
    parser.add_argument("--name", default="megatron_quickstart", help="of the result files")
    parser.add_argument("--rollouts", type=int, help="when not those of the quickstart")
    parser.add_argument("--seed", type=int, default=0)
    args, more = parser.parse_known_args()
    work = args.work / time.strftime("%Y%m%d-%H%M%S")
    seeds = ["--seed", str(1234 + args.seed), "--rollout-seed", str(42 + args.seed)]
    call(work / "assets.log", sys.executable, str(QUICKSTART / "make_assets.py"), str(work), "--seed", str(args.seed))
    sft = ["--config", str(QUICKSTART / "sft.yaml"), "--hf-checkpoint", str(work / "model")]
    data = ["--prompt-data", str(work / "sft.jsonl"), "--run-dir", str(work / "sft"), "--save-hf", str(work / "sft-model")]
    call(work / "sft.log", *miles(*sft, *data, *seeds))
    commands, found = [], {}
    for backend in BACKENDS:
        config = work / f"{backend}.yaml"
        config.write_text(settings(backend), encoding="utf-8")
        command = [
            *miles("--config", str(config), "--hf-checkpoint", str(work / "sft-model"), "--prompt-data", str(work / "train.jsonl")),
            *("--eval-config", str(work / "eval.yaml"), "--run-dir", str(work / backend)),
            *("--save", str(work / backend / "state"), *seeds),
            *(["--num-rollout", str(args.rollouts)] if args.rollouts else []),
            *(more if backend == "megatron" else []),
        ]
        call(work / f"{backend}.log", *command, path=ON_CPU if backend == "megatron" and not has_gpu() else None)
        commands.append(" ".join(["miles", *command[3:]]))
        found[backend] = curves(work / backend)
    save(args.name, commands, found)


def miles(*arguments: str) -> list[str]:
    """The command line of ``miles run``."""
    return [sys.executable, "-m", "miles_core.cli.main", "run", *arguments]


def call(log: Path, *command: str, path: Path | None = None) -> None:
    """Run a command, its output in a file; ``path`` goes before its search path. Raises when it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path.resolve()), environment.get("PYTHONPATH")]))
    with log.open("w", encoding="utf-8") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, timeout=TIMEOUT, check=False, env=environment)
    print(f"{log.stem:10} exit {done.returncode}  {time.perf_counter() - began:6.1f} s", flush=True)
    if done.returncode:
        raise SystemExit(log.read_text(encoding="utf-8")[-3000:])


def settings(backend: str) -> str:
    """The quickstart's settings for a backend."""
    lines = []
    for line in (QUICKSTART / "grpo.yaml").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(": ")
        if name in OF_FSDP:
            if value != OF_FSDP[name]:
                raise SystemExit(f"{QUICKSTART / 'grpo.yaml'}: {name} is {value}, not {OF_FSDP[name]}")
            continue
        lines.append(line)
    own = OF_FSDP if backend == "fsdp" else {"backend": backend}
    return "\n".join([*(f"{name}: {value}" for name, value in own.items()), *lines]) + "\n"


def has_gpu() -> bool:
    """Whether PyTorch finds one, asked in a process of its own."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def curves(run: Path) -> Curves:
    """Metrics of a run by rollout."""
    found: Curves = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for name in ("eval/heldout_greedy", "eval/heldout_sampled", *SHOWN):
            if row.get(name) is not None:
                found.setdefault(name, []).append((row["step"], row[name]))
    return found


def save(name: str, commands: list[str], found: dict[str, Curves]) -> None:
    """Write the result as text and as a picture."""
    versions = {**record.versions(), "megatron-core": importlib.metadata.version("megatron-core")}
    heldout = {
        f"{backend}, {kind}": found[backend][f"eval/heldout_{kind}"] for kind in ("greedy", "sampled") for backend in BACKENDS
    }
    title = "Sorting five digits: GRPO by two backends"
    lines = [
        f"# {' '.join(['python', *(os.path.relpath(a) if os.path.exists(a) else a for a in sys.argv)])}, {datetime.date.today()}",
        f"# {record.hardware()}; " + ", ".join(f"{library} {version}" for library, version in versions.items()),
        "# The settings of examples/quickstart/grpo.yaml for both, but for their own options, from the same model and seeds.",
        "",
        *(f"$ {command}" for command in commands),
        "",
        "held-out accuracy (256 prompts that were never trained on)",
        f"{'':22}{'before GRPO':>14}{'after GRPO':>14}",
        *(f"{curve:22}{points[0][1]:>14.3f}{points[-1][1]:>14.3f}" for curve, points in heldout.items()),
        "",
        "after so many rollouts" + "".join(f"{step:>8.0f}" for step, _ in heldout["fsdp, greedy"]),
        *(f"{curve:22}" + "".join(f"{accuracy:>8.3f}" for _, accuracy in points) for curve, points in heldout.items()),
        "",
        f"the first {FIRST} rollouts: samples are the same as long as weights are, down to rounding",
        f"{'':38}" + "".join(f"{backend:>14} {step}" for step in range(FIRST) for backend in BACKENDS),
        *(
            f"{metric:38}" + "".join(f"{found[backend][metric][step][1]:>16.4g}" for step in range(FIRST) for backend in BACKENDS)
            for metric in SHOWN
        ),
        "",
        terminal_plot(heldout, title, colour=False),
    ]
    text = "\n".join(lines) + "\n"
    (record.RESULTS / f"{name}.txt").write_text(text, encoding="utf-8")
    png_plot(record.RESULTS / f"{name}.png", heldout, title, y_label="held-out accuracy")
    print(text)


if __name__ == "__main__":
    main()
