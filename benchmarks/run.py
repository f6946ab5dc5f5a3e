"""All CPU benchmarks, one after the other, each in a fresh process; results go to ``benchmarks/results``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = (
    ["cli_startup.py"],
    ["rewards.py"],
    ["generation.py", "--size", "0.5m"],
    ["generation.py", "--size", "5m"],
    ["gpu_training.py", "--size", "0.5m", "--tokens", "2048"],
    ["gpu_training.py", "--size", "5m", "--tokens", "2048"],
    ["fsdp_step.py"],
    ["saving.py"],
    ["scale.py"],
    ["router.py"],
    ["true_on_policy.py", "--size", "0.5m"],
    ["true_on_policy.py", "--size", "5m"],
    # About 5 s a step.
    ["colocated_run.py", "--size", "0.5m", "--prompts", "64", "--samples", "8", "--response", "32", "--micro-tokens", "65536"],
)


def main() -> int:
    """Run them; returns the exit code of the first that fails."""
    for script in SCRIPTS:
        print("$ python", *script, flush=True)
        if code := subprocess.run([sys.executable, *script], cwd=HERE, check=False).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
