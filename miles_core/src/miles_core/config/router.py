"""The router in front of the engines."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class RouterOptions:
    """Router"""

    use_miles_router: bool = option(
        False,
        flag="--use-miles-router",
        help="Put the router in front of the engines, with its text-to-token cache: agents may send and look up texts.",
    )
    miles_router_middleware_paths: list[str] = option(
        [],
        flag="--miles-router-middleware-paths",
        metavar="NAME|PATH",
        help="Middlewares of the router, the last one outermost: plugin names, or dotted paths of async fn(request, call_next). "
        "Naming one puts the router in front of the engines.",
    )
    miles_router_timeout: float | None = option(
        None, flag="--miles-router-timeout", help="Seconds that an engine may be silent in a call of the router; none by default."
    )
    miles_router_max_connections: int | None = option(
        None,
        flag="--miles-router-max-connections",
        help="Calls that the router passes on at once; 512 per engine by default. Four times as many wait, the others get a 503.",
    )
    miles_router_health_check_failure_threshold: int = option(
        3,
        flag="--miles-router-health-check-failure-threshold",
        help="Failures in a row after which the router gives an engine no requests, until it answers again.",
    )
    miles_router_policy: str = option(
        "cache-aware",
        flag="--miles-router-policy",
        choices=("cache-aware", "least-loaded"),
        help="How the router chooses an engine: by the longest prefix of the prompt that it has seen, or by load alone.",
    )
    miles_router_api_key: str | None = option(
        None,
        flag="--miles-router-api-key",
        metavar="KEY",
        secret=True,
        help="Bearer token that the router asks of its callers, and engines of theirs. Taken from the environment variable "
        "MILES_MILES_ROUTER_API_KEY only.",
    )
