"""Whether a server that somebody else has started is one for this run; it says itself what it is."""

from __future__ import annotations

from typing import Any

from miles_core.errors import RunError

OWNER = "miles-sglang"


def check_server(url: str, info: Any, gpus: int, routed: bool) -> None:
    """Check the answer of ``/server_info``.

    Args:
        gpus: of an engine of this run.
        routed: whether the run asks for the experts of tokens.

    Raises:
        RunError: M520.
    """
    found = info if isinstance(info, dict) else {}
    size, pipeline = int(found.get("tp_size", 0)), int(found.get("pp_size", 1))
    routes = "start it with --enable-return-routed-experts, or leave --use-rollout-routing-replay out"
    for wrong, why, fix in (
        (not size, "it says nothing of itself in /server_info", "give the address of an SGLang server"),
        (pipeline > 1, f"it has {pipeline} pipeline stages, each with weights of its own", "start it without --pp-size"),
        (size != gpus, f"it has {size} GPUs", f"give --rollout-num-gpus-per-engine {size}"),
        (found.get("skip_tokenizer_init"), "it was started with --skip-tokenizer-init", "start it without"),
        (routed and not found.get("enable_return_routed_experts"), "it does not tell routes", routes),
    ):
        if wrong:
            raise RunError("M520", f"the server at {url} is not one for this run", owner=OWNER, why=why, fix=fix)
