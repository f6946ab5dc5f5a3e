"""``--use-pytorch-profiler``: traces of training that Chrome's tracing page and Perfetto open.

``train_overall`` records the rollouts ``[--profile-step-start, --profile-step-end)`` in one trace, after one rollout of warming up;
``train_actor`` and ``train_log_probs`` record each of their spans within these rollouts in a trace of its own: every optimizer
step, and every pass for log-probs of the actor, the reference or a teacher.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from miles_core.config import DebugOptions

SPANS = {
    "actor_train": "train_actor",
    "log_probs": "train_log_probs",
    "ref_log_probs": "train_log_probs",
    "teacher_log_probs": "train_log_probs",
}
"""Targets by phase of the trainer's clock."""


class Profiler:
    """Of one training rank.

    Args:
        folder: where the traces go.
        device: of the rank, a ``torch.device``.
    """

    def __init__(self, options: DebugOptions, folder: Path, rank: int, device: Any) -> None:
        self._targets = frozenset(options.profile_target)
        self._start, self._end = options.profile_step_start, options.profile_step_end
        self._folder = Path(options.profile_dir).expanduser() if options.profile_dir else folder
        self._rank = rank
        self._device = device
        self._overall: Any = None
        self._rollout_id = 0
        self._done = 0
        self._spans = 0

    def started(self, rollout_id: int) -> None:
        """Training on a rollout begins."""
        self._rollout_id, self._spans = rollout_id, 0
        if "train_overall" in self._targets and self._done == 0:
            import torch

            warmup = 1 if self._start else 0
            schedule = torch.profiler.schedule(
                wait=max(self._start - 1, 0), warmup=warmup, active=self._end - self._start, repeat=1
            )
            self._overall = self._profile(schedule=schedule, on_trace_ready=self._write_overall)
            self._overall.start()

    def ended(self) -> None:
        """Training on it has ended."""
        self._done += 1
        if self._overall is not None:
            self._overall.step()
            if self._done >= self._end:
                self.close()

    @contextmanager
    def span(self, phase: str) -> Iterator[None]:
        """A phase of the trainer's clock runs inside."""
        target = SPANS.get(phase)
        if target not in self._targets or not self._start <= self._done < self._end:
            yield
            return
        with self._profile() as profile:
            yield
        self._write(profile, f"{target}_{phase}_rollout{self._rollout_id}_{self._spans}")
        self._spans += 1

    def close(self) -> None:
        """Write what is recorded and not written."""
        if self._overall is not None:
            self._overall.stop()
            self._overall = None

    def _profile(self, **more: Any) -> Any:
        import torch

        from miles_core.accelerator.device import accelerator_of

        return torch.profiler.profile(
            activities=accelerator_of(self._device).activities(),
            record_shapes=True,
            with_stack=True,
            profile_memory=True,
            with_flops=True,
            **more,
        )

    def _write_overall(self, profile: Any) -> None:
        self._write(profile, f"train_overall_rollout{self._rollout_id}")

    def _write(self, profile: Any, name: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(self._folder / f"{name}_rank{self._rank}.json.gz"))
