"""Options of ifbench. Standard library and miles_core only."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class IfbenchOptions:
    """Instruction following"""

    ifbench_loose: bool = option(
        False,
        flag="--ifbench-loose",
        help="Let a response pass that follows an instruction without its first or last line, or without asterisks.",
    )
