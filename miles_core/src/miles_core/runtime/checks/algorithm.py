"""What every algorithm shares: options that contradict each other, or the selected plugins."""

from __future__ import annotations

from miles_core.config import AlgorithmOptions, PluginOptions, RolloutOptions
from miles_core.runtime.checks.report import Report

ADVANTAGE_FREE = frozenset({"supervised", "advantage_free"})
"""Capabilities of losses that take no advantages."""


def check_algorithm(report: Report) -> None:
    """Compare the shared options of algorithms with each other and with the loss."""
    options = report.peek(AlgorithmOptions)
    if options.loss_length_divisor is not None:
        if options.calculate_per_token_loss:
            said = report.said(AlgorithmOptions, "loss_length_divisor")
            why = "both say what a sample's loss is divided by"
            report.error("M225", f"{said} does not go with --calculate-per-token-loss", why=why, fix="leave one of them out")
        elif options.loss_length_divisor == 0:
            _divide_by_longest(report)
    loss = report.selection.loss
    if options.disable_compute_advantages_and_returns and loss is not None and not ADVANTAGE_FREE & loss.capabilities:
        said = report.said(AlgorithmOptions, "disable_compute_advantages_and_returns")
        report.error(
            "M226",
            f"{said} does not go with {report.said(PluginOptions, 'loss_type')}",
            owner=f"{loss.distribution} {loss.version}" if loss.distribution else "miles-core",
            why="that loss needs advantages",
            fix="leave it out, or take a loss that needs none, such as sft_loss or custom_loss",
        )


def _divide_by_longest(report: Report) -> None:
    longest = report.peek(RolloutOptions).rollout_max_response_len
    if longest is None:
        said = report.said(AlgorithmOptions, "loss_length_divisor")
        fix = "give --rollout-max-response-len, or a number of tokens"
        report.error("M225", f"{said} needs --rollout-max-response-len", why="0 stands for it", fix=fix)
    else:
        report.derive(AlgorithmOptions, loss_length_divisor=longest)
