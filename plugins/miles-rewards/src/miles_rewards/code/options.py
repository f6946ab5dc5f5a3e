"""Options of code execution, and their checks. Standard library and miles_core only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from miles_core.errors import UsageError
from miles_core.options import option


@dataclass(frozen=True)
class CodeOptions:
    """Code execution"""

    code_score: str = option(
        "share", flag="--code-score", choices=("share", "all"), help="Score: the share of tests passed, or 1 only when all are."
    )
    code_test_timeout: float = option(
        5.0, flag="--code-test-timeout", help="Seconds that one test may take, in wall clock and in processor time."
    )
    code_memory_mb: int = option(1024, flag="--code-memory-mb", help="MiB of address space that a program may have.")
    code_unsandboxed: bool = option(
        False,
        flag="--code-unsandboxed",
        help="Run programs even where the kernel can keep them neither from files nor from the network.",
    )


def code_errors(options: CodeOptions, owner: str) -> Iterator[UsageError]:
    """M297 for limits that no program could run within."""
    if not 0 < options.code_test_timeout < math.inf:
        fix = "give seconds, more than 0"
        yield UsageError("M297", f"--code-test-timeout is {options.code_test_timeout}", owner=owner, fix=fix)
    if options.code_memory_mb < 64:
        fix = "give 64 or more: Python itself takes some 30"
        yield UsageError("M297", f"--code-memory-mb is {options.code_memory_mb}", owner=owner, fix=fix)
