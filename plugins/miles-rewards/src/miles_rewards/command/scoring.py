"""Grading a file line by line, in memory that does not grow with it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import click

from miles_core.config import RewardOptions
from miles_core.errors import MilesError, RunError, UsageError
from miles_core.plugins import create
from miles_core.protocols import Reward
from miles_core.rollout.row_rewards import RowRewards
from miles_core.samples import Invalid, Sample, Score, Scored, Status, Timeout
from miles_rewards.command.options import OWNER, Job

BATCH = 32
"""Responses given to the reward at once."""
IN_FLIGHT = 8
"""Batches in flight, and two more per worker."""


@dataclass
class Summary:
    """How grading a file went."""

    seconds: float = 0.0
    scored: int = 0
    invalid: int = 0
    timeout: int = 0
    numbers: int = 0
    total: float = 0.0
    first_failures: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The summary for people."""
        count = self.scored + self.invalid + self.timeout
        mean = f"mean {self.total / self.numbers:.4f} of {self.numbers:,} scored" if self.numbers else f"{self.scored:,} scored"
        pace = f"{count / max(self.seconds, 1e-9):,.0f} a second ({self.seconds:.1f} s)"
        head = f"{count:,} responses: {mean}, {self.invalid:,} invalid, {self.timeout:,} timed out; {pace}"
        return "\n".join([head, *(f"  {line}" for line in self.first_failures)])

    def add(self, line: int, row: Mapping[str, Any]) -> None:
        """Count one output line."""
        status = row["status"]
        if status == "ok":
            self.scored += 1
            if isinstance(row["score"], float):
                self.numbers += 1
                self.total += row["score"]
            return
        if status == "timeout":
            self.timeout += 1
        else:
            self.invalid += 1
        if len(self.first_failures) < 3:
            self.first_failures.append(f"line {line}: {status}: {row['detail']}"[:200])


def score_file(job: Job) -> Summary:
    """Grade every line of the input. The output appears whole at the end, or not at all.

    Raises:
        UsageError: M299, a line of the input is no sample; M298, a file cannot be read or written.
        MilesError: the reward cannot be made, or breaks its contract (M404).
    """
    assert job.own.input is not None
    assert job.own.output is not None
    with contextlib.ExitStack() as stack:
        try:
            source = sys.stdin.buffer if job.own.input == "-" else stack.enter_context(open(job.own.input, "rb"))
            target = stack.enter_context(_written_whole(job.own.output))
        except OSError as error:
            raise UsageError("M298", f"{error.filename} cannot be opened", owner=OWNER, why=error.strerror or "") from error
        size = os.fstat(source.fileno()).st_size if job.own.input != "-" else 0
        bar = stack.enter_context(click.progressbar(length=max(size, 1), label="grading", file=sys.stderr, hidden=_hidden(size)))
        started = time.monotonic()
        summary = asyncio.run(_score_all(job, source, target, bar))
        summary.seconds = time.monotonic() - started
    return summary


async def _score_all(job: Job, source: IO[bytes], target: IO[str], bar: Any) -> Summary:
    reward = _make(job)
    options = job.config.get(RewardOptions)
    key, most = options.reward_key, IN_FLIGHT + 2 * options.reward_workers
    summary = Summary()
    running: collections.deque[tuple[list[int], int, asyncio.Task[list[Score]]]] = collections.deque()

    async def write_first() -> None:
        lines, length, task = running.popleft()
        for line, score in zip(lines, await task, strict=True):
            row = as_row(score, key)
            summary.add(line, row)
            target.write(json.dumps(row) + "\n")
        bar.update(length)

    try:
        for lines, length, samples in batches(source, job.own.input or ""):
            running.append((lines, length, asyncio.create_task(_grade(reward, samples))))
            # Lets the new task begin, and keeps at most so many in memory.
            await asyncio.sleep(0)
            if len(running) >= most:
                await write_first()
        while running:
            await write_first()
    finally:
        for _, _, task in running:
            task.cancel()
        await asyncio.gather(*(task for _, _, task in running), return_exceptions=True)
        await reward.close()
    return summary


def batches(source: IO[bytes], name: str) -> Iterator[tuple[list[int], int, list[Sample]]]:
    """The samples of a file, up to :data:`BATCH` at a time, with their lines from 1 and the bytes of those.

    Raises:
        UsageError: M299.
    """
    lines: list[int] = []
    samples: list[Sample] = []
    length = 0
    for number, line in enumerate(source, 1):
        length += len(line)
        if not line.strip():
            continue
        lines.append(number)
        samples.append(as_sample(line, number, f"{name}:{number}"))
        if len(samples) == BATCH:
            yield lines, length, samples
            lines, samples, length = [], [], 0
    if samples or length:
        yield lines, length, samples


def as_sample(line: bytes, number: int, place: str) -> Sample:
    """The sample of one line.

    Raises:
        UsageError: M299.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        fix = "write one JSON object a line"
        raise UsageError("M299", "the line is no JSON", owner=place, why=str(error)[:200], fix=fix) from None
    wanted = 'a JSON object with "response", and "label", "metadata", "prompt" as the reward wants them'
    if not isinstance(row, dict) or "response" not in row:
        what = "has no response" if isinstance(row, dict) else f"is a {type(row).__name__}"
        raise UsageError("M299", f"the line {what}", owner=place, fix=f"write {wanted}")
    metadata, prompt = row.get("metadata"), row.get("prompt")
    if metadata is not None and not isinstance(metadata, dict):
        raise UsageError("M299", f"the metadata is a {type(metadata).__name__}", owner=place, fix="write it as a JSON object")
    if prompt is not None and not isinstance(prompt, str | list):
        raise UsageError("M299", f"the prompt is a {type(prompt).__name__}", owner=place, fix="write a text or a list of messages")
    return Sample(
        index=number - 1,
        prompt=prompt if prompt is not None else "",
        response=row["response"],
        label=row.get("label"),
        metadata=metadata or {},
        status=Status.COMPLETED,
    )


def as_row(score: Score, key: str | None) -> dict[str, Any]:
    """The output line of a score. Of a dict the number that ``key`` names, or with no key the dict."""
    if isinstance(score, Timeout):
        return {"score": None, "status": "timeout", "detail": score.detail or f"no score after {score.seconds:g} s"}
    if isinstance(score, Invalid):
        return {"score": None, "status": "invalid", "detail": score.detail}
    value: Any = score.value
    if isinstance(value, Mapping) and key is None:
        return {"score": dict(value), "status": "ok", "detail": score.detail}
    if isinstance(value, Mapping):
        if key not in value:
            return {"score": None, "status": "invalid", "detail": f"the score has no {key!r} but {', '.join(map(str, value))}"}
        value = value[key]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        return {"score": None, "status": "invalid", "detail": f"the score is {value!r}"[:200]}
    return {"score": number, "status": "ok", "detail": score.detail}


async def _grade(reward: Reward, samples: Sequence[Sample]) -> list[Score]:
    if not samples:
        return []
    try:
        scores = await reward.score(samples)
    except MilesError:
        raise
    except Exception as error:
        # A reward is code of others; what it raises belongs to the samples, as in a run.
        return [Invalid(f"{type(error).__name__}: {error}") for _ in samples]
    if len(scores) != len(samples) or not all(isinstance(score, Scored | Invalid | Timeout) for score in scores):
        fix = "return one Scored, Invalid or Timeout per sample, in order"
        raise RunError("M404", f"the reward returned {len(scores)} scores for {len(samples)} samples", owner=OWNER, fix=fix)
    return scores


def _make(job: Job) -> Reward:
    assert job.reward is not None
    reward: Reward = create(job.reward, job.config)
    return reward if job.reward.adapter is not None else RowRewards(reward, job.reward.name, job.config)


@contextlib.contextmanager
def _written_whole(path: str) -> Iterator[IO[str]]:
    if path == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    building = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}")
    try:
        with open(building, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(building, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(building)


def _hidden(size: int) -> bool:
    return not size or not sys.stderr.isatty()
