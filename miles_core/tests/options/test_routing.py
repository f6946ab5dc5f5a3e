"""Routing replay needs experts, a backend that replays, and for the engine's routes an engine that tells them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

R2, R3 = "--use-routing-replay", "--use-rollout-routing-replay"
EXPERTS = {"num_hidden_layers": 2, "num_experts": 8, "num_experts_per_tok": 2}


@pytest.fixture
def mixture(checkpoint: Path) -> Path:
    """The checkpoint, as a mixture of experts."""
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, **EXPERTS}))
    return checkpoint


def test_a_backend_and_an_engine_that_can_are_let_through(cli, mixture: Path) -> None:
    assert cli.errors(cli.but("--backend routed", R2)) == []
    assert cli.errors(cli.but("--backend routed", "--engine routed", R3)) == []
    planned = cli.plan(cli.but("--backend routed", "--engine routed", R2, R3))
    assert not planned.errors
    assert any(line.startswith(R2) and "no effect" in line and R3 in line for line in planned.warnings)


@pytest.mark.parametrize("flag", [R2, R3])
def test_a_backend_that_does_not_replay_is_refused(cli, mixture: Path, flag: str) -> None:
    (line,) = cli.errors(cli.but("--engine routed", flag))
    assert line.startswith(f"M275 backend toy: {flag}")
    assert "routing_replay" in line


def test_an_engine_that_does_not_tell_is_refused(cli, mixture: Path) -> None:
    (line,) = cli.errors(cli.but("--backend routed", R3))
    assert line.startswith(f"M277 engine toy: {R3}")
    assert "routed_experts" in line


@pytest.mark.parametrize("flag", [R2, R3])
def test_a_dense_model_is_refused(cli, flag: str) -> None:
    (line,) = cli.errors(cli.but("--backend routed", "--engine routed", flag))
    assert line.startswith("M276 ")
    assert "toy has no num_experts" in line


def test_a_supervised_run_has_nothing_to_replay(cli, mixture: Path) -> None:
    lines = cli.errors(cli.but("--backend routed", "--loss-type imitate", R2))
    assert any(line.startswith("M275") and "responses that come from the data" in line for line in lines)


def test_without_the_option_nothing_is_asked(cli) -> None:
    assert cli.errors(cli.valid) == []
