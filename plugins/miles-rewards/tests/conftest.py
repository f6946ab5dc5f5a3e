"""Grading with any reward of the package."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from miles_core.config import RewardOptions, RolloutOptions
from miles_core.options import Config
from miles_core.samples import Sample, Score
from miles_rewards import plugin

Grade = Callable[..., list[Score]]


def make(name: str, *options: object) -> Any:
    """The reward of that name, as a run makes it."""
    record = {record.name: record for record in plugin.miles_reward()}[name]
    module, _, attribute = record.create.partition(":")
    given = options or (RewardOptions(reward_timeout=20.0), RolloutOptions(rollout_max_response_len=100))
    return getattr(importlib.import_module(module), attribute)(Config.of(*given))


@pytest.fixture(scope="session")
def grade() -> Iterator[Grade]:
    """``grade("math", samples)``: their scores. Rewards live as long as the session, so worker processes start once."""
    used: dict[str, Any] = {}

    with asyncio.Runner() as runner:

        def score(name: str, samples: Sequence[Sample], *options: object) -> list[Score]:
            key = f"{name} {options}"
            if key not in used:
                used[key] = make(name, *options)
            return list(runner.run(used[key].score(samples)))

        yield score
        for reward in used.values():
            runner.run(reward.close())


@pytest.fixture(scope="session")
def data() -> Callable[[str], list[dict[str, Any]]]:
    """Rows of a file below ``MILES_TEST_DATA``; skips without it."""

    def read(path: str) -> list[dict[str, Any]]:
        root = os.environ.get("MILES_TEST_DATA")
        if not root or not (Path(root) / path).exists():
            pytest.skip(f"MILES_TEST_DATA has no {path}")
        with open(Path(root) / path, encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    return read
