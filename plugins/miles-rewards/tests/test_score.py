"""``miles reward score``: as a command, in its own process where that matters."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from miles_core.cli.main import main
from miles_rewards.command.scoring import BATCH, batches

ROWS = [
    {"response": "\\boxed{42}", "label": "42"},
    {"response": "\\boxed{41}", "label": 42, "metadata": None, "prompt": None},
    {"response": "\\boxed{42}"},
    {"response": None, "label": "42"},
    {"response": "Answer: A", "label": "A", "metadata": {"rm_type": "gpqa"}, "prompt": [{"role": "user", "content": "?"}]},
    {"response": "\\boxed{9**9**9}", "label": "42"},
]


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) if not isinstance(row, str) else row for row in rows) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def score(tmp_path: Path, rows: Sequence[Any], *arguments: str) -> tuple[int, list[dict[str, Any]] | None]:
    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    code = main(["reward", "score", "--input", str(source), "--output", str(target), *arguments])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    return code, read(target) if target.exists() else None


def test_every_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = score(tmp_path, ROWS, "--rm-type", "math", "--workers", "1")
    assert code == 0
    assert found is not None
    assert [(row["score"], row["status"]) for row in found] == [
        (1.0, "ok"),
        (0.0, "ok"),
        (None, "invalid"),
        (None, "invalid"),
        (1.0, "ok"),
        (None, "invalid"),
    ]
    assert all(set(row) == {"score", "status", "detail"} for row in found)
    said = capsys.readouterr().out
    assert "6 responses: mean 0.6667 of 3 scored, 3 invalid, 0 timed out" in said
    assert "line 3: invalid: the label is missing" in said


def test_timeouts(tmp_path: Path) -> None:
    rewards = tmp_path / "mine.py"
    rewards.write_text("import time\ndef slow(sample):\n    time.sleep(1000 * (sample.label == 1))\n    return 0.5\n")
    rows = [{"response": "", "label": n} for n in range(3)]
    code, found = score(tmp_path, rows, "--custom-rm-path", f"{rewards}:slow", "--timeout", "0.3", "--workers", "3")
    assert code == 0
    assert found is not None
    assert [row["status"] for row in found] == ["ok", "timeout", "ok"]
    assert [row["score"] for row in found] == [0.5, None, 0.5]


def test_order_of_many_batches(tmp_path: Path) -> None:
    rewards = tmp_path / "mine.py"
    body = "    await asyncio.sleep(0.05 / (1 + sample.label % 97))\n    return sample.label\n"
    rewards.write_text(f"import asyncio\nasync def echo(sample):\n{body}")
    rows = [{"response": "", "label": n} for n in range(40 * BATCH + 5)]
    code, found = score(tmp_path, rows, "--custom-rm-path", f"{rewards}:echo")
    assert code == 0
    assert found is not None
    assert [row["score"] for row in found] == [float(n) for n in range(40 * BATCH + 5)]


def test_dicts_and_keys(tmp_path: Path) -> None:
    rows = [{"response": "Answer: 42", "label": "42"}]
    assert score(tmp_path, rows, "--rm-type", "dapo")[1] == [
        {"score": {"score": 1.0, "acc": 1.0, "pred": "42"}, "status": "ok", "detail": ""}
    ]
    assert score(tmp_path, rows, "--rm-type", "dapo", "--reward-key", "acc")[1] == [{"score": 1.0, "status": "ok", "detail": ""}]
    found = score(tmp_path, rows, "--rm-type", "dapo", "--reward-key", "pred")[1]
    assert found is not None
    assert found[0]["score"] == 42.0
    found = score(tmp_path, rows, "--rm-type", "dapo", "--reward-key", "none")[1]
    assert found is not None
    assert found[0]["status"] == "invalid"


def test_options_of_the_reward(tmp_path: Path, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(lambda number, body: web.json_response(0.25))
    rows = [{"response": "r", "label": "l", "prompt": "p"}] * 3
    code, found = score(tmp_path, rows, "--rm-type", "remote_rm", "--rm-url", server.url)
    assert code == 0
    assert found == [{"score": 0.25, "status": "ok", "detail": ""}] * 3
    monkeypatch.setenv("MILES_RM_URL", server.url)
    assert (
        score(tmp_path, rows, "--rm-type", "sum", "--sum-of", "remote_rm=2", "format")[1]
        == [{"score": 0.5, "status": "ok", "detail": "remote_rm 0.25, format 0"}] * 3
    )


@pytest.mark.parametrize(
    ("arguments", "codes"),
    [
        ([], ["M298"]),
        (["--rm-type", "maths"], ["M101"]),
        (["--rm-type", "math", "--rm-url", "http://x/"], ["M201"]),
        (["--rm-type", "math", "--backend", "fsdp"], ["M201"]),
        (["--rm-type", "remote_rm", "--rm-attempts", "0"], ["M295", "M295"]),
        (["--rm-type", "judge", "--judge-url", "http://x/"], ["M296"]),
        (["--rm-type", "sum"], ["M291"]),
        (["--rm-type", "math", "--timeout", "0", "--workers", "0"], ["M298", "M298"]),
        (["--rm-type", "math", "--timeout", "soon"], ["M203"]),
        (["--custom-rm-path", "no.such.module"], ["M111"]),
    ],
)
def test_mistakes(arguments: list[str], codes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(tmp_path, ROWS, *arguments) == (2, None)
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == codes


def test_files_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reward", "score", "--rm-type", "math"]) == 2
    assert (
        main(["reward", "score", "--rm-type", "math", "--input", str(tmp_path / "x"), "--output", str(tmp_path / "no" / "y")]) == 2
    )
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["M298"] * 4


@pytest.mark.parametrize(
    "line", ["{", '"text"', '{"label": "42"}', '{"response": "x", "metadata": [1]}', '{"response": "x", "prompt": 5}', "[" * 10**5]
)
def test_errors_name_the_line(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = write(tmp_path / "out.jsonl", ["before"])
    rows = [*[ROWS[0]] * (20 * BATCH), "", line]
    source = write(tmp_path / "in.jsonl", rows)
    assert main(["reward", "score", "--rm-type", "exact", "--input", str(source), "--output", str(target)]) == 2
    assert f"M299 {source}:{20 * BATCH + 2}: " in capsys.readouterr().err
    assert target.read_text() == "before\n"


def test_a_reward_that_breaks_its_contract_is_a_failed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def short(self: Any, samples: Any) -> list[Any]:
        return []

    monkeypatch.setattr("miles_rewards.rule.RuleReward.score", short)
    code, found = score(tmp_path, ROWS[:1], "--rm-type", "exact")
    assert (code, found) == (1, None)


def test_memory_does_not_grow_with_the_file() -> None:
    taken = 0

    def lines() -> Any:
        nonlocal taken
        for _ in range(10**6):
            taken += 1
            yield b'{"response": "x"}\n'

    found = batches(lines(), "endless")
    assert len(next(found)[2]) == BATCH
    assert taken == BATCH


def test_pipes_and_imports(tmp_path: Path) -> None:
    """Through standard input and output, in a process that imports neither torch nor ray."""
    program = (
        "import sys\nfrom miles_core.cli.main import main\n"
        "code = main(['reward', 'score', '--rm-type', 'f1', '--input', '-', '--output', '-'])\n"
        "assert not {'torch', 'ray', 'transformers', 'aiohttp'} & set(sys.modules)\nsys.exit(code)"
    )
    text = '{"response": "the cat", "label": "cat"}\n\n{"response": "dog", "label": "cat"}'
    done = subprocess.run([sys.executable, "-c", program], input=text, capture_output=True, text=True, timeout=60, check=True)
    assert [json.loads(line)["score"] for line in done.stdout.splitlines()] == [1.0, 0.0]
    assert "2 responses: mean 0.5000" in done.stderr


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reward", "score", "--rm-type", "code", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--code-test-timeout" in said
    assert "--judge-url" not in said
    assert main(["reward", "score", "-h"]) == 0
    assert "--input FILE" in capsys.readouterr().out


def test_public_outputs(tmp_path: Path, data: Callable[[str], list[dict[str, Any]]]) -> None:
    rows = data("model_outputs/qwen25_math_cot_100x8.jsonl")
    given = [{"response": response, "label": row["gt"]} for row in rows for response in row["code"]]
    theirs = [float(verdict) for row in rows for verdict in row["score"]]
    code, found = score(tmp_path, given, "--rm-type", "math")
    assert code == 0
    assert found is not None
    assert sum(row["score"] != verdict for row, verdict in zip(found, theirs, strict=True)) <= 2
