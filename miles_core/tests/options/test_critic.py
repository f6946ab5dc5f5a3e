"""The critic's options, its place, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miles_core.config import CriticOptions
from miles_core.runtime.checks.placement import Machine

VALUED = ("--advantage-estimator valued", "--critic-loss-type regress")


def test_an_estimator_that_needs_values_brings_a_critic(cli) -> None:
    plan = cli.plan(cli.but(*VALUED, "--num-critic-only-steps 1", "--num-steps-per-rollout 2", "--regress-bound 2")).plan
    assert plan.plugins.critic_loss.name == "regress"
    assert (plan.placement.trainers, plan.placement.critics, plan.placement.devices) == (2, 2, 2)
    assert plan.placement.critics_take_turns
    assert (plan.batch.critic_only_rollouts, plan.batch.train_steps, plan.batch.critic_steps) == (1, 4, 6)


def test_without_one_there_is_none(cli) -> None:
    planned = cli.plan(cli.but("--critic-lr 1e-5", "--critic-num-nodes 3"))
    assert planned.plan.placement.critics == 0
    assert planned.plan.plugins.critic_loss is None
    assert planned.plan.batch.train_steps == planned.plan.batch.critic_steps
    said = [line for line in planned.warnings if "advantage mean has no critic" in line]
    assert len(said) == 2
    assert any("--critic-lr" in line for line in said)
    assert cli.errors(cli.but("--regress-bound 2"))[0].startswith("M201")


def test_devices_of_its_own_are_counted(cli) -> None:
    apart = cli.but(*VALUED, "--rollout-num-gpus 1", "--critic-num-gpus-per-node 4", drop=["--colocate"])
    placement = cli.plan(apart, Machine(cpus=7, gpus=0)).plan.placement
    assert (placement.trainers, placement.critics, placement.engines, placement.devices) == (2, 4, 1, 7)
    assert not placement.critics_take_turns
    (line,) = cli.errors(apart, Machine(cpus=6, gpus=0))
    assert line.startswith("M218")
    assert "2 for training" in line
    assert "4 for the critic (--critic-num-gpus-per-node)" in line
    assert "1 for generation" in line


def test_colocated_ranks_share_the_actors_devices(cli) -> None:
    placement = cli.plan(cli.but(*VALUED, "--critic-num-gpus-per-node 4")).plan.placement
    assert (placement.trainers, placement.critics, placement.engines, placement.devices) == (2, 4, 2, 4)
    several = cli.but(*VALUED, "--critic-num-nodes 2", "--critic-num-gpus-per-node 1", "--ray-address 10.0.0.1:6379")
    assert cli.plan(several).plan.placement.critics == 2


def test_the_critic_is_read(cli) -> None:
    planned = cli.plan(cli.but(*VALUED, "--num-critic-only-steps 1", "--critic-num-nodes 1"))
    unread = {option.flag for option, _ in planned.config.unread()}
    assert not unread & {"--critic-loss-type", "--num-critic-only-steps", "--critic-num-nodes"}


@pytest.mark.parametrize(
    ("changes", "code", "parts"),
    [
        (["--backend gpu-only"], "M270", ["'gpu-only' cannot train a critic", "advantage valued"]),
        (["--critic-lr 1e-7", "--min-lr 1e-6", "--lr 1e-5", "--lr-decay-style linear"], "M271", ["--critic-lr 1e-07", "--min-lr"]),
        (["--disable-compute-advantages-and-returns"], "M271", ["advantage valued"]),
        (["--critic-loss-type clip"], "M272", ["--critic-loss-type clip", "no loss of values"]),
        (["--loss-type regress"], "M272", ["'regress' cannot train the actor"]),
        (["--critic-loss-type nothing"], "M101", ["nothing"]),
        (["--critic-lr -1"], "M209", ["--critic-lr"]),
        (["--num-critic-only-steps -1"], "M209", ["--num-critic-only-steps"]),
        (["--critic-num-nodes 0"], "M209", ["--critic-num-nodes"]),
        (["--critic-num-nodes 2"], "M218", ["--critic-num-nodes 2"]),
        (["--critic-num-gpus-per-node 3"], "M211", ["3 data-parallel ranks"]),
        (["--critic-load /nowhere"], "M330", ["/nowhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be(cli, changes: list[str], code: str, parts: list[str]) -> None:
    machine = Machine(cpus=8, gpus=8 if "gpu-only" in changes[0] else 0)
    lines = [line for line in cli.errors(cli.but(*VALUED, *changes), machine) if line.startswith(code)]
    assert len(lines) == 1, cli.errors(cli.but(*VALUED, *changes), machine)
    for part in parts:
        assert part in lines[0]


def test_a_critic_that_cannot_read_every_token(cli, checkpoint: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    for file in checkpoint.iterdir():
        (small / file.name).write_bytes(file.read_bytes())
    for folder, size in ((checkpoint, 100), (small, 99)):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"vocab_size": size}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (line,) = cli.errors(cli.but(*VALUED, f"--critic-load {small}"))
    assert line.startswith("M273")
    assert "reads 99 tokens" in line
    assert not cli.errors(cli.but(*VALUED, f"--critic-load {checkpoint}"))


def test_a_run_that_never_trains_the_actor_says_so(cli) -> None:
    planned = cli.plan(cli.but(*VALUED, "--num-critic-only-steps 3"))
    assert planned.plan.batch.train_steps == 0
    assert any("the actor is not trained" in line for line in planned.warnings)


def test_a_state_with_a_critic_belongs_to_a_run_with_one(cli, checkpoint: Path, tmp_path: Path) -> None:
    from miles_core.state import StateStore, model_fingerprint

    for name, folders in (("without", ()), ("with", ("critic",))):
        store = StateStore(tmp_path / name)
        folder = store.begin(0)
        for part in folders:
            (folder / part).mkdir()
            (folder / part / "file").write_text("x", encoding="utf-8")
        store.commit(0, {"rollout_id": 0, "weight_version": 1, "model_fingerprint": model_fingerprint(checkpoint)}, keep=None)
    assert not cli.errors(cli.but(*VALUED, f"--load {tmp_path / 'with'}"))
    assert not cli.errors(cli.but(f"--load {tmp_path / 'without'}"))
    (line,) = cli.errors(cli.but(*VALUED, f"--load {tmp_path / 'without'}"))
    assert line.startswith("M274")
    assert "saved without a critic" in line
    (line,) = cli.errors(cli.but(f"--load {tmp_path / 'with'}"))
    assert "saved with a critic" in line


def test_defaults_are_the_actors(cli) -> None:
    options = cli.plan(cli.but(*VALUED)).config.peek(CriticOptions)
    assert (options.critic_num_nodes, options.critic_lr, options.critic_load) == (None, None, None)
