"""What can be said of the options before a server is started."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from miles_core.config import ClusterOptions, DebugOptions, FaultToleranceOptions, RolloutOptions, RouterOptions, TrainingOptions
from miles_core.errors import UsageError
from miles_sglang.fp8 import METHOD
from miles_sglang.options import ARGUMENTS, ServerOptions, SGLangOptions
from miles_sglang.reserved import RESERVED

if TYPE_CHECKING:
    from typing import Any

    from miles_core.plugins.events import Configure

OWNER = "miles-sglang"
_HUMAN = re.compile(r"\d+(\.\d+)?[kMGT]|\d+(Ki|Mi|Gi|Ti)?|-1")


def check(event: Configure) -> None:
    """Report every mistake."""
    config = event.config
    own, server = config.peek(SGLangOptions), config.peek(ServerOptions)
    for flag, value, low in (
        ("--sglang-server-concurrency", own.server_concurrency, 1),
        ("--sglang-launch-timeout", own.launch_timeout, 1),
    ):
        if value < low:
            event.error(UsageError("M510", f"{flag} is {value}", owner=OWNER, fix=f"give {low} or more"))
    _check_arguments(event)
    if config.peek(ClusterOptions).rollout_external and config.peek(RolloutOptions).check_weight_update_equal:
        what = "--check-weight-update-equal does not go with --rollout-external"
        why = "weights of servers that miles did not start cannot be read"
        event.error(UsageError("M522", what, owner=OWNER, why=why, fix="leave it out"))
    _check_fp8(event, server)
    _check_parallel(event, server)
    _check_roles(event, own.prefill_num_servers)
    if server.mem_fraction_static is not None and not 0.0 < server.mem_fraction_static < 1.0:
        what = f"--sglang-mem-fraction-static is {server.mem_fraction_static}"
        event.error(UsageError("M510", what, owner=OWNER, why="it is a share", fix="give a number above 0 and below 1"))
    if config.peek(TrainingOptions).true_on_policy_mode:
        why = "its kernels are not the trainer's, so that log-probs differ by rounding"
        fix = "leave it out; --sglang-enable-deterministic-inference makes responses repeatable"
        event.error(UsageError("M510", "--true-on-policy-mode does not go with SGLang", owner=OWNER, why=why, fix=fix))
    if not ARGUMENTS.installed and not own.launcher:
        event.warn(f"SGLang is not installed here: its arguments are checked as those of {ARGUMENTS.version}")


def _check_arguments(event: Configure) -> None:
    """Those that cannot be given, and values that only SGLang's parser understands."""
    for each in ARGUMENTS.entries:
        if not event.config.chosen(ServerOptions, each.field):
            continue
        given = event.config.value(ServerOptions, each.field)
        flag = f"--sglang-{each.flags[0].lstrip('-')}"
        reserved = RESERVED.get(each.field)
        if reserved is not None:
            fix = f"use {reserved.use}" if reserved.use else "leave it out"
            event.error(UsageError("M510", f"{flag} ({given.place}) cannot be given", owner=OWNER, why=reserved.why, fix=fix))
        elif each.human and isinstance(given.value, str) and not _HUMAN.fullmatch(given.value.strip()):
            fix = "give an integer, or one like 8k (8000) or 8Ki (8192)"
            event.error(UsageError("M510", f"{flag} is {given.value!r}", owner=OWNER, fix=fix))
        elif each.kind == "bool" and given.value is False and each.default is not False and not each.negatable:
            why = "SGLang's server has no switch that turns it off"
            event.error(UsageError("M510", f"--no-{flag[2:]} cannot be given", owner=OWNER, why=why, fix="leave it out"))


def _check_parallel(event: Configure, server: Any) -> None:
    gpus = event.config.peek(ClusterOptions).rollout_num_gpus_per_engine
    if server.pp_size > 1:
        why = "its stages would need weights of their own"
        fix = "shard engines by --rollout-num-gpus-per-engine alone"
        event.error(UsageError("M510", "--sglang-pp-size is above 1", owner=OWNER, why=why, fix=fix))
    if server.dp_size > 1 and not server.enable_dp_attention:
        why = "SGLang takes new weights with data-parallel attention only"
        fix = "add --sglang-enable-dp-attention, or start more engines"
        event.error(UsageError("M510", f"--sglang-dp-size is {server.dp_size}", owner=OWNER, why=why, fix=fix))
    if server.dp_size > 1 and gpus % server.dp_size:
        what = f"--sglang-dp-size {server.dp_size} does not divide --rollout-num-gpus-per-engine {gpus}"
        event.error(UsageError("M510", what, owner=OWNER, fix="give a divisor"))


def _check_roles(event: Configure, prefill: int | None) -> None:
    """Prefill/decode disaggregation needs both kinds of engines, and a router that sends requests to a pair of them."""
    if prefill is None:
        return
    cluster, router = event.config.peek(ClusterOptions), event.config.peek(RouterOptions)
    said = f"--prefill-num-servers {prefill}"
    engines = (cluster.rollout_num_gpus or 0) // max(cluster.rollout_num_gpus_per_engine, 1)
    if cluster.rollout_external:
        fix = "leave it out: servers that run already have their roles"
        event.error(UsageError("M523", f"{said} does not go with --rollout-external", owner=OWNER, fix=fix))
    elif prefill < 1 or (engines and prefill >= engines):
        why = f"{engines} engines have to be at least one that prefills and one that decodes"
        event.error(UsageError("M523", f"{said} is out of range", owner=OWNER, why=why, fix=f"give 1 to {max(engines - 1, 1)}"))
    for flag, given in (
        ("--use-fault-tolerance", event.config.peek(FaultToleranceOptions).use_fault_tolerance),
        ("--use-miles-router", router.use_miles_router),
        ("--miles-router-middleware-paths", router.miles_router_middleware_paths),
    ):
        if given:
            why = "the router of miles sends a request to one engine, not to a pair"
            event.error(UsageError("M523", f"{said} does not go with {flag}", owner=OWNER, why=why, fix="leave one of them out"))


def _check_fp8(event: Configure, server: Any) -> None:
    """FP8 weights are made by the trainer, in the one form that servers take new ones in."""
    if server.quantization is None:
        return
    said = f"--sglang-quantization {server.quantization}"
    if server.quantization != METHOD:
        why = "servers cannot take new weights in that form from a trainer"
        event.error(UsageError("M524", f"{said} cannot be used", owner=OWNER, why=why, fix="take fp8, or leave it out"))
        return
    if event.config.peek(DebugOptions).debug_rollout_only:
        why = "servers get their FP8 weights from a trainer, and the run has none"
        fix = "leave one of them out"
        event.error(UsageError("M524", f"{said} does not go with --debug-rollout-only", owner=OWNER, why=why, fix=fix))
    if event.config.chosen(ServerOptions, "load_format"):
        why = "servers start without weights, which come quantised from the trainer"
        what = f"{said} does not go with --sglang-load-format"
        event.error(UsageError("M524", what, owner=OWNER, why=why, fix="leave one of them out"))
    try:
        good = isinstance(json.loads(server.json_model_override_args or "{}"), dict)
    except ValueError:
        good = False
    if not good:
        what = "--sglang-json-model-override-args is no JSON object"
        event.error(UsageError("M510", what, owner=OWNER, fix="give one"))
