"""Engines that run already: ``--rollout-external`` and the addresses of ``--rollout-external-engine-addrs``."""

from __future__ import annotations

from urllib.parse import urlsplit

from miles_core.config import ClusterOptions
from miles_core.runtime.checks.report import Report

CAPABILITY = "external"
"""Of an engine plugin that attaches to a server which somebody else has started."""
IDLE = ("rollout_num_gpus", "rollout_engine_port")
TOGETHER = ("colocate", "offload", "offload_rollout")


def check_external_engines(report: Report) -> tuple[str, ...]:
    """The servers' base URLs; none without ``--rollout-external``, or where something is wrong, which is reported."""
    options, engine = report.peek(ClusterOptions), report.selection.engine
    given = options.rollout_external_engine_addrs
    if not options.rollout_external:
        if given is not None:
            said = report.said(ClusterOptions, "rollout_external_engine_addrs")
            report.error("M521", f"{said} needs --rollout-external", fix="set it, or leave the addresses out")
        return ()
    if not report.generates:
        return ()
    said = report.said(ClusterOptions, "rollout_external")
    if engine is not None and CAPABILITY not in engine.capabilities:
        why = f"engine {engine.name} is always started by the run"
        report.error("M521", f"{said} cannot be used", owner=f"engine {engine.name}", why=why, fix="take --engine sglang")
    for name in TOGETHER:
        if getattr(options, name):
            why = "the servers' memory and devices are not the run's"
            other = report.said(ClusterOptions, name)
            report.error("M521", f"{said} does not go with {other}", why=why, fix="leave one of them out")
    for name in IDLE:
        if report.chosen(ClusterOptions, name):
            report.warn(f"{report.said(ClusterOptions, name)} has no effect: engines run already")
    if not given:
        fix = "give --rollout-external-engine-addrs HOST:PORT ..."
        report.error("M521", f"{said} names no server", fix=fix)
        return ()
    found = [_url(report, address) for address in given]
    urls = tuple(url for url in found if url)
    for twice in sorted({url for url in urls if urls.count(url) > 1}):
        report.error("M521", f"--rollout-external-engine-addrs names {twice} twice", fix="name each server once")
    return urls if len(urls) == len(given) else ()


def _url(report: Report, address: str) -> str:
    """``http://HOST:PORT``; empty for what is no address."""
    whole = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(whole)
        good = parts.scheme == "http" and bool(parts.hostname) and parts.port is not None and parts.path in ("", "/")
        good = good and not parts.query and not parts.fragment and parts.username is None
    except ValueError:
        good = False
    if good:
        return whole.rstrip("/")
    why = "an IPv6 address has brackets: [::1]:30000" if address.count(":") > 1 else "it is not HOST:PORT"
    report.error("M521", f"--rollout-external-engine-addrs has {address!r}", why=why, fix="give HOST:PORT or [IPV6]:PORT")
    return ""
