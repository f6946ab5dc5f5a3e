"""Options that all algorithms share."""

from __future__ import annotations

import pytest

from miles_core.config import AlgorithmOptions
from miles_core.options import Source


def codes(planned) -> list[str]:
    return [error.code for error in planned.errors]


def test_a_divisor_of_0_is_the_longest_response(cli) -> None:
    planned = cli.plan(cli.but("--loss-length-divisor 0", "--rollout-max-response-len 77"))
    value = planned.config.value(AlgorithmOptions, "loss_length_divisor")
    assert (value.value, value.source) == (77, Source.DERIVED)
    assert cli.plan(cli.but("--loss-length-divisor 12")).config.peek(AlgorithmOptions).loss_length_divisor == 12


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        (["--loss-length-divisor 5", "--calculate-per-token-loss"], "M225"),
        (["--loss-length-divisor=-1"], "M209"),
        (["--ref-update-interval 0"], "M209"),
        (["--disable-compute-advantages-and-returns"], "M226"),
    ],
)
def test_contradictions(cli, changes: list[str], code: str) -> None:
    assert codes(cli.plan(cli.but(*changes))) == [code]


def test_a_kept_actor_that_changes_nothing_is_named(cli) -> None:
    (line,) = cli.plan(cli.but("--keep-old-actor")).warnings
    assert "--keep-old-actor" in line
    assert "changes nothing" in line
    (line,) = cli.plan(cli.but("--keep-old-actor", "--use-rollout-logprobs")).warnings
    assert "no effect" in line


def test_a_supervised_run_names_what_has_no_effect(cli) -> None:
    changes = ["--loss-type imitate", "--normalize-advantages", "--use-rollout-logprobs"]
    warnings = cli.plan(cli.but(*changes, drop=["--colocate", "--rm-type"])).warnings
    assert any("--normalize-advantages" in line for line in warnings)
    assert any("--use-rollout-logprobs" in line for line in warnings)
