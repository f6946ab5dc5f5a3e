"""``GET /metrics`` of the router, in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from miles_core.router.gate import Gate
from miles_core.router.pool import Pool

CONTENT_TYPE = "text/plain"
PREFIX = "miles_router_"


@dataclass
class Tally:
    """Answers by status, counted from the start."""

    answers: Counter[int] = field(default_factory=Counter)


def exposition(pool: Pool, gate: Gate, tally: Tally, retries: int) -> str:
    """The text of the page."""
    workers = list(pool.workers.values())
    answers = [(f'{{status="{status}"}}', count) for status, count in sorted(tally.answers.items())]
    lines = [
        *_metric("answers_total", "counter", "Answers by status", answers),
        *_metric("refusals_total", "counter", "Calls that found neither a place nor room to wait", [("", gate.refused)]),
        *_metric("retries_total", "counter", "Prompts that were sent to another worker", [("", retries)]),
        *_metric("in_flight", "gauge", "Calls that are passed on", [("", gate.inside)]),
        *_metric("waiting", "gauge", "Calls that wait for a place", [("", gate.queued)]),
    ]
    for name, kind, text, of in (
        ("worker_load", "gauge", "Requests in flight", lambda w: w.load),
        ("worker_served_total", "counter", "Requests answered", lambda w: w.served),
        ("worker_failures", "gauge", "Failures in a row", lambda w: w.failures),
        ("worker_healthy", "gauge", "0 in quarantine", lambda w: int(not w.quarantined)),
    ):
        lines += _metric(name, kind, text, [(f'{{url="{worker.url}"}}', of(worker)) for worker in workers])
    return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, text: str, values: Iterable[tuple[str, int]]) -> list[str]:
    head = [f"# HELP {PREFIX}{name} {text}.", f"# TYPE {PREFIX}{name} {kind}"]
    return [*head, *(f"{PREFIX}{name}{labels} {value}" for labels, value in values)]
