"""What this package offers to miles. Light: nothing here imports torch or SGLang."""

from __future__ import annotations

from typing import TYPE_CHECKING

from miles_core.plugins.hookspecs import hookimpl
from miles_core.plugins.records import EngineRecord
from miles_sglang.checks import check
from miles_sglang.options import ServerOptions, SGLangOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from miles_core.plugins.events import Configure


@hookimpl
def miles_engine() -> Sequence[EngineRecord]:
    """The ``sglang`` engine."""
    return [
        EngineRecord(
            name="sglang",
            create="miles_sglang.engine:SGLangEngine",
            options=(SGLangOptions, ServerOptions),
            summary="SGLang servers on GPUs, launched by the run; every argument of theirs is --sglang-*",
            capabilities=frozenset(
                {
                    *(
                        "cuda",
                        "routed_experts",
                        "several_gpus",
                        "several_nodes",
                        "external",
                        "concurrency:--sglang-server-concurrency",
                    ),
                    *("cuda_ipc", "process_group", "disk"),
                }
            ),
            router="miles_sglang.router:SGLangRouter",
            export="miles_sglang.fp8:Prepared",
        )
    ]


@hookimpl
def miles_configure(event: Configure) -> None:
    """Check the options, of the server, too."""
    check(event)
