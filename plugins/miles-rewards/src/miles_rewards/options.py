"""Options of the rewards of miles-rewards. Standard library and miles_core only."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class FormatOptions:
    """Format reward"""

    format_think_opened: bool = option(
        False,
        flag="--format-think-opened",
        help="The chat template ends the prompt with <think>, so a response need not begin with it.",
    )


@dataclass(frozen=True)
class LengthOptions:
    """Length reward"""

    length_free: int = option(0, flag="--length-free", help="Tokens of a response that cost nothing.")
    length_limit: int | None = option(
        None,
        flag="--length-limit",
        help="Tokens at which a response earns nothing; --rollout-max-response-len when not given.",
    )


@dataclass(frozen=True)
class SumOptions:
    """Sum of rewards"""

    sum_of: list[str] = option(
        [], flag="--sum-of", metavar="NAME[=WEIGHT]", help="Rewards to add up, each times its weight (1): math format=0.2."
    )
