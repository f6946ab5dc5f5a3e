"""The smallest third-party plugin, installed like anybody's and used in a run."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest


def installed() -> bool:
    try:
        importlib.metadata.version("miles-example-reward")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="pip install -e examples/miles-example-reward")
def test_a_third_party_reward_trains_a_model(task, cluster, miles, metrics, tmp_path: Path) -> None:
    listed = json.loads(miles("plugins", "list", "--kind", "reward", "--json").stdout)
    assert "brevity" in json.dumps(listed)
    arguments = task.arguments(custom_rm_path=None, rm_type="brevity", brevity_tokens=5, num_rollout=2, ray_address=cluster)
    miles("run", *arguments, "--run-dir", tmp_path / "run")
    assert len(metrics(tmp_path / "run")["rollout/raw_reward"]) == 2
    assert "miles-example-reward" in (tmp_path / "run" / "plugins.lock.json").read_text(encoding="utf-8")
