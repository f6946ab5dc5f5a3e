"""Rollouts from files, in the place of a rollout manager's own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from miles_core.config import DebugOptions, RewardOptions
from miles_core.debug.replay import ReplayedRollouts
from miles_core.debug.rollout_file import write_rollout
from miles_core.errors import RunError
from miles_core.options import Config
from miles_core.plugins import PluginRef
from miles_core.runtime.plan import BatchPlan, PlacementPlan, PluginPlan, RunPlan
from miles_core.samples import Sample, Scored, Status


def plan(folder: Path) -> RunPlan:
    ref = PluginRef("loss", "clip", "toy", "1.0", "toy:make")
    place = PlacementPlan("cpu", 1, 0, 1, False, False, False, "gloo")
    return RunPlan(PluginPlan(backend=ref, loss=ref), BatchPlan(6, 2, 12, 1, 3, None), place, folder / "run", folder)


def group(number: int) -> list[Sample]:
    return [
        Sample(
            index=2 * number + i,
            group_index=number,
            prompt_ids=[1],
            response_ids=[2, 3],
            rollout_log_probs=[-0.5, -0.25],
            weight_versions=[(1, 2)],
            status=Status.COMPLETED,
            score=Scored(float(i)),
            reward=float(i),
        )
        for i in range(2)
    ]


def replay(folder: Path, rollout_id: int, share: float | None = None):
    options = DebugOptions(load_debug_rollout_data=str(folder / "{rollout_id}.npz"), load_debug_rollout_data_subsample=share)

    async def work():
        manager = ReplayedRollouts(Config.of(options, RewardOptions()), plan(folder))
        await manager.start([])
        try:
            return await manager.generate(rollout_id)
        finally:
            await manager.close()

    return asyncio.run(work())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    write_rollout(tmp_path / "4.npz", 4, [sample for number in range(6) for sample in group(number)])
    return tmp_path


def test_rows_of_a_saved_rollout(saved: Path) -> None:
    result = replay(saved, 4)
    assert [row.index for row in result.rows] == list(range(12))
    assert result.rows[1].tokens.tolist() == [1, 2, 3]
    assert result.rows[1].raw_reward == 1.0
    assert result.metrics["rollout/raw_reward"] == 0.5


@pytest.mark.parametrize(("share", "groups"), [(0.5, [0, 1, 5]), (1 / 3, [0, 5]), (0.01, [0]), (1.0, [0, 1, 2, 3, 4, 5])])
def test_a_share_of_whole_groups_from_both_ends(saved: Path, share: float, groups: list[int]) -> None:
    assert [row.group for row in replay(saved, 4, share).rows] == [number for number in groups for _ in range(2)]


def test_a_rollout_that_is_not_there(saved: Path) -> None:
    with pytest.raises(RunError, match=r"M372 .*5\.npz"):
        replay(saved, 5)
