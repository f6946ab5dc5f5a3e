"""Over-sampling, partial rollouts, overlong shaping: options that need or exclude each other."""

from __future__ import annotations

import pytest

from miles_core.config import SamplingOptions


@pytest.fixture
def planned(cli):
    def plan(*changes: str) -> tuple[list[str], list[str]]:
        found = cli.plan(cli.but(*changes))
        return [error.line() for error in found.errors], found.warnings

    return plan


@pytest.fixture
def code(tmp_path) -> str:
    path = tmp_path / "own.py"
    functions = ("def post(samples):\n    pass\n", "def convert(samples):\n    pass\n", "def keep(samples):\n    return True\n")
    path.write_text("\n\n".join(functions), "utf-8")
    return str(path)


def test_over_sampling_is_no_less_than_a_rollout(planned) -> None:
    (line,) = planned("--rollout-batch-size 8", "--over-sampling-batch-size 7")[0]
    assert line.startswith("M280")
    assert "give 8 or more" in line
    assert planned("--rollout-batch-size 8", "--over-sampling-batch-size 8")[0] == []
    assert planned("--over-sampling-batch-size 0")[0][0].startswith("M209")


def test_a_partial_rollout_takes_its_unit_from_the_rollout(cli, code) -> None:
    found = cli.plan(cli.but("--rollout-batch-size 8", "--partial-rollout", f"--dynamic-sampling-filter-path {code}:keep"))
    assert found.errors == []
    assert found.config.peek(SamplingOptions).over_sampling_batch_size == 8
    assert not any("partial" in line for line in found.warnings)


def test_a_partial_rollout_that_leaves_nothing_is_warned_of(planned) -> None:
    errors, warnings = planned("--rollout-batch-size 8", "--partial-rollout")
    assert errors == []
    assert any(line.startswith("--partial-rollout has no effect") for line in warnings)
    errors, warnings = planned("--rollout-batch-size 8", "--partial-rollout", "--over-sampling-batch-size 12")
    assert not any("partial" in line for line in warnings)


def test_the_mask_of_earlier_tokens_needs_partial_rollouts(planned) -> None:
    (line,) = planned("--mask-offpolicy-in-partial-rollout")[0]
    assert line.startswith("M281")


def test_a_buffer_filter_without_a_buffer_is_warned_of(planned) -> None:
    errors, warnings = planned("--buffer-filter-path pop_first")
    assert errors == []
    assert any(line.startswith("--buffer-filter-path pop_first") and "no effect" in line for line in warnings)


def test_an_unknown_buffer_filter_is_told(planned) -> None:
    (line,) = planned("--buffer-filter-path pop_last")[0]
    assert line.startswith("M111 --buffer-filter-path")


@pytest.mark.parametrize(
    "changes",
    [
        ("--overlong-buffer-ratio 0.5", "--custom-reward-post-process-path {}:post"),
        ("--overlong-buffer-ratio 0.5", "--custom-convert-samples-to-train-data-path {}:convert"),
        ("--custom-reward-post-process-path {}:post", "--custom-convert-samples-to-train-data-path {}:convert"),
    ],
)
def test_one_option_makes_the_rewards(planned, code, changes) -> None:
    (line,) = planned(*(change.format(code) for change in changes))[0]
    assert line.startswith("M282")
    for change in changes:
        assert change.partition(" ")[0] in line


def test_a_factor_without_a_buffer_is_warned_of(planned) -> None:
    errors, warnings = planned("--overlong-penalty-factor 2")
    assert errors == []
    assert any(line.startswith("--overlong-penalty-factor") for line in warnings)
    for wrong in ("--overlong-buffer-ratio 1.5", "--overlong-penalty-factor -1"):
        assert any(line.startswith("M209") for line in planned(wrong)[0])
