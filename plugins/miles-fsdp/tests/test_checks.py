"""Which runs may have ``--context-parallel-size``, ``--dp-replicate-size`` and ``--fsdp-compile``."""

from __future__ import annotations

import pytest

from miles_core.config import ClusterOptions, CriticOptions, DebugOptions, RoutingOptions, TrainingOptions
from miles_core.options import Config
from miles_core.plugins.events import Configure
from miles_fsdp import plugin
from miles_fsdp.options import FsdpOptions

SIX = ClusterOptions(actor_num_gpus_per_node=6)


def lines(config: Config) -> list[str]:
    found = []
    plugin.miles_configure(Configure(config, found.append))
    return [error.line() for error in found]


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_divisors_of_the_ranks_are_fine(size: int):
    assert lines(Config.of(FsdpOptions(context_parallel_size=size, replicate_size=size), SIX)) == []


def test_ranks_come_in_whole_groups():
    shared, copied = lines(Config.of(FsdpOptions(context_parallel_size=4, replicate_size=5), SIX))
    assert shared.startswith("M338 miles-fsdp")
    assert "--context-parallel-size 4 does not fit the run: 6 ranks of the actor" in shared
    assert copied.startswith("M580 miles-fsdp")
    assert "--dp-replicate-size 5 does not fit the run: 6 ranks of the actor" in copied


def test_the_critic_s_ranks_count():
    options = FsdpOptions(context_parallel_size=3)
    (line,) = lines(Config.of(options, SIX, CriticOptions(critic_num_gpus_per_node=2)))
    assert "2 ranks of the critic" in line
    assert lines(Config.of(options, SIX, CriticOptions(critic_num_nodes=3))) == []


def test_rollouts_alone_need_no_ranks():
    assert lines(Config.of(FsdpOptions(context_parallel_size=4), SIX, DebugOptions(debug_rollout_only=True))) == []


@pytest.mark.parametrize(
    ("group", "part"),
    [
        (TrainingOptions(true_on_policy_mode=True), "--true-on-policy-mode"),
        (RoutingOptions(use_routing_replay=True), "--use-routing-replay"),
        (RoutingOptions(use_routing_replay=True, use_rollout_routing_replay=True), "--use-rollout-routing-replay"),
    ],
)
def test_what_it_does_not_go_with(group: object, part: str):
    (line,) = lines(Config.of(FsdpOptions(context_parallel_size=2), group))
    assert line.startswith("M338")
    assert f"contradicts {part}:" in line
    assert lines(Config.of(FsdpOptions(), group)) == []


@pytest.mark.parametrize(
    ("group", "part"),
    [
        (TrainingOptions(true_on_policy_mode=True), "--true-on-policy-mode"),
        (RoutingOptions(use_routing_replay=True, use_rollout_routing_replay=True), "--use-rollout-routing-replay"),
    ],
)
def test_what_is_not_compiled(group: object, part: str):
    (line,) = lines(Config.of(FsdpOptions(compile=True), group))
    assert line.startswith("M581")
    assert f"contradicts {part}:" in line


@pytest.mark.parametrize(("kernels", "count"), [("eager", 1), ("sdpa", 0)])
def test_shared_rows_have_kernels_of_their_own(kernels: str, count: int):
    config = Config.of(FsdpOptions(context_parallel_size=2)).replaced(FsdpOptions, attn_implementation=kernels)
    assert sum("--attn-implementation eager" in line for line in lines(config)) == count


@pytest.mark.parametrize("field", ["context_parallel_size", "replicate_size"])
def test_a_size_is_a_number_of_ranks(field: str):
    (line,) = lines(Config.of(FsdpOptions(**{field: 0})))
    assert "-size is 0" in line
