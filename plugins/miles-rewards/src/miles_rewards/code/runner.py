"""Running one test in a process of its own, which ends in bounded time whatever the program does."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from miles_rewards.code.cases import Case
from miles_rewards.code.supervision import Ended, supervise

MOST_OUTPUT = 1 << 20
"""Bytes of output above what is expected, after which a program is ended."""


@dataclass(frozen=True)
class Limits:
    """What a program may use: seconds a test, bytes of address space; and whether it may run without walls."""

    seconds: float
    memory: int
    unsandboxed: bool = False


@dataclass(frozen=True)
class Outcome:
    """Whether a test passed, and if not, why. ``missing`` are the walls that the kernel does not offer."""

    passed: bool
    detail: str = ""
    missing: tuple[str, ...] = ()


def run_case(program: str, case: Case, limits: Limits) -> Outcome:
    """Run one test. Blocks for at most ``limits.seconds`` and what it takes to start and end a process."""
    secret = secrets.token_hex(16)
    kind = "stdin" if case.stdin is not None else "call" if case.call is not None else "source"
    told = {"kind": kind, "program": program, "call": case.call, "arguments": case.arguments, "source": case.source}
    allowed = MOST_OUTPUT + 2 * len(str(case.expected or ""))
    ended = _run({**told, "secret": secret}, (case.stdin or "").encode("utf-8", "surrogatepass"), limits, allowed)
    if "missing" in ended.report:
        return Outcome(False, "not run", tuple(ended.report["missing"]))
    if ended.problem:
        return Outcome(False, ended.problem)
    if kind == "stdin":
        if ended.status:
            return Outcome(False, ended.fate())
        return _compared(ended.output.decode("utf-8", "replace"), str(case.expected))
    if kind == "source":
        return Outcome(True) if ended.report.get("passed") == secret else Outcome(False, ended.fate())
    if "returned" not in ended.report:
        return Outcome(False, ended.fate())
    returned = ended.report["returned"]
    right = same_value(returned, case.expected)
    return Outcome(right, "" if right else f"returned {str(returned)[:80]}")


def probe(limits: Limits) -> tuple[str, ...]:
    """The walls that this kernel does not offer: none where all do."""
    ended = _run({"kind": "probe", "program": ""}, b"", limits, MOST_OUTPUT)
    return tuple(ended.report.get("missing", (f"anything ({ended.problem or ended.fate()})",)))


def same_value(returned: Any, expected: Any) -> bool:
    """Equality of JSON values; numbers within 1e-6, and an expected value may stand alone in a list, as some data sets have it."""
    if isinstance(returned, bool) or isinstance(expected, bool):
        return returned is expected or (isinstance(expected, list) and len(expected) == 1 and returned is expected[0])
    if isinstance(returned, int | float) and isinstance(expected, int | float):
        return returned == expected or abs(returned - expected) <= 1e-6 * max(1.0, abs(expected))
    if isinstance(returned, list) and isinstance(expected, list) and len(returned) == len(expected):
        return all(same_value(r, e) for r, e in zip(returned, expected, strict=True))
    if isinstance(expected, list) and len(expected) == 1 and not isinstance(returned, list):
        return same_value(returned, expected[0])
    if isinstance(returned, dict) and isinstance(expected, dict):
        return returned.keys() == expected.keys() and all(same_value(returned[k], expected[k]) for k in returned)
    return bool(returned == expected)


def _compared(output: str, expected: str) -> Outcome:
    """Line by line, without white space at the ends; numbers of one word by value."""
    ours = [line.split() for line in output.strip().splitlines()]
    theirs = [line.split() for line in expected.strip().splitlines()]
    for number, (line, wanted) in enumerate(zip(ours, theirs, strict=False), 1):
        if len(line) != len(wanted) or not all(map(_same_word, line, wanted)):
            return Outcome(False, f"line {number} of the output is {' '.join(line)[:80]!r}")
    if len(ours) != len(theirs):
        return Outcome(False, f"{len(ours)} lines of output, not {len(theirs)}")
    return Outcome(True)


def _same_word(word: str, wanted: str) -> bool:
    if word == wanted:
        return True
    if "." not in wanted and "e" not in wanted.lower():
        return False
    try:
        return abs(float(word) - float(wanted)) <= 1e-6 * max(1.0, abs(float(wanted)))
    except ValueError:
        return False


def _run(told: dict[str, Any], stdin: bytes, limits: Limits, allowed: int) -> Ended:
    folder = tempfile.mkdtemp(prefix="miles-code-")
    try:
        told |= {
            "memory": limits.memory,
            "seconds": limits.seconds,
            "unsandboxed": limits.unsandboxed,
            "readable": _readable(),
        }
        return supervise(json.dumps(told).encode("ascii"), stdin, folder, limits.seconds, allowed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _readable() -> list[str]:
    """Python, its packages and the system's libraries: what a program may read."""
    packages = (path for path in sys.path if "site-packages" in path)
    system = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime")
    return sorted({sys.prefix, sys.base_prefix, *packages, *system})
