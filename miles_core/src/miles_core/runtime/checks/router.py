"""Which router a run has, and the options that mean nothing without core's."""

from __future__ import annotations

from miles_core.config import DebugOptions, RouterOptions, RoutingOptions
from miles_core.options.value import Source
from miles_core.plugins.refs import PluginRef
from miles_core.runtime.checks.fault_tolerance import restarts_engines
from miles_core.runtime.checks.report import Report
from miles_core.runtime.plan import PlacementPlan
from miles_core.version import __version__

OWN = PluginRef(
    kind="router", name="miles", distribution="miles-core", version=__version__, create="miles_core.router.service:RouterService"
)
"""Core's router."""
COMPANIONS = (
    *("miles_router_timeout", "miles_router_max_connections", "miles_router_health_check_failure_threshold"),
    "miles_router_policy",
)
"""Options of core's router that do not ask for it."""
CAPTURE = "routing_capture"
"""The middleware that keeps routes."""
CALLS_FOR = ("use_miles_router", "miles_router_middleware_paths")


def check_router(report: Report, placement: PlacementPlan | None) -> None:
    """Check the router's options, and warn of those that nothing will use."""
    options = report.peek(RouterOptions)
    for name in ("miles_router_max_connections", "miles_router_health_check_failure_threshold"):
        value = getattr(options, name)
        if value is not None and value < 1:
            report.error("M247", f"{report.said(RouterOptions, name)} is out of range", fix="give 1 or more")
    timeout = options.miles_router_timeout
    if timeout is not None and timeout <= 0:
        fix = "give a number of seconds above 0, or leave it out for any time"
        report.error("M247", f"{report.said(RouterOptions, 'miles_router_timeout')} is out of range", fix=fix)
    key = report.config.value(RouterOptions, "miles_router_api_key")
    if key.source in (Source.COMMAND_LINE, Source.FILE):
        why = "others can read command lines and files"
        fix = "put it in the environment variable MILES_MILES_ROUTER_API_KEY"
        report.error("M248", f"--miles-router-api-key is given in {key.place}", why=why, fix=fix)
    elif key.value is not None and not _fits_header(key.value):
        fix = "give printable ASCII characters without spaces"
        report.error("M248", "the API key in MILES_MILES_ROUTER_API_KEY cannot be used", why="a header cannot carry it", fix=fix)
    captures = not {CAPTURE, f"miles-core:{CAPTURE}"}.isdisjoint(options.miles_router_middleware_paths)
    if captures and not report.peek(RoutingOptions).use_rollout_routing_replay:
        fix = f"add --use-rollout-routing-replay, or leave {CAPTURE} out"
        said = report.said(RouterOptions, "miles_router_middleware_paths")
        report.error("M352", f"{said} has nothing to capture", why="the engines note no routes", fix=fix)
    if placement is not None:
        _relevance(report, placement)


def router_of(report: Report, placement: PlacementPlan) -> PluginRef | None:
    """What stands in front of the engines of a run: core's router where the user asks for it, or engines may have to be replaced;
    else, before several engines, the one that their plugin brings, or core's."""
    engine = report.selection.engine
    if engine is None or not _has_engines(report):
        return None
    if _wanted(report) or restarts_engines(report):
        return OWN
    if placement.engines < 2:
        return None
    record = next(plugin.record for plugin in report.selection.loaded if plugin.ref == engine)
    if not record.router:
        return OWN
    return PluginRef("router", engine.name, engine.distribution, engine.version, record.router)


def _relevance(report: Report, placement: PlacementPlan) -> None:
    router = router_of(report, placement)
    if router == OWN:
        return
    names: tuple[str, ...]
    if not _has_engines(report):
        names, why = (*COMPANIONS, *CALLS_FOR), "the run has no engine"
    elif router is None:
        names, why = COMPANIONS, "one engine needs no router, and neither --use-miles-router nor a middleware is given"
    else:
        names, why = COMPANIONS, f"engine {router.name} brings a router of its own; add --use-miles-router"
    for name in names:
        if report.chosen(RouterOptions, name) and getattr(report.peek(RouterOptions), name):
            report.warn(f"{report.said(RouterOptions, name)} has no effect: {why}")


def _wanted(report: Report) -> bool:
    options = report.peek(RouterOptions)
    return options.use_miles_router or bool(options.miles_router_middleware_paths)


def _has_engines(report: Report) -> bool:
    return report.generates and report.peek(DebugOptions).load_debug_rollout_data is None


def _fits_header(key: str) -> bool:
    return bool(key) and key.isascii() and key.isprintable() and " " not in key
