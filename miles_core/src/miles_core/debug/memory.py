"""``--record-memory-history``: what a training rank allocates, on the device (torch) or on the host (memray)."""

from __future__ import annotations

import importlib
import logging
import time
from pathlib import Path
from typing import Any

from miles_core.config import DebugOptions
from miles_core.errors import RunError

MOST_EVENTS = 1_000_000
_log = logging.getLogger(__name__)


class MemoryRecord:
    """Of one training rank; recording begins at once.

    The file is ``memory_snapshot_time<seconds since 1970>_rank<rank>_<--memory-snapshot-path>``. PyTorch's own format is a pickle:
    open it with https://pytorch.org/memory_viz, which runs nothing of it; memray's is opened with ``memray flamegraph FILE``.

    Args:
        device: of the rank, a ``torch.device``.

    Raises:
        RunError: memray is asked for and not installed (M374).
    """

    def __init__(self, options: DebugOptions, rank: int, device: Any) -> None:
        self._folder = Path(options.memory_snapshot_dir).expanduser()
        self._ending = options.memory_snapshot_path
        self._rollouts = options.memory_snapshot_num_steps
        self._rank = rank
        self._done = 0
        self._tracker: Any = None
        self._accelerator: Any = None
        self._folder.mkdir(parents=True, exist_ok=True)
        if options.memory_recorder == "memray":
            self._start_memray()
        else:
            self._start_torch(device)

    @property
    def recording(self) -> bool:
        """Whether anything is recorded now."""
        return self._tracker is not None or self._accelerator is not None

    def ended(self) -> None:
        """Training on a rollout has ended."""
        self._done += 1
        if self._done == self._rollouts:
            self.close()

    def close(self) -> None:
        """Write the record, unless that is done."""
        if self._tracker is not None:
            self._tracker.__exit__(None, None, None)
            self._tracker = None
        if self._accelerator is not None:
            self._accelerator.write_memory(self._path())
            self._accelerator.stop_recording_memory()
            self._accelerator = None

    def _start_torch(self, device: Any) -> None:
        from miles_core.accelerator.device import accelerator_of

        found = accelerator_of(device)
        if found.record_memory(MOST_EVENTS, self._out_of_memory):
            self._accelerator = found
        else:
            _log.warning("--memory-recorder torch records device memory, and rank %d trains on the CPU", self._rank)

    def _start_memray(self) -> None:
        try:
            memray = importlib.import_module("memray")
        except ImportError as error:
            raise memray_missing() from error
        self._tracker = memray.Tracker(str(self._path()))
        self._tracker.__enter__()

    def _out_of_memory(self) -> None:
        # PyTorch keeps calling an observer, also after the end of its record.
        if self._accelerator is not None:
            self._accelerator.write_memory(self._path())

    def _path(self) -> Path:
        return self._folder / f"memory_snapshot_time{time.time():.0f}_rank{self._rank}_{self._ending}"


def memray_missing() -> RunError:
    """The error M374."""
    return RunError(
        "M374",
        "--memory-recorder memray cannot be had",
        owner="miles-core",
        why="memray is not installed",
        fix="pip install memray, or take --memory-recorder torch",
    )
