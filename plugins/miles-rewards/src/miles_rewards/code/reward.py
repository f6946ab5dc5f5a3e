"""Reward ``code``: whether the Python program in the response passes its tests.

Source: execution against tests, as in APPS (Hendrycks et al. 2021, arXiv:2105.09938), MBPP (Austin et al. 2021, arXiv:2108.07732)
and HumanEval (Chen et al. 2021, arXiv:2107.03374).

Contract: the program is the last closed code fence of the text after the last ``</think>``, unmarked or marked as Python; without
one the score is 0.0. Tests: see :func:`~miles_rewards.code.cases.read_cases`. Each test is a process of its own. The score is the
share of tests passed, or with ``--code-score all`` 1.0 only when all are. A test that does not end in ``--code-test-timeout``
seconds is failed, and so are those for which ``--reward-timeout`` leaves no time: a slow program is a wrong one. Tests that cannot
be read are ``Invalid``.

Examples: a program that prints ``4`` for ``{"inputs": ["2", "3"], "outputs": ["4", "9"]}`` is 0.5, and 0.0 with ``--code-score
all``.

Omissions: only Python; no checkers for problems with several right outputs. Asserts run inside the program's process, so a
program that sets out to deceive them can; standard output and returned values are compared outside of it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from miles_core.config import RewardOptions
from miles_core.errors import UsageError
from miles_core.options import Config
from miles_core.samples import Invalid, Sample, Score, Scored
from miles_rewards.code.cases import read_cases
from miles_rewards.code.options import CodeOptions, code_errors
from miles_rewards.code.runner import Limits, Outcome, probe, run_case
from miles_rewards.ungradable import Ungradable

OWNER = "reward code"
PYTHON = frozenset({"", "py", "python", "python3"})
MOST = 1 << 18
"""Characters of a program."""
_FENCE = re.compile(r"[ \t]{0,3}(`{3,16})[ \t]*([^\s`]{0,32})[^\n`]{0,80}")


class CodeReward:
    """Implements :class:`miles_core.protocols.Reward`. Threads wait for the processes; the event loop is never blocked.

    Args:
        limits: of every test.
        seconds: for all tests of a sample.
        workers: programs that run at once.
        all_or_nothing: see ``--code-score``.
    """

    def __init__(self, limits: Limits, seconds: float, workers: int, all_or_nothing: bool) -> None:
        self._limits = limits
        self._seconds = seconds
        self._all = all_or_nothing
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="code")

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One score per sample, in order."""
        loop = asyncio.get_running_loop()
        return list(await asyncio.gather(*(loop.run_in_executor(self._threads, self._grade, sample) for sample in samples)))

    async def close(self) -> None:
        """Wait for the programs that still run; those that wait for a place do not start."""
        await asyncio.get_running_loop().run_in_executor(None, lambda: self._threads.shutdown(cancel_futures=True))

    def _grade(self, sample: Sample) -> Score:
        if not isinstance(sample.response, str):
            return Invalid(f"the response is a {type(sample.response).__name__}, not text")
        try:
            cases = read_cases(sample.label, sample.metadata)
        except Ungradable as error:
            return Invalid(str(error))
        program = last_program(sample.response)
        if program is None:
            return Scored(0.0, "no program in a closed code fence")
        if len(program) > MOST:
            return Scored(0.0, f"a program of {len(program)} characters")
        deadline = time.monotonic() + self._seconds
        passed, first = 0, ""
        for number, case in enumerate(cases, 1):
            if time.monotonic() >= deadline:
                outcome = Outcome(False, f"no time left of {self._seconds:g} s (--reward-timeout)")
            else:
                seconds = min(self._limits.seconds, deadline - time.monotonic())
                outcome = run_case(program, case, Limits(seconds, self._limits.memory, self._limits.unsandboxed))
            if outcome.missing:
                return Invalid(f"programs cannot be kept from {' and '.join(outcome.missing)} here")
            passed += outcome.passed
            if not outcome.passed and not first:
                first = f"; test {number}: {outcome.detail}"
                if self._all:
                    return Scored(0.0, f"test {number} of {len(cases)}: {outcome.detail}")
        return Scored(passed / len(cases), f"{passed} of {len(cases)} tests passed{first}")


def create(config: Config) -> CodeReward:
    """The reward.

    Raises:
        UsageError: M297, limits that nothing can run within, or a kernel that cannot contain programs.
    """
    options = config.get(CodeOptions)
    for error in code_errors(options, OWNER):
        raise error
    rewards = config.get(RewardOptions)
    limits = Limits(options.code_test_timeout, options.code_memory_mb << 20, options.code_unsandboxed)
    if not limits.unsandboxed and (missing := probe(Limits(10.0, limits.memory))):
        raise UsageError(
            "M297",
            f"programs of responses cannot be kept from {' and '.join(missing)} here",
            owner=OWNER,
            why="the kernel offers no Landlock or no seccomp",
            fix="run on Linux 5.13 or later, or accept that programs reach all that this user may: --code-unsandboxed",
        )
    return CodeReward(limits, rewards.reward_timeout, rewards.reward_workers, options.code_score == "all")


def last_program(response: str) -> str | None:
    """The last closed fence of Python after the reasoning; None when there is none."""
    found: str | None = None
    opened: tuple[str, str] | None = None
    lines: list[str] = []
    for line in response.rpartition("</think>")[2].splitlines():
        fence = _FENCE.fullmatch(line.rstrip()[:160]) if "```" in line else None
        if opened is None:
            if fence:
                opened, lines = (fence[1], fence[2].lower()), []
        elif fence and not fence[2] and len(fence[1]) >= len(opened[0]):
            if opened[1] in PYTHON:
                found = "\n".join(lines) + "\n"
            opened = None
        else:
            lines.append(line)
    return found
