"""The middlewares that come with core, offered as everybody's are."""

from __future__ import annotations

from collections.abc import Sequence

from miles_core.plugins.hookspecs import hookimpl
from miles_core.plugins.records import MiddlewareRecord


@hookimpl
def miles_middleware() -> Sequence[MiddlewareRecord]:
    return [
        MiddlewareRecord(
            name="radix_tree",
            create="miles_core.router.text_cache:create",
            summary="Text-to-token cache: texts that engines made turn back into their tokens, log-probs and weight versions",
        ),
        MiddlewareRecord(
            name="routing_capture",
            create="miles_core.router.routing_capture:create",
            summary="Keeps the experts that engines sent tokens to, for agents that work with texts (R3)",
        ),
    ]
