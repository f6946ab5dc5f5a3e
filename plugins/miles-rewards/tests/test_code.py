"""Reward code: programs that are right, wrong and hostile."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from miles_core.config import RewardOptions
from miles_core.errors import UsageError
from miles_core.options import Config
from miles_core.samples import Invalid, Sample, Score, Scored
from miles_rewards.code.cases import read_cases
from miles_rewards.code.options import CodeOptions, code_errors
from miles_rewards.code.reward import create, last_program
from miles_rewards.code.runner import Limits, probe, same_value
from miles_rewards.ungradable import Ungradable

SQUARES = {"inputs": ["2", "3"], "outputs": ["4", "9"]}
RIGHT = "n = int(input())\nprint(n * n)"
contained = pytest.mark.skipif(
    sys.platform != "linux" or bool(probe(Limits(10.0, 1 << 30))), reason="this kernel cannot contain programs"
)


def fenced(program: str) -> str:
    return f"Here:\n```python\n{program}\n```\nDone."


def run(program: str, tests: Any = SQUARES, seconds: float = 20.0, metadata: dict[str, Any] | None = None, **options: Any) -> Score:
    async def grade() -> list[Score]:
        reward = create(Config.of(RewardOptions(reward_timeout=seconds), CodeOptions(**options)))
        try:
            return await reward.score([Sample(response=fenced(program), label=tests, metadata=metadata or {})])
        finally:
            await reward.close()

    return asyncio.run(grade())[0]


def value(score: Score) -> object:
    return score.value if isinstance(score, Scored) else score


@contained
def test_shares() -> None:
    assert value(run(RIGHT)) == 1.0
    assert value(run("print(4)")) == 0.5
    assert value(run("print(4)", code_score="all")) == 0.0
    assert value(run(RIGHT, code_score="all")) == 1.0


@contained
@pytest.mark.parametrize(
    ("program", "tests", "expected"),
    [
        ("def sq(x):\n    return x * x", ["assert sq(2) == 4", "assert sq(3) == 10"], 0.5),
        ("def sq(x):\n    return x * x", "def check(f):\n    assert f(3) == 9", 1.0),
        ("class Solution:\n    def sq(self, x):\n        return x * x", {"inputs": [[2]], "outputs": [4], "fn_name": "sq"}, 1.0),
        ("def sq(x):\n    return x * x", [{"input": "2", "output": "4", "fn_name": "sq"}], 1.0),
        ("def add(a, b):\n    return [a, b]", [{"input": "1\n[2]", "output": "[1, [2]]", "fn_name": "add"}], 1.0),
        ("print('a  b ')", [{"input": "", "output": "a b\n"}], 1.0),
        ("print(0.1 + 0.2)", [{"input": "", "output": "0.3"}], 1.0),
        ("print(3)", [{"input": "", "output": "3.0"}], 1.0),
        ("print(3.0)", [{"input": "", "output": "3"}], 0.0),
        ("import sys\nsys.exit(0)", ["assert sq(2) == 4"], 0.0),
        ("def sq(x): return object()", {"inputs": [[2]], "outputs": [4], "fn_name": "sq"}, 0.0),
        ("print(4)\nraise SystemExit(3)", [{"input": "", "output": "4"}], 0.0),
        ("syntax error", [{"input": "", "output": "4"}], 0.0),
        (
            "import threading\nt = threading.Thread(target=print, args=(4,))\nt.start()\nt.join()",
            [{"input": "", "output": "4"}],
            1.0,
        ),
        ("open('x', 'w').write('4')\nprint(open('x').read())", [{"input": "", "output": "4"}], 1.0),
        ("import sys\nsys.stderr.write('e' * 10**7)\nprint(4)", [{"input": "", "output": "4"}], 1.0),
    ],
)
def test_forms(program: str, tests: Any, expected: float) -> None:
    assert value(run(program, tests, metadata={"entry_point": "sq"})) == expected


def test_tests_in_the_metadata_come_first() -> None:
    assert [case.stdin for case in read_cases({"inputs": ["a"], "outputs": ["b"]}, {"tests": SQUARES})] == ["2", "3"]
    assert [case.stdin for case in read_cases('{"inputs": ["a"], "outputs": ["b"]}', {})] == ["a"]


HOSTILE = {
    "loop": "while True: pass",
    "sleep": "import time\ntime.sleep(1000)",
    "fork bomb": "import os\nwhile True: os.fork()",
    "memory bomb": "x = bytearray(1 << 40)",
    "slow memory bomb": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "endless output": "while True: print('a' * 10000)",
    "endless errors": "import sys\nwhile True: sys.stderr.write('a' * 10000)",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1) + 1\nf(0)",
    "big power": "print(9 ** 9 ** 9)",
    "closes everything": "import os, time\nos.closerange(0, 100)\ntime.sleep(1000)",
    "ignores signals": (
        "import signal\nfor s in range(1, 32):\n  try: signal.signal(s, signal.SIG_IGN)\n  except OSError: pass\nwhile True: pass"
    ),
    "big file": "f = open('x', 'w')\nwhile True: f.write('a' * 1000000)",
    "threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(1000,)).start()",
}


@contained
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_end(name: str) -> None:
    started = time.monotonic()
    score = run(HOSTILE[name], code_test_timeout=0.5, code_memory_mb=256)
    assert value(score) == 0.0
    assert time.monotonic() - started < 15


@contained
def test_the_sample_has_a_deadline() -> None:
    started = time.monotonic()
    score = run("import time\ntime.sleep(1000)", {"inputs": [""] * 50, "outputs": [""] * 50}, seconds=1.0, code_test_timeout=0.4)
    assert isinstance(score, Scored)
    assert time.monotonic() - started < 10


@contained
@pytest.mark.parametrize(
    "program",
    [
        "import socket\nsocket.socket()",
        "import os\nos.fork()",
        "import subprocess\nsubprocess.run(['/bin/true'], check=True)",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)",
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
        "open('{outside}').read()",
        "open('{outside}', 'w').write('x')",
        "import os\nos.unlink('{outside}')",
        "import os\nos.listdir('/proc')",
        "open('/etc/passwd').read()",
        "import os\nos.rename('x', '{outside}')",
    ],
)
def test_what_is_out_of_reach(program: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("kept")
    score = run(program.replace("{outside}", str(outside)) + "\nprint('done')", [{"input": "", "output": "done"}])
    assert value(score) == 0.0
    assert isinstance(score, Scored)
    assert "Error" in score.detail
    assert outside.read_text() == "kept"


@contained
def test_no_environment_and_nothing_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_SECRET", "secret")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    score = run("import os\nopen('x', 'w').write('1')\nprint('MY_SECRET' in os.environ)", [{"input": "", "output": "False"}])
    assert value(score) == 1.0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("```py\na\n```\n```python\nb\n```", "b\n"),
        ("```python\na\n```\n```python\nb", "a\n"),
        ("```python\na\n```\n```text\n4\n```", "a\n"),
        ("```cpp\na\n```", None),
        ("<think>\n```python\na\n```\n</think>\nnone", None),
        ("````python\n```\na\n```\n````", "```\na\n```\n"),
        ("no code", None),
        ("```python\n" * 20000, None),
    ],
)
def test_last_program(response: str, program: str | None) -> None:
    assert last_program(response) == program


@pytest.mark.parametrize(
    "label",
    [
        None,
        "",
        [],
        5,
        {"inputs": ["1"], "outputs": []},
        [{"input": "1"}],
        "assert (",
        [{"input": [1], "output": 1, "fn_name": "a b"}],
        ["x"] * 1001,
        [{"input": 10**5000, "output": "x"}],
    ],
)
def test_tests_that_cannot_be_read(label: Any) -> None:
    with pytest.raises(Ungradable):
        read_cases(label, {})


@contained
def test_no_tests_are_invalid_and_no_program_is_wrong() -> None:
    assert isinstance(run(RIGHT, []), Invalid)

    async def grade() -> list[Score]:
        reward = create(Config.of(RewardOptions(), CodeOptions()))
        try:
            return await reward.score([Sample(response="no code", label="assert True"), Sample(response=None, label="x")])  # type: ignore[arg-type]
        finally:
            await reward.close()

    wrong, invalid = asyncio.run(grade())
    assert value(wrong) == 0.0
    assert isinstance(invalid, Invalid)


@pytest.mark.parametrize(
    ("returned", "expected", "same"),
    [
        (1, 1.0, True),
        (True, 1, False),
        ([1, 2], [1, 2], True),
        ([1], 1, False),
        (1, [1], True),
        ({"a": 0.1 + 0.2}, {"a": 0.3}, True),
        ("1", 1, False),
    ],
)
def test_same_value(returned: Any, expected: Any, same: bool) -> None:
    assert same_value(returned, expected) is same


@contained
def test_a_kernel_that_contains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # No machine can be had here whose kernel offers less.
    monkeypatch.setattr("miles_rewards.code.reward.probe", lambda limits: ("files", "the network"))
    with pytest.raises(UsageError, match=r"M297.*kept from files and the network"):
        run(RIGHT)
    assert value(run(RIGHT, code_unsandboxed=True)) == 1.0


def test_option_errors() -> None:
    assert [error.code for error in code_errors(CodeOptions(code_test_timeout=0, code_memory_mb=1), "x")] == ["M297", "M297"]
