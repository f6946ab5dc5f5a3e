"""Engines that run already."""

from __future__ import annotations

import pytest

from miles_core.runtime.checks.placement import Machine

APART = ["--colocate"]
GPUS = Machine(cpus=8, gpus=4)


def test_servers_take_no_devices(cli) -> None:
    given = ["10.0.0.7:30000", "http://[::1]:30001/"]
    words = cli.but("--engine attaching", "--rollout-external", drop=APART)
    found = cli.plan([*words, "--rollout-external-engine-addrs", *given], GPUS).plan.placement
    assert found.external == ("http://10.0.0.7:30000", "http://[::1]:30001")
    assert (found.engines, found.trainers, found.devices, found.offload_rollout) == (2, 2, 2, False)


@pytest.mark.parametrize(
    ("changes", "drop", "parts"),
    [
        ("--rollout-external", APART, ["names no server"]),
        ("--rollout-external --rollout-external-engine-addrs ::1:30000", APART, ["'::1:30000'", "brackets"]),
        ("--rollout-external --rollout-external-engine-addrs localhost", APART, ["'localhost'", "HOST:PORT"]),
        ("--rollout-external --rollout-external-engine-addrs https://a:1", APART, ["'https://a:1'"]),
        ("--rollout-external --rollout-external-engine-addrs a:1 http://a:1", APART, ["names http://a:1 twice"]),
        ("--rollout-external --rollout-external-engine-addrs a:1", [], ["does not go with --colocate"]),
        ("--rollout-external --rollout-external-engine-addrs a:1 --offload-rollout", APART, ["does not go with --offload-rollout"]),
        ("--rollout-external-engine-addrs a:1", [], ["needs --rollout-external"]),
    ],
)
def test_addresses_and_what_does_not_go_with_them(cli, changes: str, drop: list[str], parts: list[str]) -> None:
    words = [*cli.but("--engine attaching", drop=drop), *changes.split()]
    errors = [error.line() for error in cli.plan(words, GPUS).errors]
    assert [line for line in errors if line.startswith("M521") and all(part in line for part in parts)], errors


def test_an_engine_that_the_run_always_starts(cli) -> None:
    planned = cli.plan(cli.but("--rollout-external", "--rollout-external-engine-addrs a:1", drop=APART))
    assert [error.line() for error in planned.errors if error.code == "M521" and "--engine sglang" in error.line()]


def test_options_of_own_engines_are_named(cli) -> None:
    given = ["--rollout-external", "--rollout-external-engine-addrs a:1", "--rollout-num-gpus 2", "--rollout-engine-port 5000"]
    warnings = cli.plan(cli.but("--engine attaching", *given, drop=APART), GPUS).warnings
    assert [line for line in warnings if line.startswith("--rollout-num-gpus") and "no effect" in line]
    assert [line for line in warnings if line.startswith("--rollout-engine-port") and "no effect" in line]
