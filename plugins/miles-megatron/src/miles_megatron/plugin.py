"""What this package offers to miles. Light: nothing here imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from miles_core.plugins import hookimpl
from miles_core.plugins.records import BackendRecord
from miles_megatron.checks import problems
from miles_megatron.options import MegatronOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from miles_core.plugins.events import Configure


@hookimpl
def miles_backend() -> Sequence[BackendRecord]:
    """The ``megatron`` backend."""
    return [
        BackendRecord(
            name="megatron",
            create="miles_megatron.backend:MegatronBackend",
            options=MegatronOptions,
            summary="megatron-core: tensor, pipeline, context and expert parallelism",
            capabilities=frozenset({"cpu", "cuda", "critic", "routing_replay", "context_parallel", "async_save"}),
        )
    ]


@hookimpl
def miles_configure(event: Configure) -> None:
    """Check what can be checked without torch: parallel sizes against the run and the model, options that contradict each other."""
    for problem in problems(event.config):
        event.error(problem)
