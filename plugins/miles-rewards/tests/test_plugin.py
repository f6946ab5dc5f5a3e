"""The records of miles-rewards, and the checks before a run."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import subprocess
import sys
from typing import Any

import pytest

from miles_core.config import DataOptions, PluginOptions, RewardOptions, RolloutOptions
from miles_core.errors import MilesError
from miles_core.options import Config
from miles_core.plugins.events import Configure
from miles_rewards import plugin
from miles_rewards.judge.options import JudgeOptions
from miles_rewards.options import SumOptions
from miles_rewards.remote.options import RemoteOptions


def problems(
    rm_type: str | None = "math", label_key: str | None = "answer", sum_of: list[str] | None = None, **reward: Any
) -> list[str]:
    found: list[MilesError] = []
    config = Config.of(
        PluginOptions(rm_type=rm_type), DataOptions(label_key=label_key), RewardOptions(**reward), SumOptions(sum_of=sum_of or [])
    )
    plugin.miles_configure(Configure(config, found.append))
    assert all(e.exit_code == 2 and e.owner.startswith("miles-rewards ") and e.fix for e in found)
    return [e.code for e in found]


def test_entry_points_and_records_agree() -> None:
    points = importlib.metadata.distribution("miles-rewards").entry_points.select(group="miles.reward")
    assert sorted(p.name for p in points) == [r.name for r in plugin.miles_reward()]


def test_every_record_can_be_created_and_closed() -> None:
    for record in plugin.miles_reward():
        module, _, attribute = record.create.partition(":")
        made = getattr(importlib.import_module(module), attribute)(
            Config.of(
                RolloutOptions(rollout_max_response_len=8),
                SumOptions(sum_of=["math", "format=0.5"]),
                RemoteOptions(rm_url="http://localhost:1/"),
                JudgeOptions(judge_url="http://localhost:1/v1", judge_model="judge"),
            )
        )

        async def use(reward: Any = made) -> None:
            assert await reward.score([]) == []
            await reward.close()

        asyncio.run(use())


def test_the_plugin_imports_nothing_heavy() -> None:
    code = "import sys, miles_rewards.plugin; print(sorted({'torch', 'numpy', 'sympy', 'asyncio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "codes"),
    [
        ({}, []),
        ({"label_key": None}, ["M239"]),
        ({"label_key": None, "rm_type": "miles-rewards:exact"}, ["M239"]),
        ({"label_key": None, "rm_type": None}, []),
        ({"label_key": None, "rm_type": "other"}, []),
        ({"label_key": None, "custom_rm_path": "a.b"}, []),
        ({"reward_timeout": 0}, ["M238"]),
        ({"reward_timeout": float("nan")}, ["M238"]),
        ({"reward_workers": 0}, ["M238"]),
        ({"label_key": None, "rm_type": "boxed_f1"}, ["M239"]),
        ({"label_key": None, "rm_type": "random"}, []),
        ({"rm_type": "dapo"}, ["M290"]),
        ({"rm_type": "boxed_dapo", "reward_key": "pred"}, ["M290"]),
        ({"rm_type": "dapo", "reward_key": "score"}, []),
        ({"rm_type": "dapo", "reward_key": "score", "eval_reward_key": "acc"}, []),
        ({"rm_type": "dapo", "reward_key": "score", "eval_reward_key": "accuracy"}, ["M290"]),
        ({"rm_type": "sum"}, ["M291"]),
        ({"rm_type": "sum", "sum_of": ["math", "format=0.2"]}, []),
        ({"rm_type": "sum", "sum_of": ["math", "format=0.2"], "label_key": None}, ["M239"]),
        ({"rm_type": "sum", "sum_of": ["maths"]}, ["M291"]),
        ({"rm_type": "sum", "sum_of": ["math=much"]}, ["M291"]),
        ({"rm_type": "sum", "sum_of": ["math=nan"]}, ["M291"]),
        ({"rm_type": "sum", "sum_of": ["math", "math=2"]}, ["M291"]),
        ({"rm_type": "sum", "sum_of": ["math", "sum"]}, ["M291"]),
        ({"rm_type": "sum", "sum_of": ["miles-rewards:dapo"]}, ["M290"]),
        ({"rm_type": "remote_rm", "label_key": None}, ["M295"]),
        ({"rm_type": "boxed_remote_rm"}, ["M295"]),
        ({"rm_type": "judge"}, ["M295", "M296"]),
        ({"rm_type": "code", "label_key": None}, []),
        ({"rm_type": "ifbench", "label_key": None}, []),
        ({"rm_type": "sum", "sum_of": ["math", "remote_rm=0.5"]}, ["M295"]),
        ({"label_key": None, "reward_timeout": -1, "reward_workers": -1}, ["M239", "M238", "M238"]),
    ],
)
def test_configure(given: dict[str, Any], codes: list[str]) -> None:
    assert problems(**given) == codes
