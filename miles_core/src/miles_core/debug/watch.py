"""Everything that looks into one training rank, together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miles_core.config import DebugOptions
from miles_core.debug.memory import MemoryRecord
from miles_core.debug.paths import fill
from miles_core.debug.profiler import Profiler
from miles_core.options import Config

if TYPE_CHECKING:
    from miles_core.training.trainer import Rollout


class TrainingWatch:
    """Profiles, records memory and writes training data, as far as the options ask for it.

    Args:
        device: of the rank, a ``torch.device``.
    """

    def __init__(self, config: Config, run_dir: Path, rank: int, device: Any) -> None:
        options = config.get(DebugOptions)
        self._rank = rank
        self._template = options.save_debug_train_data
        self._profiler = Profiler(options, run_dir / "profile", rank, device) if options.use_pytorch_profiler else None
        self._memory = MemoryRecord(options, rank, device) if options.record_memory_history else None

    @property
    def wants_log_probs(self) -> bool:
        """Whether log-probs are to be computed even where training could do without."""
        return self._template is not None

    def started(self, rollout_id: int) -> None:
        """Training on a rollout begins."""
        if self._profiler is not None:
            self._profiler.started(rollout_id)

    def begun(self, run: Rollout) -> None:
        """Everything that precedes the optimizer steps is computed."""
        if self._template is not None:
            from miles_core.debug.train_file import write_training

            path = fill(self._template, rollout_id=run.batch.rollout_id, rank=self._rank)
            write_training(path, self._rank, run.batch, run.fields)

    def ended(self) -> None:
        """Training on the rollout has ended."""
        if self._profiler is not None:
            self._profiler.ended()
        if self._memory is not None:
            self._memory.ended()

    @contextmanager
    def span(self, phase: str) -> Iterator[None]:
        """A phase of the trainer's clock runs inside."""
        if self._profiler is None:
            yield
            return
        with self._profiler.span(phase):
            yield

    def close(self) -> None:
        """Write what is recorded and not written."""
        if self._profiler is not None:
            self._profiler.close()
        if self._memory is not None:
            self._memory.close()
