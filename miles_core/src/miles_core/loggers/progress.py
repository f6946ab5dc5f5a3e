"""Live progress of a run: drawn in place on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from miles_core.loggers.figures import LOSS, REWARD, SAMPLES, STEP_SECONDS, VALUE_LOSS, clock, response_length, short
from miles_core.loggers.pace import Pace

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

BARS = "▁▂▃▄▅▆▇█"
HISTORY = 24
LINE_SECONDS = 10.0
RECENT = 8
"""Rollouts whose phases say how long the same phase will take."""
PHASES = {
    "start": "starting processes",
    "rollout": "generating",
    "offload": "moving to the trainer",
    "train": "training",
    "save": "saving",
    "publish": "publishing weights",
    "evaluate": "evaluating",
}


class Progress:
    """What the driver shows of a run.

    Args:
        total: rollouts of the whole run.
        start: rollouts that were done before.
        console: where to draw; standard output when not given.
        now: a monotonic clock, in seconds.
    """

    def __init__(
        self, total: int, start: int = 0, *, console: Console | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        from rich.console import Console as RichConsole

        self._console = console or RichConsole(highlight=False)
        self._now = now
        self._total = total
        self._first = self._done = start
        self._started = now()
        self._pace = Pace(self._started)
        self._phase = "start"
        self._began = self._started
        self._took: dict[str, deque[float]] = {}
        self._part: tuple[int, int] | None = None
        self._samples = 0
        self._shown: dict[str, float] = {}
        self._rewards: deque[float] = deque(maxlen=HISTORY)
        self._last_line = self._started
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal and not os.environ.get("CI"):
            from rich.live import Live as RichLive

            self._live = RichLive(self, console=self._console, refresh_per_second=5, transient=True)
            self._live.start()

    def resume(self, start: int) -> None:
        """Rollouts begin now, with number ``start``: what came before is not counted into the pace."""
        self._first = self._done = start
        self._pace = Pace(self._now())

    def phase(self, name: str) -> None:
        """The run is now in phase ``name``: one of :data:`PHASES`, or any other text."""
        self._took.setdefault(self._phase, deque(maxlen=RECENT)).append(self._now() - self._began)
        self._phase, self._part, self._began = name, None, self._now()
        self._maybe_line()

    def advance(self, done: int, total: int) -> None:
        """``done`` of ``total`` samples of the current phase are there."""
        self._part = (done, total)
        if self._phase == "rollout":
            self._samples = total
        self._maybe_line()

    def finish_rollout(self, metrics: Mapping[str, float]) -> None:
        """A rollout is generated, trained on and published."""
        self._done += 1
        self._pace.finish(self._now())
        self._shown = self._numbers(metrics)
        if REWARD in metrics:
            self._rewards.append(metrics[REWARD])
        self._maybe_line()

    def evaluated(self, rollout_id: int, metrics: Mapping[str, float]) -> None:
        """An evaluation after ``rollout_id`` ended. Its scores are the loggers' to show; the display goes back to the run."""
        self._part = None
        self._maybe_line()

    def message(self, text: str) -> None:
        """Show a line, above the live display where there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """End the display."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def line(self) -> str:
        """The state of the run on one line."""
        share = 100 * self._done / self._total if self._total else 100.0
        parts = [f"{self._done}/{self._total} rollouts ({share:.0f} %)", self._doing(), *self._figures()]
        parts.append(f"elapsed {clock(self._now() - self._started)}")
        left = self._remaining()
        if left is not None:
            parts.append(f"ETA {clock(left)}")
        return " | ".join(parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        left = self._remaining()
        head = Table.grid(padding=(0, 1))
        head.add_row(
            ProgressBar(total=max(1, self._total), completed=self._done, width=max(10, min(40, options.max_width - 50))),
            Text(f"{self._done}/{self._total}", style="bold"),
            Text("rollouts"),
            Text(f"elapsed {clock(self._now() - self._started)}", style="dim"),
            Text(f"ETA {clock(left) if left is not None else '-'}", style="bold cyan"),
        )
        yield head
        below = Text(self._doing(), style="yellow", no_wrap=True, overflow="ellipsis")
        for figure in self._figures():
            below.append("  ")
            below.append(figure, style="green" if figure.startswith("reward") else "default")
        if len(self._rewards) > 1:
            below.append("  ")
            below.append(spark(list(self._rewards)), style="green")
        yield below

    def _numbers(self, metrics: Mapping[str, float]) -> dict[str, float]:
        found = {}
        for name, label in ((REWARD, "reward"), (LOSS, "loss"), (VALUE_LOSS, "value loss")):
            if name in metrics:
                found[label] = metrics[name]
        seconds = metrics.get(STEP_SECONDS)
        # Short rollouts end between two questions about their progress, and supervised ones generate nothing.
        samples = metrics.get(SAMPLES, self._samples)
        if samples and seconds:
            found["samples/s"] = samples / seconds
            length = response_length(metrics)
            if length is not None:
                found["tokens/s"] = samples * length / seconds
        return found

    def _figures(self) -> list[str]:
        texts = {"reward": "reward {}", "loss": "loss {}", "value loss": "value loss {}"}
        return [texts.get(label, "{} " + label).format(short(value)) for label, value in self._shown.items()]

    def _doing(self) -> str:
        """The phase: how far, how fast, and how long it will take."""
        doing, spent = PHASES.get(self._phase, self._phase), self._now() - self._began
        if self._part is not None:
            done, total = self._part
            doing = f"{doing} {done}/{total}"
            if not done or spent <= 0:
                return doing
            rate = done / spent
            doing = f"{doing}, {short(rate)}/s"
            return f"{doing}, {clock((total - done) / rate)} left" if (total - done) / rate >= 1 else doing
        earlier = self._took.get(self._phase)
        # What counts nothing while it runs takes as long as it took before; a second or less is not worth reading.
        usual = statistics.median(earlier) if earlier else 0.0
        if max(spent, usual) < 1:
            return doing
        return f"{doing} {clock(spent)}, {clock(max(0.0, usual - spent))} left" if earlier else f"{doing} {clock(spent)}"

    def _remaining(self) -> float | None:
        return self._pace.remaining(self._total - self._done, self._now())

    def _maybe_line(self) -> None:
        """Without a terminal to draw on: a line, unless the last one is recent."""
        if self._live is None and self._now() - self._last_line >= LINE_SECONDS:
            self._last_line = self._now()
            self.message(self.line())


def spark(values: list[float]) -> str:
    """A curve of one character per value, from the lowest to the highest of them."""
    low, high = min(values), max(values)
    if not high > low:
        return BARS[0] * len(values)
    return "".join(BARS[min(len(BARS) - 1, int((value - low) / (high - low) * len(BARS)))] for value in values)
