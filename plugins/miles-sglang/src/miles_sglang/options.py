"""Options of the ``sglang`` engine: miles' own, and every argument of SGLang's server."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from miles_core.options import option
from miles_sglang.arguments import Argument, server_arguments
from miles_sglang.reserved import RESERVED

ARGUMENTS = server_arguments()
"""The server's arguments; of the installed SGLang, or of the packaged release."""
HELP_LENGTH = 240
_KINDS: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "list[int]": list[int],
    "list[float]": list[float],
    "list[str]": list[str],
}
_SECRETS = frozenset({"api_key", "admin_api_key"})


@dataclass(frozen=True)
class SGLangOptions:
    """SGLang engine"""

    server_concurrency: int = option(
        512, flag="--sglang-server-concurrency", help="Most requests that the run has in flight at one engine."
    )
    launcher: str = option(
        "",
        flag="--sglang-launcher",
        metavar="COMMAND",
        help="Command that starts a server and takes its arguments; the Python of miles with -m sglang.launch_server by default.",
    )
    launch_timeout: float = option(
        1200.0,
        flag="--sglang-launch-timeout",
        help="Seconds that a server may take to load the model and to answer its first request.",
    )
    prefill_num_servers: int | None = option(
        None,
        flag="--prefill-num-servers",
        help="Engines that only compute prompts; the others decode (prefill/decode disaggregation). Needs SGLang's router.",
    )
    router_policy: str = option(
        "cache_aware",
        flag="--sglang-router-policy",
        choices=("cache_aware", "power_of_two", "random", "round_robin"),
        help="How sglang-router, which stands in front of several engines by default, chooses one.",
    )
    router_request_timeout: int = option(
        14400, flag="--sglang-router-request-timeout-secs", help="Seconds that a request may take in sglang-router."
    )
    router_launcher: str = option(
        "",
        flag="--sglang-router-launcher",
        metavar="COMMAND",
        help="Command that starts sglang-router and takes its arguments; the package in the Python of miles by default.",
    )


def _fields() -> list[tuple[str, Any, Any]]:
    own = {field.name: field for field in dataclasses.fields(SGLangOptions)}
    taken = {field.metadata["miles.option"].flag for field in own.values()}
    found = []
    for each in ARGUMENTS.entries:
        flags = [f"--sglang-{flag.lstrip('-')}" for flag in each.flags]
        if flags[0] not in taken:
            kind = _KINDS[each.kind]
            found.append((each.field, kind | None if each.optional else kind, _option(each, flags)))
    return found


def _option(argument: Argument, flags: list[str]) -> Any:
    text = argument.help if len(argument.help) <= HELP_LENGTH else argument.help[: HELP_LENGTH - 3].rsplit(" ", 1)[0] + "..."
    if argument.field in RESERVED:
        text = f"Not to be given: {RESERVED[argument.field].line()}."
    if text and text[-1] not in ".!)":
        text += "."
    return option(
        argument.default,
        flag=flags[0],
        aliases=flags[1:],
        choices=argument.choices,
        help=text or "See SGLang's documentation.",
        secret=argument.field in _SECRETS,
    )


ServerOptions: Any = dataclasses.make_dataclass(
    "ServerOptions", _fields(), frozen=True, namespace={"__doc__": f"SGLang {ARGUMENTS.version} server", "__module__": __name__}
)
"""One field for each argument of the server, by SGLang's name, with SGLang's default; None where SGLang computes it."""
