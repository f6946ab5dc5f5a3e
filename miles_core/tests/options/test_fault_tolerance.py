"""``--use-fault-tolerance`` and the options beside it."""

from __future__ import annotations

import pytest

COMPANIONS = {
    "--rollout-health-check-interval": "5",
    "--rollout-health-check-timeout": "7.5",
    "--rollout-health-check-first-wait": "60",
}


def test_engines_that_are_started_again_have_cores_router_before_them(cli) -> None:
    apart = cli.but("--rollout-num-gpus 1", drop=["--colocate"])
    assert cli.plan(apart).require().plugins.router is None
    chosen = [f"{flag} {value}" for flag, value in COMPANIONS.items()]
    planned = cli.plan(cli.but("--rollout-num-gpus 1", "--engine fronted", "--use-fault-tolerance", *chosen, drop=["--colocate"]))
    router = planned.require().plugins.router
    assert router is not None
    assert router.create == "miles_core.router.service:RouterService"
    assert not [line for line in planned.warnings if "health" in line or "fault" in line]


def test_it_needs_engines_that_the_run_starts(cli) -> None:
    server = ("--engine remote", "--rollout-external", "--rollout-external-engine-addrs 127.0.0.1:9")
    lines = cli.errors(cli.but("--use-fault-tolerance", *server, drop=["--colocate"]))
    assert any(line.startswith("M530") and "--rollout-external" in line for line in lines), lines


@pytest.mark.parametrize("flag", COMPANIONS)
def test_options_without_it_have_no_effect(cli, flag: str) -> None:
    (line,) = [line for line in cli.plan(cli.but(f"{flag} 3")).warnings if flag in line]
    assert "--use-fault-tolerance is not given" in line


@pytest.mark.parametrize(("flag", "value"), [*((flag, "-1") for flag in COMPANIONS), ("--rollout-health-check-timeout", "0")])
def test_seconds_are_seconds(cli, flag: str, value: str) -> None:
    lines = cli.errors(cli.but("--use-fault-tolerance", f"{flag} {value}"))
    assert any(flag in line and "out of range" in line for line in lines), lines


def test_a_run_without_engines_says_so(cli) -> None:
    planned = cli.plan(cli.but("--use-fault-tolerance", "--loss-type imitate"))
    assert any("--use-fault-tolerance" in line and "no engine" in line for line in planned.warnings), planned.warnings
