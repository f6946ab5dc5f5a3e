"""What the sizes of groups of ranks go with, as far as options and ``config.json`` say. Light: nothing here imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from miles_core.config import ClusterOptions, CriticOptions, DebugOptions, RoutingOptions, TrainingOptions
from miles_core.errors import UsageError
from miles_fsdp.options import FsdpOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from miles_core.options import Config

OWNER = "miles-fsdp"
CONTEXT = "--context-parallel-size"
REPLICATE = "--dp-replicate-size"


def group_problems(config: Config, *, attention_chosen: bool) -> Iterator[UsageError]:
    """Every reason why the run cannot have its context-parallel size (M338) or its copies of the shards (M580).

    Args:
        config: the run's options.
        attention_chosen: whether the user set ``--attn-implementation``.
    """
    options = config.peek(FsdpOptions)
    for code, flag, size, what in (
        ("M338", CONTEXT, options.context_parallel_size, "that many ranks share each row"),
        ("M580", REPLICATE, options.replicate_size, "that many groups of ranks hold all weights"),
    ):
        if size < 1:
            yield UsageError(code, f"{flag} is {size}", owner=OWNER, why=what, fix="give 1 or more")
            continue
        for whose, world in _worlds(config).items():
            if world % size:
                what = f"{flag} {size} does not fit the run"
                yield misfit(code, what, f"{world} ranks of the {whose} are no multiple of it")
    if options.context_parallel_size > 1:
        yield from _context_contradictions(config, options, attention_chosen)


def misfit(code: str, what: str, why: str) -> UsageError:
    """Ranks that do not divide into groups."""
    return UsageError(code, what, owner=OWNER, why=why, fix="change the number of ranks or this size")


def _worlds(config: Config) -> dict[str, int]:
    """The ranks that train each model of the run."""
    cluster, critic = config.peek(ClusterOptions), config.peek(CriticOptions)
    if config.peek(DebugOptions).debug_rollout_only:
        return {}
    nodes, per_node = max(cluster.actor_num_nodes, 1), max(cluster.actor_num_gpus_per_node, 1)
    worlds = {"actor": nodes * per_node}
    if critic.critic_num_nodes is not None or critic.critic_num_gpus_per_node is not None:
        worlds["critic"] = max(critic.critic_num_nodes or nodes, 1) * max(critic.critic_num_gpus_per_node or per_node, 1)
    return worlds


def compile_problems(config: Config) -> Iterator[UsageError]:
    """Every reason why the run cannot have ``--fsdp-compile`` (M581)."""
    if not config.peek(FsdpOptions).compile:
        return
    routing = config.peek(RoutingOptions)
    replay = "--use-rollout-routing-replay" if routing.use_rollout_routing_replay else "--use-routing-replay"
    for wrong, flag, why in (
        (config.peek(TrainingOptions).true_on_policy_mode, "--true-on-policy-mode", "a compiler orders sums in its own way"),
        (routing.replays, replay, "routes are recorded and replayed in Python code within the layers"),
    ):
        if wrong:
            what = f"--fsdp-compile contradicts {flag}"
            yield UsageError("M581", what, owner=OWNER, why=why, fix="leave one of them out")


def _context_contradictions(config: Config, options: FsdpOptions, attention_chosen: bool) -> Iterator[UsageError]:
    said = f"{CONTEXT} {options.context_parallel_size}"
    if attention_chosen and options.attn_implementation == "eager":
        why, fix = "shared rows are attended to by kernels of their own", "leave one of them out"
        yield UsageError("M338", f"{said} contradicts --attn-implementation eager", owner=OWNER, why=why, fix=fix)
    if config.peek(TrainingOptions).true_on_policy_mode:
        why, fix = "its kernels compute whole rows on one rank, as engines do", "leave one of them out"
        yield UsageError("M338", f"{said} contradicts --true-on-policy-mode", owner=OWNER, why=why, fix=fix)
    routing = config.peek(RoutingOptions)
    if routing.replays:
        flag = "--use-rollout-routing-replay" if routing.use_rollout_routing_replay else "--use-routing-replay"
        why, fix = "routes are recorded and replayed for whole rows", "leave one of them out"
        yield UsageError("M338", f"{said} contradicts {flag}", owner=OWNER, why=why, fix=fix)
