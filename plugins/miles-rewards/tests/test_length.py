"""Reward length."""

from __future__ import annotations

import asyncio

import pytest

from miles_core.config import PluginOptions, RewardOptions, RolloutOptions
from miles_core.errors import MilesError
from miles_core.options import Config
from miles_core.options.resolve import resolve
from miles_core.plugins.events import Configure
from miles_core.samples import Sample, Scored
from miles_rewards import plugin
from miles_rewards.length import create
from miles_rewards.options import LengthOptions


def score(tokens: int, options: LengthOptions, longest: int | None = None) -> float:
    reward = create(Config.of(options, RolloutOptions(rollout_max_response_len=longest)))
    (found,) = asyncio.run(reward.score([Sample(response="x", response_ids=[1] * tokens)]))
    assert isinstance(found, Scored)
    assert isinstance(found.value, float)
    return found.value


@pytest.mark.parametrize(("tokens", "expected"), [(0, 1), (2, 1), (3, 0.875), (6, 0.5), (10, 0), (50, 0)])
def test_it_falls_from_what_is_free_to_the_limit(tokens: int, expected: float) -> None:
    assert score(tokens, LengthOptions(length_free=2, length_limit=10)) == pytest.approx(expected)
    assert score(tokens, LengthOptions(length_free=2), longest=10) == pytest.approx(expected)


@pytest.mark.parametrize("options", [LengthOptions(), LengthOptions(length_free=5, length_limit=5), LengthOptions(length_free=-1)])
def test_a_limit_is_needed(options: LengthOptions) -> None:
    with pytest.raises(ValueError, match="length_limit"):
        create(Config.of(options))


@pytest.mark.parametrize(
    ("flags", "codes"),
    [
        ("--length-limit 100", []),
        ("--rollout-max-response-len 100 --length-free 20", []),
        ("--length-limit 100 --length-free 100", ["M238"]),
        ("--length-free 3", ["M238"]),
    ],
)
@pytest.mark.parametrize("reward", ["--rm-type length", "--rm-type sum --sum-of exact=1 length=0.2 --label-key answer"])
def test_what_cannot_be_graded_is_told_before_a_run(reward: str, flags: str, codes: list[str]) -> None:
    resolved = resolve(["--backend", "fsdp", *reward.split(), *flags.split()], environment={})
    assert not resolved.errors
    assert resolved.config.get(PluginOptions).rm_type
    assert resolved.config.get(RewardOptions).custom_rm_path is None
    found: list[MilesError] = []
    plugin.miles_configure(Configure(resolved.config, found.append))
    assert [error.code for error in found] == codes
