"""Start-up times of the command line: the median of several runs of each command in a fresh process."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import record

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "miles --version": [sys.executable, "-m", "miles_core.cli.main", "--version"],
    "miles --help": [sys.executable, "-m", "miles_core.cli.main", "--help"],
    "miles run --help": [sys.executable, "-m", "miles_core.cli.main", "run", "--help", "--backend", "fsdp"],
    "miles run --help-all": [sys.executable, "-m", "miles_core.cli.main", "run", "--help-all"],
    "miles plugins list": [sys.executable, "-m", "miles_core.cli.main", "plugins", "list"],
    "miles explain M105": [sys.executable, "-m", "miles_core.cli.main", "explain", "M105"],
}
REPEATS = 9


def main() -> None:
    """Time every command, interleaved so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(REPEATS):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
    figures = {f"{name} (ms)": round(1000 * statistics.median(times)) for name, times in seconds.items()}
    record.save("cli_startup", figures, f"median of {REPEATS} fresh processes each, first-party plugins installed")


if __name__ == "__main__":
    main()
